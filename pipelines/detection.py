"""Recognizes the format and the splits of a labeled folder, and plans which split is written under which name.

folder -> the first format in the order of `FORMATS` that finds its files -> splits of the source -> splits to write
"""

import posixpath
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pipelines import beam_storage
from pipelines.flags import AUTO
from pipelines.readers import coco, coco_layout, csv, tfrecord, tfrecord_layout, voc, voc_layout, yolo, yolo_search
from pipelines.readers.folder import cached_listings, is_image, list_folder
from pipelines.readers.read_annotations import ReadAnnotations
from pipelines.readers.sources import Source, require_input
from pipelines.readers.splits import WHOLE, Found, group_by_output
from pipelines.readers.tool_files import ToolFormat, explain_unsupported
from pipelines.readers.tool_format import count_annotated, read_tool_format
from pipelines.readers.tool_formats import TOOL_FORMATS, UNSUPPORTED
from pipelines.readers.tool_layout import find_splits
from pipelines.split_plans import SplitPlan, plan_splits
from ssd_dist.core.errors import DataError

EXAMPLES = 8
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
CONVERT = (
    "convert the annotations to COCO with datumaro or FiftyOne "
    "(docs/your_own_data.md#1-check-that-your-labels-are-recognized)"
)


@dataclass(frozen=True)
class Format:
    """One value of `--input_format`.

    Attributes:
      find: recognizes the format in an input (a folder, a file or a pattern), given `--image_dir`; None if the input
        is not in this format.
      read: returns the transform that reads one split.
      count: returns how many images the annotations describe, of an input in the format.
      files: the files by which the format is recognized, for messages.
    """

    find: Callable[[str, str], Found[Any] | None]
    read: Callable[[Source], ReadAnnotations]
    count: Callable[[Found[Any]], int]
    files: str


def _make_format(tool_format: ToolFormat) -> Format:
    return Format(
        partial(find_splits, tool_format=tool_format),
        partial(read_tool_format, tool_format=tool_format),
        partial(count_annotated, tool_format=tool_format),
        f"{tool_format.title}, *{tool_format.suffix}",
    )


# In the order in which they are tried. Formats whose files cannot be confused with others come first. A folder that
# contains several formats, such as VOC files beside CSV files, is read as the first of them that describes more than
# half as many images as any other; so a single file of another tool is not taken for the annotations.
FORMATS: Mapping[str, Format] = {
    **{name: _make_format(tool_format) for name, tool_format in TOOL_FORMATS.items()},
    "coco": Format(
        coco_layout.find_splits,
        coco.read_coco,
        coco_layout.count_annotated,
        "a JSON file with images, annotations and categories",
    ),
    "yolo": Format(
        yolo.find_splits, yolo.read_yolo, yolo.count_annotated, "a YAML file with names: and one text file per image"
    ),
    "voc": Format(
        voc_layout.find_splits, voc.read_voc, voc_layout.count_annotated, "one XML file with <annotation> per image"
    ),
    "csv": Format(
        csv.find_splits, csv.read_csv, csv.count_annotated, "a CSV file with file names, classes and corners"
    ),
    "tfrecord": Format(
        tfrecord_layout.find_splits,
        tfrecord.read_tfrecord,
        tfrecord_layout.count_annotated,
        "*.tfrecord or *.record files",
    ),
}


@dataclass(frozen=True)
class Detected:
    """What the inputs contain.

    Attributes:
      input_format: key of `FORMATS`.
      roots: the folder, file or pattern of the dataset of each input, at or below the input.
      found: the splits of all inputs together.
      others: the other formats that recognize the inputs.
      splits_by_root: the splits in the output of each of several inputs; empty for a single input.
    """

    input_format: str
    roots: tuple[str, ...]
    found: Found[Any]
    others: tuple[str, ...] = ()
    splits_by_root: tuple[frozenset[str], ...] = ()

    def make_source(self, plan: SplitPlan, image_dir: str) -> Source:
        """Returns the split of a plan in the inputs that contain it."""
        roots = self.roots
        if plan.reads_all_names and plan.source_split != WHOLE and self.splits_by_root:
            by_root = zip(roots, self.splits_by_root, strict=True)
            roots = tuple(root for root, names in by_root if plan.source_split in names)
        return Source(roots, image_dir, plan.source_split, plan.name, plan.shares, plan.reads_all_names, self.roots)


def detect_format(inputs: Sequence[str], image_dir: str, input_format: str = AUTO) -> Detected:
    """Returns the format of the inputs and what they contain together.

    Of several formats that recognize all inputs, the first one that describes enough images is chosen, see `FORMATS`.

    Args:
      inputs: folders, files or patterns.
      image_dir: value of `--image_dir`.
      input_format: key of `FORMATS` to search for that format only, or `AUTO`.

    Raises:
      DataError: if an input does not exist or no format recognizes it; the message lists what the folder contains.
    """
    for path in inputs:
        if not beam_storage.is_pattern(path):
            require_input(path)
    with cached_listings():
        own = {path: _recognize(path, image_dir, input_format) for path in inputs}
        outside = [_note_images_outside(root, found) for root, found in own.values()]
    unknown = next((path for path in inputs if not own[path][1]), "")
    if unknown:
        raise DataError(_describe_unknown(unknown, image_dir, input_format))
    roots = tuple(root for root, _ in own.values())
    common = [name for name in FORMATS if all(name in found for _, found in own.values())]
    if not common:
        formats = " and ".join(f"{path} is {'/'.join(found)}" for path, (_, found) in own.items())
        raise DataError(f"--input: {formats}; all inputs must have one format: convert some of them")
    name, reason = _choose_format({name: [found[name] for _, found in own.values()] for name in common})
    merged, splits_by_root = _merge({root: found[name] for root, found in own.values()})
    notes = tuple(dict.fromkeys((*reason, *merged.notes, *(note[name] for note in outside if name in note))))
    return Detected(
        name, roots, replace(merged, notes=notes), tuple(other for other in common if other != name), splits_by_root
    )


def _choose_format(found_by_name: Mapping[str, Sequence[Found[Any]]]) -> tuple[str, tuple[str, ...]]:
    """Returns the format to read, of those that recognize the inputs, and a note if it is not the first one."""
    first = next(iter(found_by_name))
    if len(found_by_name) == 1:
        return first, ()
    counts = {name: sum(map(FORMATS[name].count, found)) for name, found in found_by_name.items()}
    name = next((name for name, count in counts.items() if 2 * count > max(counts.values())), first)
    if name == first:
        return name, ()
    few = ", ".join(f"{other} {count}" for other, count in counts.items() if 2 * count <= max(counts.values()))
    return name, (f"{name} is read because it describes {counts[name]} images, and {few}",)


def _note_images_outside(root: str, found: Mapping[str, Found[Any]]) -> dict[str, str]:
    """Returns for each format a note if the folder contains more images than the splits that it found."""
    if beam_storage.is_pattern(root) or beam_storage.is_file(root):
        return {}
    total = list_folder(root).count_images("")
    notes = {}
    for name, result in found.items():
        names = result.names or [WHOLE]
        counted = sum(result.images.get(split, total) for split in names)
        if counted < total:
            notes[name] = (
                f"{total - counted} of {total} image files in {root} are in none of these splits, and are not read"
            )
    return notes


def _recognize(path: str, image_dir: str, input_format: str) -> tuple[str, dict[str, Found[Any]]]:
    """Returns the folder of the dataset, at or below the input, and what each format found there."""
    root = path
    while True:
        names = list(FORMATS) if input_format == AUTO else [input_format]
        found = _find_in_formats(root, image_dir, names)
        inner = "" if found or beam_storage.is_pattern(root) or beam_storage.is_file(root) else _only_folder(root)
        if not inner:
            return root if found else path, found
        # Archives and repositories often have a folder around the dataset.
        root = inner


def _find_in_formats(root: str, image_dir: str, names: Sequence[str]) -> dict[str, Found[Any]]:
    """Returns what each format found in a folder, a file or a pattern.

    Raises:
      DataError: if a dataset in one of the formats is not usable, and no other one describes most of the images.
    """
    found: dict[str, Found[Any]] = {}
    errors: dict[str, DataError] = {}
    for name in names:
        try:
            result = FORMATS[name].find(root, image_dir)
        except DataError as failure:
            errors[name] = failure
        else:
            found |= {name: result} if result is not None else {}
    if not errors:
        return found
    first = next(iter(errors.values()))
    if beam_storage.is_pattern(root) or beam_storage.is_file(root):
        raise first
    images = list_folder(image_dir or root).count_images("")
    others = {name: one for name, one in found.items() if 2 * FORMATS[name].count(one) >= images}
    if not others:
        raise first
    notes = [f"not read as {name}: {error}" for name, error in errors.items()]
    return {name: replace(one, notes=(*one.notes, *notes)) for name, one in others.items()}


def _only_folder(path: str) -> str:
    """Returns the only folder with images in a folder; empty if there are several or none."""
    folder = list_folder(path)
    names = {name.split("/")[0] for name in folder.names if "/" in name and is_image(name)}
    return folder.join(names.pop()) if len(names) == 1 else ""


def _merge(found_by_root: Mapping[str, Found[Any]]) -> tuple[Found[Any], tuple[frozenset[str], ...]]:
    """Returns the splits of several inputs as one dataset, by their names in the output, and those of each input.

    The images of an input without splits are training images if another input has splits.
    """
    first, *more = found_by_root.values()
    if not more:
        return first, ()
    has_splits = any(one.names for one in found_by_root.values())
    notes = [
        f"{root} has no splits, so its images belong to the split train"
        for root, one in found_by_root.items()
        if has_splits and not one.names
    ]
    found = [_rename(one, has_splits) for one in found_by_root.values()]
    names = dict.fromkeys(name for one in found for name in one.splits)
    counted = [name for name in names if all(name in one.images for one in found if name in one.splits)]
    merged = Found(
        tool=first.tool,
        splits={name: tuple(layout for one in found for layout in one.splits.get(name, ())) for name in names},
        images={name: sum(one.images.get(name, 0) for one in found) for name in counted},
        unions=frozenset(name for one in found for name in one.unions),
        notes=(*notes, *(note for one in found for note in one.notes)),
    )
    return merged, tuple(frozenset(one.splits) for one in found)


def _rename(found: Found[Any], has_splits: bool) -> Found[Any]:
    """Returns the splits of one of several inputs by their names in the output."""
    groups = group_by_output(found.names)
    if has_splits and not groups:
        groups = {"train": [WHOLE]}
    others = [name for name in found.splits if name in (WHOLE, *found.unions)]
    groups |= {name: [name] for name in others}
    return replace(
        found,
        splits={name: tuple(layout for own in group for layout in found.splits[own]) for name, group in groups.items()},
        images={
            name: sum(found.images[own] for own in group)
            for name, group in groups.items()
            if all(own in found.images for own in group)
        },
    )


def plan_inputs(detected: Detected, is_divided: bool) -> list[SplitPlan]:
    """Returns the splits to write if the flags name none; in several inputs, a split may have different names."""
    plans = plan_splits(detected.found, is_divided)
    return [replace(plan, reads_all_names=True) for plan in plans] if detected.splits_by_root else plans


def describe_plan(detected: Detected, plans: Sequence[SplitPlan]) -> list[str]:
    """Returns what was recognized and what will be written, as lines to print."""
    found = detected.found
    counts = [f"{name} {found.images[name]}" if name in found.images else name for name in found.names]
    if counts:
        content = f"{', '.join(counts)} images"
    elif WHOLE in found.images:
        content = "1 image" if found.images[WHOLE] == 1 else f"{found.images[WHOLE]} images"
    else:
        content = "an unknown number of images"
    lines = [f"recognized {found.tool}: {content}"]
    if detected.others:
        lines.append(f"the folder also fits {', '.join(detected.others)}; --input_format selects one of them")
    lines += [f"note: {note}" for note in found.notes]
    if found.unions and found.names:
        names = ", ".join(sorted(found.unions))
        lines.append(f"omitted, because they repeat images of other splits (--split selects them): {names:.200}")
    shared = [plan for plan in plans if plan.shares]
    if shared:
        source = f"split {shared[0].source_split} of the source" if shared[0].source_split else "the source"
        shares = ",".join(f"{name}:{share:g}" for name, share in shared[0].shares)
        if not any(plan.is_optional for plan in shared):
            lines.append(f"{source} is divided by {shares}, whatever splits it has")
        else:
            reason = "has no validation split" if shared[0].source_split else "has no splits"
            lines.append(
                f"{source} is divided by {shares}, because the dataset {reason}; --split_by=none switches this off"
            )
    lines += [
        f"the splits {' and '.join(names)} of the source are written together as {output}"
        for output, names in group_by_output(found.names).items()
        if len(names) > 1
    ]
    lines += [
        f"split {plan.source_split} of the source is written as {plan.name}"
        for plan in plans
        if plan.source_split not in ("", plan.name) and not plan.shares
    ]
    return lines


def _describe_unknown(path: str, image_dir: str, input_format: str) -> str:
    """Returns the message for an input in an unknown format: what it contains and what was searched for."""
    archive = _find_archive(path)
    if archive:
        return f"--input={path}: {archive} is an archive; unpack it, and pass the folder"
    reason = csv.explain_unknown(path) if input_format in (AUTO, "csv") else ""
    if reason:
        return f"--input={path}: no annotations were recognized; {reason}"
    if input_format != AUTO:
        _, found = _recognize(path, image_dir, AUTO)
        searched = f"no {input_format} dataset ({FORMATS[input_format].files})"
        if found:
            name = next(iter(found))
            return f"--input={path}: {searched}; it looks like {found[name].tool}: use --input_format={name}"
    else:
        searched = f"no annotations were recognized; searched for the formats {', '.join(FORMATS)}"
    unsupported = _explain_unsupported(path)
    if unsupported:
        return f"--input={path}: no annotations were recognized; {unsupported}"
    if beam_storage.is_pattern(path) or beam_storage.is_file(path):
        return f"--input={path}: {searched}; pass the folder of the dataset as --input, or {CONVERT}"
    names = list_folder(path).names
    kinds = Counter(posixpath.splitext(name)[1].lower() or "without suffix" for name in names)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(8)) or "no files"
    examples = f" (for example {', '.join(names[:EXAMPLES]):.150})" if names else ""
    if input_format == AUTO and kinds[".txt"] and (fault := yolo_search.find_fault(path, image_dir)):
        examples += f"; as YOLO labels: {fault}"
    return (
        f"--input={path}: {searched}; the folder contains {listed}{examples}; pass the folder of the annotations, or "
        f"{CONVERT}"
    )


def _find_archive(path: str) -> str:
    """Returns the archive that an input is, or that a folder without images contains; empty if there is none."""
    if beam_storage.is_pattern(path) or beam_storage.is_file(path):
        return path if path.lower().endswith(ARCHIVES) else ""
    folder = list_folder(path)
    archives = [folder.join(name) for name in folder.names if name.lower().endswith(ARCHIVES)]
    return archives[0] if archives and not folder.count_images("") else ""


def _explain_unsupported(path: str) -> str:
    """Returns which unsupported format an input is in; empty if it is in none."""
    if beam_storage.is_pattern(path):
        files = beam_storage.match_files(path)
    elif beam_storage.is_file(path):
        files = [path]
    else:
        folder = list_folder(path)
        files = [folder.join(name) for name in folder.names]
    suffixes = tuple(suffix for suffix, _, _ in UNSUPPORTED)
    candidates = [name for name in files if name.lower().endswith(suffixes)][:EXAMPLES]
    explained = ((name, explain_unsupported(name, UNSUPPORTED)) for name in candidates)
    return next((f"{name} is {text}" for name, text in explained if text), "")
