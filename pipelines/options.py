"""Builds the job from the flags of prepare, and checks that it fits the output folder."""

import json
import math
import os
import posixpath
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from absl import flags  # type: ignore[import-untyped]

from pipelines import beam_storage
from pipelines.classes import ClassRules, parse_class_file
from pipelines.detection import Detected, describe_plan, detect_format, plan_inputs
from pipelines.flags import AUTO
from pipelines.image_preparation import Preparation
from pipelines.manifest_writer import read_manifest
from pipelines.readers.sources import Source, parse_split_by
from pipelines.split_folder import PARTS_FOLDER
from pipelines.split_plans import SplitPlan
from ssd_dist.core.commands import config_from_flags, required_flag
from ssd_dist.core.config import Config
from ssd_dist.core.errors import DataError, UsageError
from ssd_dist.core.manifest import MANIFEST_NAME, Manifest, is_split_name, target_spec
from ssd_dist.core.printable import print_line
from ssd_dist.core.storage import is_remote, join

NO_DIVISION = "none"
# Without the wildcards of patterns.
SPLIT_NAME = re.compile(r"\w[^*?\[:]*")
# The settings that the shards of a split were made with.
SETTINGS_NAME = "job.json"


@dataclass(frozen=True)
class PrepareJob:
    """One run of prepare.

    Attributes:
      input_format: key of `FORMATS`.
      sources: the annotations and images of each split to write.
      output: folder of the manifest.
      shards: number of shards of each split; 0 chooses it automatically.
      rules: the classes to use and their order.
      max_rejected_fraction: the job fails if a larger fraction of the images or of the boxes of a split is rejected.
      config: the experiment configuration.
      class_file: class names in the file of `--classes`; empty without that flag.
      resume: whether finished shards of an earlier run are kept.
      workers: number of worker processes; 0 uses the default of the runner.
      optional: names of splits that are omitted if they contain no usable image.
      writes_all_splits: whether the job writes every split of the source.
      job_id: identifies this run among runs that write the same splits; empty for a job that is only submitted.
    """

    input_format: str
    sources: tuple[Source, ...]
    output: str
    shards: int
    rules: ClassRules
    max_rejected_fraction: float
    config: Config
    class_file: tuple[str, ...] = ()
    resume: bool = False
    workers: int = 0
    optional: frozenset[str] = frozenset()
    writes_all_splits: bool = False
    job_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits in the output."""
        return tuple(source.output_split for source in self.sources)


def job_from_flags() -> PrepareJob:
    """Returns the job that the flags describe, and prints what was recognized in the source.

    Raises:
      UsageError: if a flag is missing or has an invalid value.
      DataError: if the source is missing or not recognized, or the output is a file or contains splits with other
        settings.
    """
    values = flags.FLAGS
    if not values.input:
        raise UsageError(f"--input is missing: {values['input'].help}")
    output = required_flag("output").rstrip("/") or "/"
    for path in (*values.input, values.image_dir, values.classes, values.survey, output):
        beam_storage.check_scheme(path)
    if os.path.isdir(values.survey):
        raise UsageError(f"--survey={values.survey} is a folder; give the name of a JSON file")
    require_folder(output)
    places = [posixpath.normpath(path) for path in values.input]
    for index, place in enumerate(places):
        if place in places[:index]:
            raise UsageError(f"--input={values.input[index]} is given twice; pass each input once")
    if math.isnan(values.max_rejected_fraction):
        raise UsageError("--max_rejected_fraction=nan: expected a number from 0 to 1")
    config = config_from_flags(is_required=False)
    inputs = tuple(map(_normalize_input, values.input))
    image_dir = values.image_dir.rstrip("/") or values.image_dir
    detected = detect_format(inputs, image_dir, values.input_format)
    roots = [root if is_remote(root) else os.path.realpath(root) for root in detected.roots]
    for index, root in enumerate(roots):
        if root in roots[:index]:
            raise UsageError(
                f"--input={inputs[roots.index(root)]} and --input={inputs[index]} are the same dataset; pass it once"
            )
    plans = _plan_from_flags(detected)
    for plan in plans:
        if not (SPLIT_NAME.fullmatch(plan.name) and is_split_name(plan.name)) or plan.name == MANIFEST_NAME:
            is_given = values.split or values.split_by not in ("", NO_DIVISION)
            fix = "" if is_given else f"; rename it with --split=NAME --source_split={plan.name}"
            raise UsageError(f"--split={plan.name}: expected a plain name, for example train{fix}")
    manifest = read_manifest(output)
    if manifest is not None:
        check_compatible(manifest, config, output)
    class_file = parse_class_file(beam_storage.read_text(values.classes), values.classes) if values.classes else ()
    return PrepareJob(
        input_format=detected.input_format,
        sources=tuple(detected.make_source(plan, image_dir) for plan in plans),
        output=output,
        shards=values.shards,
        rules=_class_rules(class_file, manifest, [plan.name for plan in plans], output),
        max_rejected_fraction=values.max_rejected_fraction,
        config=config,
        class_file=class_file,
        resume=values.resume,
        workers=values.workers,
        optional=frozenset(plan.name for plan in plans if plan.is_optional),
        writes_all_splits=not values.split,
    )


def _normalize_input(path: str) -> str:
    """Returns an input in the form in which its files are listed."""
    if beam_storage.is_pattern(path):
        return path if "/" in path else f"./{path}"
    # Shells append a slash when they complete the name of a folder.
    return path.rstrip("/") or "/"


def require_folder(output: str) -> None:
    """Checks that the output and the folders above it are not files.

    Raises:
      DataError: if one of them is a file.
    """
    path = output
    while path and not is_remote(path):
        if beam_storage.is_file(path):
            raise DataError(
                f"--output={output}: {path} is a file, not a folder; give a folder, which prepare creates if needed"
            )
        path = path.rpartition("/")[0]


def _plan_from_flags(detected: Detected) -> list[SplitPlan]:
    """Returns the splits to write, and prints what was recognized unless the flags describe everything.

    Raises:
      UsageError: if flags contradict each other.
    """
    values = flags.FLAGS
    divides = values.split_by not in ("", NO_DIVISION)
    shares = parse_split_by(values.split_by) if divides else ()
    if shares and values.split and values.split not in dict(shares):
        raise UsageError(f"--split_by={values.split_by}: no share for --split={values.split}; add it")
    if values.source_split and not values.split and not shares:
        raise UsageError(f"--source_split={values.source_split} needs --split, the name of the split in the output")
    if values.split:
        plans = [SplitPlan(values.split, values.source_split, shares)]
    else:
        plans = [SplitPlan(name, values.source_split, shares) for name, _ in shares]
    if values.input_format == AUTO or not plans:
        plans = plans or plan_inputs(detected, is_divided=values.split_by != NO_DIVISION)
        lines = describe_plan(detected, plans)
    else:
        lines = [f"note: {note}" for note in detected.found.notes]
    for line in lines:
        print_line(line)
    return plans


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
    """Writes the settings of the job to the folder of each split, after comparing them with its finished shards.

    Deletes the reports of finished shards unless the job resumes, so that a later `--resume` does not use them: the
    images may have changed.

    Raises:
      DataError: if a folder contains shards that were made with other settings.
    """
    # A job that is refused must not change any split.
    for source in job.sources:
        _check_settings(job, source)
    for source in job.sources:
        folder = join(job.output, source.output_split)
        if not job.resume:
            beam_storage.delete_files(beam_storage.match_below(folder, PARTS_FOLDER, "*-of-*.json"))
        settings = json.dumps(describe_job(job, source), indent=1)
        beam_storage.write_bytes(join(folder, PARTS_FOLDER, SETTINGS_NAME), settings.encode())


def _check_settings(job: PrepareJob, source: Source) -> None:
    """Compares the settings of the job with those of the finished shards of a split."""
    folder = join(job.output, source.output_split)
    path = join(folder, PARTS_FOLDER, SETTINGS_NAME)
    wanted = describe_job(job, source)
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


def describe_job(job: PrepareJob, source: Source) -> dict[str, Any]:
    """Returns everything that the output of a split depends on, keyed by the names of flags and config keys."""
    config = job.config
    preparation = Preparation.of(config, source.output_split)
    return {
        "input_format": job.input_format,
        "input": list(source.inputs),
        "image_dir": source.image_dir,
        "source_split": source.split or source.output_split,
        "split_by": [list(share) for share in source.split_by],
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


def _class_rules(
    class_file: tuple[str, ...], manifest: Manifest | None, splits: Sequence[str], output: str
) -> ClassRules:
    """Returns the class rules of the flags, with the classes of the manifest fixed if it contains other splits.

    Raises:
      DataError: if `--classes` has other classes or another order than the manifest.
    """
    values = flags.FLAGS
    fixed = class_file
    if manifest is not None and {*manifest.splits} - {*splits}:
        path = join(output, MANIFEST_NAME)
        if class_file and class_file != manifest.classes:
            raise DataError(
                f"--classes={values.classes}: the classes differ from those of {path} ({', '.join(manifest.classes)}); "
                "omit the flag, or choose another --output"
            )
        fixed = manifest.classes
    return ClassRules(fixed, tuple(values.include_classes), tuple(values.exclude_classes))
