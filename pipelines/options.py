"""Defines the flags of prepare, builds the job from them, and checks that it fits the output folder."""

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
from pipelines.manifest_writer import read_manifest
from pipelines.readers.coco import read_coco
from pipelines.readers.csv import read_csv
from pipelines.readers.sources import Source, parse_split_by
from pipelines.readers.tfrecord import read_tfrecord
from pipelines.readers.voc import read_voc
from pipelines.readers.yolo import read_yolo
from pipelines.split_folder import PARTS_FOLDER
from ssd_dist.core.commands import config_from_flags, define_config_flags, required_flag
from ssd_dist.core.config import Config
from ssd_dist.core.errors import DataError, UsageError
from ssd_dist.core.manifest import MANIFEST_NAME, Manifest, target_spec
from ssd_dist.core.storage import join

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
      source: the annotations and images to read.
      split: name of the split in the output.
      output: folder of the manifest.
      shards: number of shards; 0 chooses it automatically.
      rules: the classes to use and their order.
      max_rejected_fraction: the job fails if a larger fraction of the images or of the boxes is rejected.
      config: the experiment configuration.
      class_file: class names in the file of `--classes`; empty without that flag.
      resume: whether finished shards of an earlier run are kept.
      workers: number of worker processes; 0 uses the default of the runner.
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
    flags.DEFINE_multi_string("input", [], "Folder, file or pattern of the annotations; repeat the flag for several.")
    flags.DEFINE_string("image_dir", "", "Folder of the images; by default the folder that the format defines.")
    flags.DEFINE_string("split", None, "Name of the split in the output, for example train.")
    flags.DEFINE_string(
        "source_split", "", "Name of the split in the source; by default that of --split, or all data with --split_by."
    )
    flags.DEFINE_string(
        "split_by", "", "Divides the source by a hash of the image id, e.g. train:0.8,val:0.1,test:0.1."
    )
    flags.DEFINE_string("output", None, "Folder for the shards and dataset.json.")
    flags.DEFINE_integer("shards", 0, "Number of shards; 0 derives it from the number of images.", lower_bound=0)
    flags.DEFINE_string("classes", "", "File with one class name per line; fixes the classes and their order.")
    flags.DEFINE_list("include_classes", [], "Names of the classes to keep; by default all.")
    flags.DEFINE_list("exclude_classes", [], "Names of the classes to omit.")
    flags.DEFINE_float(
        "max_rejected_fraction", 1.0, "Fails if a larger fraction of the images or boxes is rejected.", 0.0, 1.0
    )
    flags.DEFINE_integer("workers", 0, "Number of worker processes; 0 uses the default of the runner.", lower_bound=0)
    flags.DEFINE_bool("resume", False, "Keeps the finished shards of an interrupted run with the same flags.")
    define_config_flags()


def job_from_flags() -> PrepareJob:
    """Returns the job that the flags describe.

    Raises:
      UsageError: if a flag is missing or has an invalid value.
      DataError: if the output contains splits with other settings.
    """
    values = flags.FLAGS
    if not values.input:
        raise UsageError(f"--input is missing: {values['input'].help}")
    split = required_flag("split")
    if not re.fullmatch(r"\w[\w .-]*", split) or split == MANIFEST_NAME:
        raise UsageError(f"--split={split}: expected a plain name, for example train")
    input_format = required_flag("input_format")
    output = required_flag("output").rstrip("/") or "/"
    for path in (*values.input, values.image_dir, values.classes, output):
        beam_storage.check_scheme(path)
    places = [posixpath.normpath(path) for path in values.input]
    for index, place in enumerate(places):
        if place in places[:index]:
            raise UsageError(f"--input={values.input[index]} is given twice; pass each input once")
    if math.isnan(values.max_rejected_fraction):
        raise UsageError("--max_rejected_fraction=nan: expected a number from 0 to 1")
    shares = parse_split_by(values.split_by)
    # Shells append a slash when they complete the name of a folder.
    inputs = [path if beam_storage.is_pattern(path) else path.rstrip("/") or "/" for path in values.input]
    source = Source(tuple(inputs), values.image_dir.rstrip("/") or values.image_dir, values.source_split, split, shares)
    if shares and split not in dict(shares):
        raise UsageError(f"--split_by={values.split_by}: no share for --split={split}; add it")
    config = config_from_flags()
    manifest = read_manifest(output)
    if manifest is not None:
        check_compatible(manifest, config, output)
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


def check_compatible(manifest: Manifest, config: Config, output: str) -> None:
    """Checks that the splits of the manifest were prepared with the anchors, matching and input size of the config.

    Raises:
      DataError: if a setting differs.
    """
    wanted = target_spec(config.anchors, config.matching, config.model.input_size)
    differing = [name for name in wanted if wanted[name] != manifest.spec()[name]]
    if differing:
        raise DataError(
            f"{join(output, MANIFEST_NAME)}: {' and '.join(differing)} of its splits "
            "differ from this config; choose another --output, or remove that folder and prepare every split again"
        )


def record_job(job: PrepareJob) -> None:
    """Writes the settings of the job to the split's folder, after comparing them with those of its finished shards.

    Deletes the reports of finished shards unless the job resumes, so that a later `--resume` does not use them: the
    images may have changed.

    Raises:
      DataError: if the folder contains shards that were made with other settings.
    """
    folder = join(job.output, job.split)
    path = join(folder, PARTS_FOLDER, "job.json")
    wanted = describe_job(job)
    # The settings of a run that failed before its first shard, for example because of a typing error, are ignored.
    if beam_storage.exists(path) and beam_storage.match_below(folder, PARTS_FOLDER, "*-of-*.json"):
        try:
            previous = dict(json.loads(beam_storage.read_text(path)))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}: damaged ({error}); remove {folder} and prepare that split again") from None
        differing = sorted(name for name in {*wanted, *previous} if wanted.get(name) != previous.get(name))
        if differing:
            # Shows a setting that both jobs have: with `data.views` above 1 come settings that the other job lacks.
            name = next((name for name in differing if name in wanted and name in previous), differing[0])
            raise DataError(
                f"{folder}: the shards were prepared with other settings ({', '.join(differing)}; {name} was "
                f"{previous.get(name)}, is {wanted.get(name)}); choose another --output, or remove that folder"
            )
    if not job.resume:
        beam_storage.delete_files(beam_storage.match_below(folder, PARTS_FOLDER, "*-of-*.json"))
    beam_storage.write_bytes(path, json.dumps(wanted, indent=1).encode())


def describe_job(job: PrepareJob) -> dict[str, Any]:
    """Returns everything that the output of a job depends on, keyed by the names of flags and config keys."""
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
        **(_describe_crops(preparation) if preparation.views > 1 else {}),
        "anchors": config.anchors.model_dump(mode="json"),
        "matching": config.matching.model_dump(mode="json"),
    }


def _describe_crops(preparation: Preparation) -> dict[str, Any]:
    augmentation = preparation.augmentation
    return {
        "train.seed": preparation.seed,
        "data.augmentation.largest_expansion": augmentation.largest_expansion,
        "data.augmentation.smallest_crop": augmentation.smallest_crop,
    }


def _class_rules(class_file: tuple[str, ...], manifest: Manifest | None, split: str, output: str) -> ClassRules:
    """Returns the class rules of the flags, with the classes of the manifest fixed if it contains other splits.

    Raises:
      DataError: if `--classes` has other classes or another order than the manifest.
    """
    values = flags.FLAGS
    fixed = class_file
    if manifest is not None and {*manifest.splits} - {split}:
        path = join(output, MANIFEST_NAME)
        if class_file and class_file != manifest.classes:
            raise DataError(
                f"--classes={values.classes}: the classes differ from those of {path} ({', '.join(manifest.classes)}); "
                "omit the flag, or choose another --output"
            )
        fixed = manifest.classes
    return ClassRules(fixed, tuple(values.include_classes), tuple(values.exclude_classes))
