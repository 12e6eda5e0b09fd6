"""Adds up the reports of all shards and writes the rejections, the image hashes and the manifest.

reports of all shards -> OUT/train/rejected.jsonl, OUT/train/image_hashes.npy -> OUT/dataset.json, last
"""

import contextlib
import io
import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import numpy.typing as npt

from pipelines import beam_storage
from pipelines.shard_reports import (
    Rejected,
    ShardReport,
    ViewReport,
    map_hashes_to_names,
    read_report,
    read_reports,
)
from pipelines.split_folder import HASHES_NAME, PARTS_FOLDER, REJECTED_NAME
from ssd_dist.core.config import Config
from ssd_dist.core.errors import DataError
from ssd_dist.core.manifest import (
    MANIFEST_NAME,
    CropSettings,
    Leakage,
    Manifest,
    PositivesPerObject,
    Split,
    View,
    fingerprint,
    target_spec,
)
from ssd_dist.core.storage import TEMPORARY, join

LEAKAGE_EXAMPLES = 5
SHARD_FILE = re.compile(r"(view\d{2,}-\d{5,}-of-\d{5,}\.tfrecord|\d{5,}-of-\d{5,}\.json)")


@dataclass(frozen=True)
class ManifestJob:
    """What the manifest depends on besides the shard reports.

    Attributes:
      output: folder of the manifest.
      split: name of the split.
      config: the experiment.
      max_rejected_fraction: largest accepted fraction of rejected images, and of rejected boxes.
    """

    output: str
    split: str
    config: Config
    max_rejected_fraction: float


class WriteManifest(beam.DoFn):
    """Adds up the reports of all shards, writes the manifest and yields its path."""

    def __init__(self, job: ManifestJob) -> None:
        super().__init__()
        self._job = job

    def process(self, group: tuple[int, Iterable[str]]) -> Iterator[str]:
        """Receives the paths of all reports as one group."""
        yield write_manifest(sorted(group[1]), self._job)


def write_manifest(paths: list[str], job: ManifestJob) -> str:
    """Writes the rejections and the hashes, then adds the split to the manifest; returns the path of the manifest.

    Raises:
      DataError: if no usable image was found, too much was rejected, or another run changed the classes meanwhile.
    """
    reports = list(map(read_report, paths))
    folder = join(job.output, job.split)
    rejected = sorted((line for report in reports for line in report.rejected), key=lambda line: line.index)
    lines = [json.dumps(line.model_dump(exclude={"index"}), ensure_ascii=False) for line in rejected]
    beam_storage.write_bytes(join(folder, REJECTED_NAME), "".join(f"{line}\n" for line in lines).encode())
    names = map_hashes_to_names(reports)
    crops = CropSettings.from_config(job.config.data.augmentation) if len(reports[0].views) > 1 else None
    split = merge_reports(reports, f"{job.split}/{HASHES_NAME}", rejected, crops)
    check_split(split, job)
    beam_storage.write_bytes(join(folder, HASHES_NAME), array_to_bytes(np.array(sorted(names), np.uint64)))
    path = join(job.output, MANIFEST_NAME)
    with beam_storage.locked(job.output):
        before = read_manifest(job.output)
        if before is not None and {*before.splits} - {job.split} and before.classes != reports[0].classes:
            # The same label would stand for different classes in different splits.
            raise DataError(f"{path}: another run wrote it meanwhile with other classes; run this one again")
        manifest = add_split(before, split, reports[0].classes, names, job)
        beam_storage.write_bytes(path, manifest.to_json().encode())
    delete_stale_files(folder, [*paths, *(shard.file for view in split.views for shard in view.shards)])
    return path


def delete_stale_files(folder: str, kept: list[str]) -> None:
    """Deletes temporary files of killed or repeated attempts, and shards of an earlier run with another shard count.

    A trainer that reads every shard in the folder would otherwise read the same images twice.
    """
    names = {posixpath.basename(path) for path in kept}
    # Deeper folders are not searched, because a link there may lead out of the folder.
    found = [*beam_storage.list_files(folder), *beam_storage.list_files(join(folder, PARTS_FOLDER))]
    stale = [
        path
        for path, name in zip(found, map(posixpath.basename, found), strict=True)
        if TEMPORARY in name or (SHARD_FILE.fullmatch(name) and name not in names)
    ]
    beam_storage.delete_files(stale)


def merge_reports(
    reports: list[ShardReport], hashes: str, rejected: list[Rejected], crops: CropSettings | None
) -> Split:
    """Returns the manifest's entry of a split.

    Args:
      reports: the reports of all its shards.
      hashes: path of the image hashes, relative to the manifest.
      rejected: all rejections.
      crops: how the augmented copies were cropped, or None without augmented copies.
    """
    images = Counter(line.reason for line in rejected if not line.where)
    boxes = Counter(line.reason for line in rejected if line.where)
    files_per_view = zip(*(report.views for report in reports), strict=True)
    return Split(
        images_read=sum(report.images_read for report in reports),
        images=sum(len(report.images) for report in reports),
        boxes_read=sum(report.boxes_read for report in reports),
        boxes=sum(report.boxes for report in reports),
        rejected_images=dict(sorted(images.items())),
        rejected_boxes=dict(sorted(boxes.items())),
        clipped_boxes=sum(report.clipped_boxes for report in reports),
        image_hashes=hashes,
        views=tuple(_merge_files(files, reports[0].classes) for files in files_per_view),
        windows=crops,
    )


def _merge_files(files: tuple[ViewReport, ...], classes: tuple[str, ...]) -> View:
    objects = sum((Counter(file.objects) for file in files), Counter())
    positives = sum((Counter(file.positives) for file in files), Counter())
    count = sum(positives.values())
    return View(
        examples=sum(file.examples for file in files),
        shards=tuple(file.shard for file in files if file.shard is not None),
        objects_per_class={name: objects.get(name, 0) for name in classes},
        positives_per_object=PositivesPerObject(
            mean=sum(number * objects_ for number, objects_ in positives.items()) / max(1, count),
            minimum=min(positives, default=0),
            maximum=max(positives, default=0),
            histogram=dict(sorted(positives.items())),
        ),
    )


def check_split(split: Split, job: ManifestJob) -> None:
    """Checks that the split contains images and boxes and that the rejected fraction is within its limit.

    Raises:
      DataError: with the counts and the path of the file that contains the reasons.
    """
    where = f"the reasons are in {join(job.output, job.split, REJECTED_NAME)}"
    if not split.images_read:
        raise DataError(f"split {job.split!r}: the source lists no images; check --input and --source_split")
    if not split.images:
        raise DataError(f"split {job.split!r}: all {split.images_read} images were rejected; {where}")
    if split.boxes_read and not split.boxes:
        raise DataError(f"split {job.split!r}: all {split.boxes_read} boxes were rejected; {where}")
    for what, rejected, read in (
        ("images", split.images_read - split.images, split.images_read),
        ("boxes", split.boxes_read - split.boxes, split.boxes_read),
    ):
        if rejected > job.max_rejected_fraction * read:
            raise DataError(
                f"split {job.split!r}: {rejected} of {read} {what} were rejected, more than "
                f"--max_rejected_fraction={job.max_rejected_fraction:g} allows; {where}"
            )


def read_manifest(output: str) -> Manifest | None:
    """Returns the manifest in a folder, or None if there is none."""
    path = join(output, MANIFEST_NAME)
    return Manifest.from_json(beam_storage.read_text(path), path) if beam_storage.exists(path) else None


def add_split(
    manifest: Manifest | None, split: Split, classes: tuple[str, ...], names: dict[int, str], job: ManifestJob
) -> Manifest:
    """Returns the manifest with this split added or replaced, and with its leakage to and from the other splits.

    Args:
      manifest: the manifest so far, or None.
      split: the entry of this split.
      classes: names of the classes.
      names: file names of the images of this split, keyed by hash.
      job: name of the split, output folder and config.
    """
    config = job.config
    spec = target_spec(config.anchors, config.matching, config.model.input_size)
    others = {} if manifest is None else {name: old for name, old in manifest.splits.items() if name != job.split}
    kept = () if manifest is None else tuple(leak for leak in manifest.leakage if job.split not in leak.splits)
    found = (find_leakage(job, name, old, names) for name, old in others.items())
    return Manifest(
        classes=classes,
        image_size=spec["image_size"],
        anchors=spec["anchors"],
        matching=spec["matching"],
        fingerprint=fingerprint(config.anchors, config.matching, config.model.input_size),
        splits=dict(sorted({**others, job.split: split}.items())),
        leakage=tuple(sorted((*kept, *filter(None, found)), key=lambda leak: leak.splits)),
    )


def find_leakage(job: ManifestJob, other: str, split: Split, names: dict[int, str]) -> Leakage | None:
    """Returns the images of this split whose source bytes are also in another split, or None if there are none.

    Args:
      job: name of this split and output folder.
      other: name of the other split.
      split: manifest entry of the other split.
      names: file names of the images of this split, keyed by hash.
    """
    path = join(job.output, split.image_hashes)
    shared = np.intersect1d(load_hashes(path), np.array(sorted(names), np.uint64))
    if not len(shared):
        return None
    first, second = sorted((job.split, other))
    if first == other:
        # The examples are the names in the first split, so that the manifest does not depend on which split was
        # prepared last. The reports of the other split may disappear while that split is prepared again.
        with contextlib.suppress(FileNotFoundError):
            names = {**names, **map_hashes_to_names(read_reports(job.output, other))}
    examples = sorted(names[int(digest)] for digest in shared)[:LEAKAGE_EXAMPLES]
    return Leakage(splits=(first, second), images=len(shared), examples=tuple(examples))


def array_to_bytes(array: npt.NDArray[np.uint64]) -> bytes:
    """Returns the array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def load_hashes(path: str) -> npt.NDArray[np.uint64]:
    """Returns the sorted hashes of the images of a split.

    Raises:
      DataError: if the file is missing or damaged.
    """
    try:
        return np.asarray(np.load(io.BytesIO(beam_storage.read_bytes(path)), allow_pickle=False), np.uint64)
    except FileNotFoundError:
        raise DataError(
            f"{path}: missing, although the manifest refers to it; prepare that split again first"
        ) from None
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: damaged ({error}); prepare that split again first") from None
