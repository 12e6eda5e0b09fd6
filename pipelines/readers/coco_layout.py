"""Finds the annotation files of a COCO dataset and the folder of the images of each; `coco.py` lists the layouts."""

import contextlib
import io
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from pipelines import beam_storage
from pipelines.json_stream import JsonStreamError, stream_arrays
from pipelines.readers.coco_parts import ImageLocator, find_equal_ids, read_listed
from pipelines.readers.folder import Folder, list_folder
from pipelines.readers.image_index import narrow_folder
from pipelines.readers.parts import choose_parts
from pipelines.readers.sources import Source, first_folder, locate_image, parent_folder, require_input
from pipelines.readers.splits import SYNONYMS, WHOLE, Found, choose_in_inputs, choose_split, output_split
from pipelines.readers.unlisted import find_others, overlaps, share_folder
from pipelines.text_encoding import decode_head
from ssd_dist.core.errors import DataError
from ssd_dist.core.storage import join

SUFFIXES = (".json", ".json.gz")
# Names that do not give the split.
PLAIN_NAMES = ("", "annotations", "annotation", "labels", "result", "coco", "instances", "default", "data", "images")
# Annotation files in these folders belong to the folder above.
ANNOTATION_FOLDERS = ("annotations", "annotation", "labels")
# COCO's files of other tasks, which repeat the images of `instances_*.json`.
OTHER_TASKS = re.compile(r"(person_keypoints|captions|stuff|panoptic|image_info)_")
# How much of a file is read to recognize it and to find its images.
HEAD_BYTES = 1 << 20
EXAMPLES = 4
# A folder with more JSON files has one per image, which is not COCO's format.
MAX_FILES = 64


@dataclass(frozen=True)
class CocoFile:
    """One annotation file.

    Attributes:
      number: its number among the inputs.
      path: path of the file.
      images: folder of the images.
      dataset: folder of the dataset, to which file names may be relative as well; empty if `--image_dir` is given.
      is_only_owner: whether no other annotation file uses the folder of the images, so that every image in it must be
        listed in this file.
      others: the other files with images in the folder or below it, in the first of these files; every image must be
        listed in this file or one of them. Empty in the other files.
      is_indexed: whether `images` is searched by file name, because the names in the file have other folders.
      split: name of the split; of several images that fit, those in a folder of the split are preferred.
      prefix: text before the ids, if an earlier file of the split gives the same ids to other images.
    """

    number: int
    path: str
    images: str
    dataset: str = ""
    is_only_owner: bool = False
    others: "tuple[CocoFile, ...]" = ()
    is_indexed: bool = False
    split: str = ""
    prefix: str = ""


def find_files(source: Source) -> list[CocoFile]:
    """Returns the annotation files of the split in all inputs.

    Raises:
      DataError: if an annotation file or a folder of images is missing.
    """

    def find(path: str) -> Found[CocoFile]:
        found = find_splits(path, source.image_dir)
        if found is None:
            raise DataError(f"--input={path}: {_explain_missing(path)}")
        return found

    def choose(found: Found[CocoFile], source: Source, path: str) -> list[CocoFile]:
        return _separate_ids(choose_split(found, source, path), path)

    files = choose_in_inputs(source, find, partial(share_folder, includes_inner=True), choose)
    return [replace(file, number=number) for number, file in enumerate(files)]


def _separate_ids(files: Sequence[CocoFile], path: str) -> list[CocoFile]:
    """Returns the files of one split in one input, with prefixes if several of them number their images from 1."""
    if len(files) == 1:
        return [*files]
    root = beam_storage.literal_folder(path) if beam_storage.is_pattern(path) else path
    names = [beam_storage.path_below(root, file.path).partition(".json")[0] for file in files]
    marked = zip(files, names, find_equal_ids(files), strict=True)
    return [replace(file, prefix=f"{name}/") if has_equal_ids else file for file, name, has_equal_ids in marked]


def find_splits(path: str, image_dir: str) -> Found[CocoFile] | None:
    """Returns the splits in a folder, an annotation file or a pattern; None if there is no COCO file.

    Raises:
      DataError: if the images of an annotation file are in no folder.
    """
    if beam_storage.is_pattern(path):
        matched = [name for name in beam_storage.match_files(path) if is_coco(name)]
        return _describe({WHOLE: [find_images(name, WHOLE, image_dir) for name in matched]}, path) if matched else None
    require_input(path)
    if beam_storage.is_file(path):
        return _describe({WHOLE: [find_images(path, WHOLE, image_dir)]}, path) if is_coco(path) else None
    return _find_in_folder(list_folder(path), image_dir)


def _find_in_folder(folder: Folder, image_dir: str) -> Found[CocoFile] | None:
    named = _group_by_split(folder)
    if not named:
        return None
    parts = {
        split: choose_parts([find_images(path, split, image_dir, folder.path) for path in paths], read_listed)
        for split, paths in named.items()
    }
    notes = [note for own in parts.values() for note in own.describe()]
    splits = {split: own.files for split, own in parts.items()}
    known = [split for split in splits if output_split(split) in SYNONYMS]
    unions: list[str] = []
    if not known:
        # Files with other names, such as one per day, are the whole dataset.
        unions = [split for split in splits if split != WHOLE and len(splits) > 1]
        whole = choose_parts([file for own in splits.values() for file in own], read_listed)
        notes += whole.describe() if len(splits) > 1 else []
        splits = {WHOLE: whole.files, **{split: splits[split] for split in unions}}
    elif len(known) < len(splits):
        listed = {path for split in known for file in splits[split] for path in read_listed(file)}
        named_plain = splits.pop(WHOLE, ())
        unions = [
            split
            for split in splits
            if split not in known and all(listed.issuperset(read_listed(file)) for file in splits[split])
        ]
        has_train = any(output_split(split) == "train" for split in known)
        for file in named_plain:
            own = read_listed(file)
            if has_train or not listed.isdisjoint(own):
                notes.append(
                    f"{file.path} is not read, because other files contain the splits; {len(own.keys() - listed)} of "
                    f"its {len(own)} images are in none of them; pass it as another --input to read it as well"
                )
            else:
                splits = {"train": (file,), **splits}
                notes.append(f"{file.path} is the training split, because its images are in no other file")
                has_train = True
    return _describe(splits, folder.path, frozenset(unions), notes)


def _group_by_split(folder: Folder) -> dict[str, list[str]]:
    """Returns the paths of the annotation files in a folder by the split in their name; `WHOLE` for none."""
    candidates = folder.find(
        *("annotations/instances_*.json", "annotations/*.json", "*.json", "*/_annotations.coco.json"),
        *("*/labels.json", "*/annotations/*.json", "*/*.json", "*.json.gz", "annotations/*.json.gz"),
    )
    by_folder: dict[str, int] = {}
    for name in candidates:
        by_folder[posixpath.dirname(name)] = by_folder.get(posixpath.dirname(name), 0) + 1
    candidates = [name for name in candidates if by_folder[posixpath.dirname(name)] <= MAX_FILES]
    files: dict[str, list[str]] = {}
    for name in candidates:
        if not OTHER_TASKS.match(posixpath.basename(name)) and is_coco(folder.join(name)):
            files.setdefault(split_in_name(name), []).append(folder.join(name))
    return files


def split_in_name(name: str) -> str:
    """Returns the split in the name of an annotation file, from its stem or else from its folder; may be empty."""
    stem = posixpath.basename(name).partition(".")[0].strip("_")
    stem = re.sub(r"^(instances|annotations|labels|coco)_|_(annotations|labels|coco|instances)$", "", stem)
    if stem.lower() not in PLAIN_NAMES:
        return stem
    folders = [part for part in posixpath.dirname(name).split("/") if part.lower() not in PLAIN_NAMES]
    return folders[-1] if folders else WHOLE


def is_coco(path: str) -> bool:
    """Returns whether a file begins like a COCO file: a JSON object with `images` or `annotations`.

    `categories` alone are in the notes.json of Label Studio's YOLO export too.
    """
    if not path.lower().endswith(SUFFIXES):
        return False
    try:
        with beam_storage.open_input(path) as stream:
            head = decode_head(stream.read(HEAD_BYTES)).lstrip()
    except beam_storage.UNREADABLE:
        head = ""
    # A damaged file with the name of a COCO file is reported when it is read.
    if re.match(r"instances_|_annotations\.coco\.", posixpath.basename(path)):
        return True
    if re.search(r'"items"\s*:\s*\[|"item"\s*:\s*\{', head) and not re.search(r'"images"\s*:\s*\[', head):
        # The items of a Datumaro dataset contain their annotations; a file of Darwin (V7) describes one item.
        return False
    return head.startswith("{") and bool(re.search(r'"(images|annotations)"\s*:\s*\[', head))


def _describe(
    files_by_split: Mapping[str, Sequence[CocoFile]],
    path: str,
    unions: frozenset[str] = frozenset(),
    notes: Sequence[str] = (),
) -> Found[CocoFile]:
    """Returns the splits, whose files know which other files use the folder of their images."""
    everything = [file for split, files in files_by_split.items() if split not in unions for file in files]
    counts = {split: _count_images(files, everything) for split, files in files_by_split.items()}
    # A file that was not passed may list images of the folder.
    is_folder = not beam_storage.is_pattern(path) and not beam_storage.is_file(path)
    has_siblings = not is_folder and _has_siblings(everything)
    splits = {
        split: tuple(
            _mark_owner(file, everything if file in everything else [*everything, file], has_siblings) for file in files
        )
        for split, files in files_by_split.items()
    }
    counts = {name: count for name, count in counts.items() if count}
    return Found(_name_tool(everything, path), splits, counts, unions, tuple(notes))


def count_annotated(found: Found[CocoFile]) -> int:
    """Returns the number of images in the files; the images behind damage in a file are not counted."""
    count = 0
    for path in {file.path for files in found.splits.values() for file in files}:
        with contextlib.suppress(JsonStreamError, *beam_storage.UNREADABLE), beam_storage.open_input(path) as stream:
            for _ in stream_arrays(stream, ("images",)):
                count += 1
    return count


def _has_siblings(files: Sequence[CocoFile]) -> bool:
    """Returns whether there are other annotation files beside the files."""
    folders = {parent_folder(file.path) for file in files}
    siblings = {name for folder in folders for name in beam_storage.list_files(folder) if name.endswith(SUFFIXES)}
    siblings -= {file.path for file in files}
    return len(siblings) >= MAX_FILES or any(map(is_coco, sorted(siblings)))


def _mark_owner(file: CocoFile, files: Sequence[CocoFile], has_siblings: bool) -> CocoFile:
    """Returns the file with the other files that use the folder of its images."""
    is_shared = has_siblings if len(files) == 1 else sum(overlaps(file, other) for other in files) > 1
    others = () if has_siblings else find_others(file, files, includes_inner=True)
    return replace(file, is_only_owner=not is_shared, others=others)


def _name_tool(files: list[CocoFile], path: str) -> str:
    """Returns the tool that wrote the files, by their names."""
    names = {posixpath.basename(file.path) for file in files}
    images = {posixpath.basename(file.images) for file in files}
    if "_annotations.coco.json" in names:
        return "Roboflow COCO export"
    if names == {"instances_default.json"}:
        return "CVAT COCO export"
    if names == {"result.json"}:
        return "Label Studio COCO export"
    if names == {"labels.json"}:
        return "FiftyOne COCO export" if images == {"data"} else "MediaPipe Model Maker dataset"
    if all(re.match(r"instances_(train|val|test)\d{4}\.", name) for name in names):
        return "COCO dataset"
    return (
        f"COCO annotations {posixpath.basename(path)}"
        if len(files) == 1 and files[0].path == path
        else "COCO annotations"
    )


def _count_images(files: Sequence[CocoFile], everything: Sequence[CocoFile]) -> int:
    """Returns the number of images of a split; 0 if the listing does not show it, because splits share a folder."""
    others = [other for other in everything if other not in files]
    if any(overlaps(file, other) for file in files for other in others):
        return 0
    return sum(list_folder(folder).count_images("") for folder in {file.images for file in files})


def _explain_missing(path: str) -> str:
    """Returns why an input contains no COCO file, and how to fix it."""
    if beam_storage.is_pattern(path):
        return "the pattern matches no COCO file; check the pattern"
    if beam_storage.is_file(path):
        return "not a COCO file (a JSON object with images, annotations and categories); use --input_format=auto"
    return (
        "the folder contains no COCO file (annotations/instances_SPLIT.json, SPLIT/_annotations.coco.json, SPLIT.json, "
        "labels.json, result.json); pass the file as --input"
    )


def find_images(path: str, split: str, image_dir: str, root: str = "") -> CocoFile:
    """Returns an annotation file with the folder of its images, the first one that contains an image of the file.

    Args:
      path: the annotation file.
      split: name of the split; empty if there is none.
      image_dir: value of `--image_dir`.
      root: the input, if it is a folder.

    Raises:
      DataError: if no folder contains images.
    """
    dataset = find_dataset(path)
    file = CocoFile(0, path, "", "" if image_dir else dataset)
    candidates = [image_dir] if image_dir else _list_image_folders(path, dataset, split)
    examples = read_file_names(path)
    for folder in candidates:
        if any(beam_storage.is_file(locate_image(folder, example).path) for example in examples):
            return replace(file, images=folder)
    fix = "check --image_dir" if image_dir else "pass their folder as --image_dir"
    direct = replace(file, images=first_folder(candidates, "images", fix))
    # Names such as ../images/a.jpg.
    locate = ImageLocator(direct)
    if any(beam_storage.is_file(locate(example).path) for example in examples):
        return direct
    file = replace(file, images=image_dir or root or dataset, is_indexed=True, split=split)
    locate = ImageLocator(file)
    paths = [locate(example).path for example in examples]
    found = [beam_storage.path_below(file.images, path) for path in paths if beam_storage.is_file(path)]
    return replace(file, images=narrow_folder(list_folder(file.images), split, found)) if found else direct


def _list_image_folders(path: str, dataset: str, split: str) -> list[str]:
    """Returns the folders that usually contain the images of an annotation file, the most specific first."""
    home = parent_folder(path)
    name = split or split_in_name(path)
    names = dict.fromkeys(
        (name, f"images/{name}", f"{name}/images", f"{name}/data", "images/default", "images", "data")
    )
    folders = [join(base, below) if below else base for base in (dataset, home) for below in names]
    return list(dict.fromkeys([*folders, home, dataset]))


def read_file_names(path: str) -> list[str]:
    """Returns the first file names in an annotation file; empty if the beginning of the file contains none."""
    names: list[str] = []
    try:
        with beam_storage.open_input(path) as stream:
            head = io.BytesIO(stream.read(HEAD_BYTES))
        for _, _, item in stream_arrays(head, ("images",)):
            if isinstance(item, dict) and isinstance(item.get("file_name"), str):
                names.append(item["file_name"])
            if len(names) == EXAMPLES:
                break
    except (JsonStreamError, *beam_storage.UNREADABLE):
        # The head ends within an entry, or the file is damaged, which is reported when it is read.
        pass
    return names


def find_dataset(path: str) -> str:
    """Returns the folder of the dataset of an annotation file."""
    folder = parent_folder(path)
    return parent_folder(folder) if posixpath.basename(folder).lower() in ANNOTATION_FOLDERS else folder
