"""Describes a labeled dataset before it is prepared: `ssd-prepare --survey=FILE` writes counts and box sizes.

Readers -> images grouped as for shards -> a sample of each group: image size, checked boxes -> one JSON file

`ssd-fit` chooses the input size, the anchors and the length of training from this file. Only the sampled images are
read.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines import beam_storage
from pipelines.annotations import Problem
from pipelines.detection import FORMATS
from pipelines.image_reading import read_images
from pipelines.missing_classes import explain_missing_classes, reject_members
from pipelines.options import PrepareJob
from pipelines.readers.read_annotations import read_splits
from pipelines.runners import make_runner, set_workers, translate_failures
from pipelines.shard_plan import GroupIntoShards, Member, ShardPlan
from pipelines.shard_reports import Rejected
from pipelines.shards import split_group
from pipelines.validate import check_boxes
from ssd_dist.core.errors import DataError
from ssd_dist.core.images import ImageError, decode_image, has_drawn_boxes
from ssd_dist.core.records import Objects

# Images of a split whose boxes are measured, spread evenly over the split.
SAMPLED_IMAGES = 2000
# Rejections of a shard that the reason for missing classes is taken from.
REPORTED_REJECTIONS = 1000


def run_survey(job: PrepareJob, options: PipelineOptions, path: str) -> None:
    """Writes the survey of the source of a job; writes no shards.

    The file contains `classes`, and for each split under `splits`: `images` and `boxes` (counts of the annotations,
    without images whose problem is already known, such as image files without annotation), `sizes` ([height, width] of
    each sampled image), `box_sizes` ([height, width] of each valid box of these images, as fractions of the image),
    `images_per_class` (how many of these images have a valid object of each class).

    Raises:
      DataError: if the source cannot be read or contains no classes.
      RestartError: if a worker was lost, or the job was stopped.
    """
    set_workers(options, job.workers)
    readers = [FORMATS[job.input_format].read(source) for source in job.sources]
    with translate_failures(options), beam.Pipeline(runner=make_runner(options), options=options) as pipeline:
        _ = (
            pipeline
            | "Read" >> read_splits(readers)
            | "Group into shards" >> GroupIntoShards(job.shards, job.rules)
            | "Measure" >> beam.FlatMap(measure_shard)
            | "Gather" >> beam.GroupByKey()
            | "Write survey" >> beam.Map(write_survey, job.splits, path)
        )


def measure_shard(group: tuple[int, Iterable[object]]) -> Iterator[tuple[int, tuple[int, int, dict[str, Any]]]]:
    """Yields (0, (split, shard, facts)) of the images of one shard; nothing for a group that is not a shard."""
    members, plan = split_group(group[1])
    if plan is None:
        return
    if not plan.classes.names:
        rejected = [line.model_dump() for line in islice(reject_members(members), REPORTED_REJECTIONS)]
        yield 0, (plan.split, plan.shard, {"rejected": rejected})
        return
    listed = [member for member in members if not member.orphan and member.image.problem is None]
    facts: dict[str, Any] = {
        "classes": list(plan.classes.names),
        "images": len(listed),
        "boxes": sum(len(member.image.boxes) for member in members),
        "sizes": [],
        "box_sizes": [],
        "images_per_class": Counter(),
    }
    for size, objects in measure_images(listed[:: choose_stride(len(listed), plan.shards)], plan):
        boxes = objects.boxes[~objects.is_crowd]
        facts["sizes"].append(size)
        facts["box_sizes"].extend((boxes[:, 2:] - boxes[:, :2]).astype(float).round(5).tolist())
        facts["images_per_class"].update(objects.list_classes())
    yield 0, (plan.split, plan.shard, facts)


def choose_stride(images: int, shards: int) -> int:
    """Returns the stride that samples about `SAMPLED_IMAGES` from `shards` shards of `images` images each.

    >>> choose_stride(100, 8), choose_stride(4096, 8)
    (1, 17)
    """
    return max(1, -(-images * shards // SAMPLED_IMAGES))


def measure_images(members: list[Member], plan: ShardPlan) -> Iterator[tuple[tuple[int, int], Objects]]:
    """Yields the size (height, width) of each image that can be prepared, and its valid objects."""
    images = [member.image for member in members]
    for image, data in zip(images, read_images(images), strict=True):
        if isinstance(data, Problem) or has_drawn_boxes(data):
            continue
        try:
            width, height = decode_image(data).size
        except ImageError:
            continue
        yield (height, width), check_boxes(image, height, width, plan.classes).objects


def write_survey(
    group: tuple[int, Iterable[tuple[int, int, dict[str, Any]]]], splits: tuple[str, ...], path: str
) -> None:
    """Adds up the facts of all shards, in the order of the shards, and writes them as JSON.

    Raises:
      DataError: if the dataset has no classes.
    """
    shards = sorted(group[1], key=lambda item: item[:2])
    rejected = [Rejected.model_validate(line) for *_, facts in shards for line in facts.get("rejected", ())]
    if any("rejected" in facts for *_, facts in shards):
        raise DataError(explain_missing_classes(rejected))
    survey: dict[str, Any] = {"classes": [], "splits": {}}
    for split, _, facts in shards:
        survey["classes"] = facts.pop("classes")
        total = survey["splits"].setdefault(splits[split], {key: type(value)() for key, value in facts.items()})
        for key, value in facts.items():
            total[key] += value
    beam_storage.write_bytes(path, json.dumps(survey).encode())
