"""Recognises the format and the splits of a labelled folder, and plans which split is written under which name.

folder -> the first format in the order of `FORMATS` that finds its files -> splits of the source -> splits to write
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines import beam_storage
from pipelines.readers import coco, csv, tfrecord, voc, yolo
from pipelines.readers.folder import list_folder
from pipelines.readers.read_annotations import ReadAnnotations
from pipelines.readers.sources import Source, require_input
from pipelines.readers.splits import WHOLE, Found, output_split
from ssd_dist.core.errors import DataError

AUTO = "auto"
# Shares of a source without splits. A source with a training split but no validation split gives the second share of
# its training split to validation.
DEFAULT_SHARES = (("train", 0.8), ("val", 0.2))
EXAMPLES = 8


@dataclass(frozen=True)
class Format:
    """One value of `--input_format`.

    Attributes:
      find: recognises the format in an input (a folder, a file or a pattern), given `--image_dir`; None if the input
        is not in this format.
      read: returns the transform that reads one split.
      files: the files by which the format is recognised, for messages.
    """

    find: Callable[[str, str], Found[Any] | None]
    read: Callable[[Source], ReadAnnotations]
    files: str


# In the order in which they are tried. Formats whose files cannot be confused with others come first; a folder that
# contains several formats, such as VOC files beside CSV files, is read as the first of them.
FORMATS: Mapping[str, Format] = {
    "coco": Format(coco.find_splits, coco.read_coco, "a JSON file with images, annotations and categories"),
    "yolo": Format(yolo.find_splits, yolo.read_yolo, "a YAML file with names: and one text file per image"),
    "voc": Format(voc.find_splits, voc.read_voc, "one XML file with <annotation> per image"),
    "csv": Format(csv.find_splits, csv.read_csv, "a CSV file with file names, classes and corners"),
    "tfrecord": Format(tfrecord.find_splits, tfrecord.read_tfrecord, "*.tfrecord or *.record files"),
}


@dataclass(frozen=True)
class SplitPlan:
    """One split to write.

    Attributes:
      name: its name in the output.
      source_split: its name in the source; empty for a source without splits.
      shares: the shares by which the split of the source is divided; empty to read all of it.
    """

    name: str
    source_split: str
    shares: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Detected:
    """The format of an input and what it contains."""

    input_format: str
    found: Found[Any]
    others: tuple[str, ...] = ()


def detect_format(inputs: Sequence[str], image_dir: str, input_format: str = AUTO) -> Detected:
    """Returns the format of the inputs, the first one that recognises all of them, and what they contain together.

    Args:
      inputs: folders, files or patterns.
      image_dir: value of `--image_dir`.
      input_format: key of `FORMATS` to search for that format only, or `AUTO`.

    Raises:
      DataError: if an input does not exist or no format recognises it; the message lists what the folder contains.
    """
    for path in inputs:
        if not beam_storage.is_pattern(path):
            require_input(path)
    names = list(FORMATS) if input_format == AUTO else [input_format]
    found = {name: [FORMATS[name].find(path, image_dir) for path in inputs] for name in names}
    matches = {name: results for name, own in found.items() if len(results := [r for r in own if r]) == len(inputs)}
    if not matches:
        unknown = next((path for row, path in enumerate(inputs) if not any(own[row] for own in found.values())), "")
        if unknown:
            raise DataError(_describe_unknown(unknown, names))
        raise DataError(f"--input: {' and '.join(inputs)} have different formats; prepare them separately")
    name, *others = matches
    return Detected(name, _merge(matches[name]), tuple(others))


def _merge(found: list[Found[Any]]) -> Found[Any]:
    """Returns the splits of several inputs as one dataset."""
    first = found[0]
    names = dict.fromkeys(name for one in found for name in one.splits)
    counted = [name for name in names if all(name in one.images for one in found if name in one.splits)]
    return Found(
        tool=first.tool,
        splits={name: tuple(layout for one in found for layout in one.splits.get(name, ())) for name in names},
        images={name: sum(one.images.get(name, 0) for one in found) for name in counted},
        unions=frozenset(name for one in found for name in one.unions),
        notes=tuple(note for one in found for note in one.notes),
    )


def plan_splits(found: Found[Any], is_divided: bool = True) -> list[SplitPlan]:
    """Returns the splits to write if the flags name none.

    Every split of the source is written, `valid`, `validation` and `val2017` as `val`. A split that consists of other
    splits is omitted. A source without a validation split gives a share of its training split to validation, and a
    source without splits is divided, both by a hash of the image id, unless `is_divided` is false.
    """
    if not found.names:
        if not is_divided:
            return [SplitPlan("train", WHOLE)]
        return [SplitPlan(name, WHOLE, DEFAULT_SHARES) for name, _ in DEFAULT_SHARES]
    outputs = [output_split(name) for name in found.names]
    plans = [
        # Two splits of the source with the same name in the output, such as train2014 and train2017, keep their names.
        SplitPlan(output if outputs.count(output) == 1 else name, name)
        for name, output in zip(found.names, outputs, strict=True)
    ]
    train = next((plan for plan in plans if plan.name == "train"), None)
    if not is_divided or train is None or any(plan.name == "val" for plan in plans):
        return plans
    shared = [SplitPlan(name, train.source_split, DEFAULT_SHARES) for name, _ in DEFAULT_SHARES]
    return [*shared, *(plan for plan in plans if plan is not train)]


def describe_plan(detected: Detected, plans: Sequence[SplitPlan]) -> list[str]:
    """Returns what was recognised and what will be written, as lines to print."""
    found = detected.found
    counts = [f"{name} {found.images[name]}" if name in found.images else name for name in found.names]
    whole = f"{found.images[WHOLE]} images" if WHOLE in found.images else "no splits"
    lines = [f"recognised {found.tool}: {', '.join(counts) + ' images' if counts else whole}"]
    if detected.others:
        lines.append(f"the folder also fits {', '.join(detected.others)}; --input_format selects one of them")
    lines += found.notes
    if found.unions:
        names = ", ".join(sorted(found.unions))
        lines.append(f"omitted, because they repeat images of other splits (--split selects them): {names:.200}")
    shared = [plan for plan in plans if plan.shares]
    if shared:
        source = f"split {shared[0].source_split} of the source" if shared[0].source_split else "the source"
        shares = ",".join(f"{name}:{share:g}" for name, share in shared[0].shares)
        reason = "has no validation split" if shared[0].source_split else "has no splits"
        lines.append(
            f"{source} is divided by {shares}, because the dataset {reason}; --split_by=none switches this off"
        )
    lines += [
        f"split {plan.source_split} of the source is written as {plan.name}"
        for plan in plans
        if plan.source_split not in ("", plan.name) and not plan.shares
    ]
    return lines


def _describe_unknown(path: str, formats: Sequence[str]) -> str:
    """Returns the message for an input in none of the formats: what it contains and what was searched for."""
    wanted = "; ".join(f"{name}: {FORMATS[name].files}" for name in formats)
    if beam_storage.is_pattern(path) or beam_storage.is_file(path):
        return f"--input={path}: the format was not recognised; searched for {wanted}; set --input_format"
    names = list_folder(path).names
    kinds: dict[str, int] = {}
    for name in names:
        suffix = f".{name.rpartition('.')[2]}" if "." in name.rpartition("/")[2] else "(no suffix)"
        kinds[suffix] = kinds.get(suffix, 0) + 1
    listed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(kinds.items(), key=lambda kind: -kind[1])[:8])
    examples = ", ".join(names[:EXAMPLES])
    return (
        f"--input={path}: no annotations were recognised; the folder contains {listed or 'no files'} "
        f"({examples:.300}); searched for {wanted}; pass the folder of the annotations as --input"
    )
