"""The flags of prepare, and the job that they describe."""

import json
import math
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from absl import flags  # type: ignore[import-untyped]

from pipelines import beam_storage
from pipelines.classes import ClassRules, parse_class_file
from pipelines.image_preparation import Preparation
from pipelines.readers.coco import read_coco
from pipelines.readers.csv import read_csv
from pipelines.readers.sources import Source, parse_split_by
from pipelines.readers.tfrecord import read_tfrecord
from pipelines.readers.voc import read_voc
from pipelines.readers.yolo import read_yolo
from pipelines.split_report import PARTS_FOLDER, read_manifest
from ssd_dist.core.commands import config_from_flags, define_config_flags, required_flag
from ssd_dist.core.config import Config
from ssd_dist.core.errors import DataError, UsageError
from ssd_dist.core.manifest import MANIFEST_NAME, Manifest, target_spec

READERS: dict[str, Callable[[Source], beam.PTransform]] = {
    "coco": read_coco,
    "csv": read_csv,
    "tfrecord": read_tfrecord,
    "voc": read_voc,
    "yolo": read_yolo,
}


@dataclass(frozen=True)
class PrepareJob:
    """One run of prepare.

    Attributes:
      input_format: key of `READERS`.
      source: what to read.
      split: name of the split in the output.
      output: folder of the manifest.
      shards: how many, 0 for a choice of ours.
      rules: which classes, in which order.
      max_rejected_fraction: of images and of boxes, beyond which the job fails.
      config: the experiment.
      class_file: names that `--classes` gives, or none.
      resume: whether finished shards of an earlier run are kept.
      workers: how many worker processes, 0 for the runner's own choice.
    """

    input_format: str
    source: Source
    split: str
    output: str
    shards: int
    rules: ClassRules
    max_rejected_fraction: float
    config: Config
    class_file: tuple[str, ...] = ()
    resume: bool = False
    workers: int = 0


def define_flags() -> None:
    """Defines the flags of prepare."""
    flags.DEFINE_enum("input_format", None, sorted(READERS), "Format of the annotations.")
    flags.DEFINE_multi_string("input", [], "Folder, file or pattern of the annotations; may be repeated.")
    flags.DEFINE_string("image_dir", "", "Folder of the images, where it is not that of the format's layout.")
    flags.DEFINE_string("split", None, "Name of the split in the output, e.g. train.")
    flags.DEFINE_string(
        "source_split", "", "Name of the split in the source; that of --split by default, or with --split_by all of it."
    )
    flags.DEFINE_string("split_by", "", "Splits by a hash of the image id, e.g. train:0.8,val:0.1,test:0.1.")
    flags.DEFINE_string("output", None, "Folder to write shards and dataset.json to.")
    flags.DEFINE_integer("shards", 0, "Number of shards; 0 chooses by the number of images.", lower_bound=0)
    flags.DEFINE_string("classes", "", "File of class names, one a line, that fixes their order.")
    flags.DEFINE_list("include_classes", [], "Class names to keep; all by default.")
    flags.DEFINE_list("exclude_classes", [], "Class names to leave out.")
    flags.DEFINE_float(
        "max_rejected_fraction", 1.0, "Fails the job if more of the images or boxes are rejected.", 0.0, 1.0
    )
    flags.DEFINE_integer("workers", 0, "Worker processes; sets the runner's own options.", lower_bound=0)
    flags.DEFINE_bool("resume", False, "Keeps the finished shards of an earlier run with the same flags.")
    define_config_flags()


def job_from_flags() -> PrepareJob:
    """The job that the flags describe.

    Raises:
      UsageError: if a flag is missing or wrong.
      DataError: if the output holds a data set that this one cannot join.
    """
    values = flags.FLAGS
    if not values.input:
        raise UsageError(f"--input is missing: {values['input'].help}")
    split = required_flag("split")
    if not re.fullmatch(r"\w[\w .-]*", split) or split == MANIFEST_NAME:
        raise UsageError(f"--split={split}: expected a plain name, such as train")
    input_format = required_flag("input_format")
    output = required_flag("output").rstrip("/") or "/"
    for path in (*values.input, values.image_dir, values.classes, output):
        beam_storage.check_scheme(path)
    places = [posixpath.normpath(path) for path in values.input]
    for index, place in enumerate(places):
        if place in places[:index]:
            raise UsageError(f"--input={values.input[index]} is given twice; give it once")
    if math.isnan(values.max_rejected_fraction):
        raise UsageError("--max_rejected_fraction=nan: expected a number from 0 to 1")
    shares = parse_split_by(values.split_by)
    # A shell completes a folder's name with a slash, which makes it no other folder.
    inputs = [path if beam_storage.is_pattern(path) else path.rstrip("/") or "/" for path in values.input]
    source = Source(tuple(inputs), values.image_dir.rstrip("/") or values.image_dir, values.source_split, split, shares)
    if shares and split not in dict(shares):
        raise UsageError(f"--split_by={values.split_by} has no share for split {split!r}; add one")
    config = config_from_flags()
    manifest = read_manifest(output)
    if manifest is not None:
        check_joins(manifest, config, output)
    class_file = parse_class_file(beam_storage.read_text(values.classes), values.classes) if values.classes else ()
    return PrepareJob(
        input_format=input_format,
        source=source,
        split=split,
        output=output,
        shards=values.shards,
        rules=_class_rules(class_file, manifest, split, output),
        max_rejected_fraction=values.max_rejected_fraction,
        config=config,
        class_file=class_file,
        resume=values.resume,
        workers=values.workers,
    )


def check_joins(manifest: Manifest, config: Config, output: str) -> None:
    """Refuses to lay a split beside others that were prepared for other targets.

    Raises:
      DataError: naming what differs.
    """
    wanted = target_spec(config.anchors, config.matching, config.model.input_size)
    differing = [name for name in wanted if wanted[name] != manifest.spec()[name]]
    if differing:
        raise DataError(
            f"{beam_storage.join(output, MANIFEST_NAME)} holds splits prepared with another {' and '.join(differing)} "
            "than this config's; choose another --output, or remove that folder and prepare every split again"
        )


def claim_output(job: PrepareJob) -> None:
    """Notes what the split's folder is made from, or refuses one that holds shards made from something else.

    Raises:
      DataError: naming what differs.
    """
    folder = beam_storage.join(job.output, job.split)
    path = beam_storage.join(folder, PARTS_FOLDER, "job.json")
    wanted = describe_job(job)
    # A run that failed before its first shard, say for a mistyped flag, binds nobody.
    if beam_storage.exists(path) and beam_storage.match_below(folder, PARTS_FOLDER, "*-of-*.json"):
        try:
            begun = dict(json.loads(beam_storage.read_text(path)))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path} is damaged ({error}): remove {folder} and prepare that split again") from None
        differing = sorted(name for name in {*wanted, *begun} if wanted.get(name) != begun.get(name))
        if differing:
            # What was named then and now says more than what came with it, as the windows do with a second view.
            name = next((name for name in differing if name in wanted and name in begun), differing[0])
            raise DataError(
                f"{folder} was begun with other flags ({', '.join(differing)}; {name} was "
                f"{begun.get(name)}, is {wanted.get(name)}): choose another --output, or remove that folder"
            )
    if not job.resume:
        # Else this run, if it is stopped, would go on with what an earlier one left: the images may be others.
        beam_storage.delete_files(beam_storage.match_below(folder, PARTS_FOLDER, "*-of-*.json"))
    beam_storage.write_bytes(path, json.dumps(wanted, indent=1).encode())


def describe_job(job: PrepareJob) -> dict[str, Any]:
    """All that decides the output of a job, as plain data under the names of its flags and config sections."""
    config = job.config
    preparation = Preparation.of(config, job.split)
    return {
        "input_format": job.input_format,
        "input": list(job.source.inputs),
        "image_dir": job.source.image_dir,
        "source_split": job.source.split or job.split,
        "split_by": [list(share) for share in job.source.split_by],
        "shards": job.shards,
        "classes": list(job.class_file),
        "include_classes": list(job.rules.include),
        "exclude_classes": list(job.rules.exclude),
        "model.input_size": preparation.size,
        "data.jpeg_quality": preparation.jpeg_quality,
        "data.views": preparation.views,
        **(_describe_windows(preparation) if preparation.views > 1 else {}),
        "anchors": config.anchors.model_dump(mode="json"),
        "matching": config.matching.model_dump(mode="json"),
    }


def _describe_windows(preparation: Preparation) -> dict[str, Any]:
    augmentation = preparation.augmentation
    return {
        "train.seed": preparation.seed,
        "data.augmentation.largest_expansion": augmentation.largest_expansion,
        "data.augmentation.smallest_crop": augmentation.smallest_crop,
    }


def _class_rules(class_file: tuple[str, ...], manifest: Manifest | None, split: str, output: str) -> ClassRules:
    """The rules that the flags give; a manifest of other splits than this one fixes the classes and their order.

    Raises:
      DataError: if `--classes` gives another order than the manifest.
    """
    values = flags.FLAGS
    fixed = class_file
    if manifest is not None and {*manifest.splits} - {split}:
        path = beam_storage.join(output, MANIFEST_NAME)
        if class_file and class_file != manifest.classes:
            raise DataError(
                f"--classes={values.classes} differs from the classes of {path} ({', '.join(manifest.classes)}); "
                "leave the flag out, or choose another --output"
            )
        fixed = manifest.classes
    return ClassRules(fixed, tuple(values.include_classes), tuple(values.exclude_classes))
