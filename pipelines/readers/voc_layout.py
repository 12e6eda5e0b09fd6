"""Finds the annotations, images and splits of a VOC dataset; `readers/voc.py` describes the layouts."""

import itertools
import os
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial

from pipelines import beam_storage
from pipelines.file_names import base_name, fold_name, stem_of
from pipelines.readers.folder import Folder, is_image, list_folder
from pipelines.readers.sources import Source, is_absolute, parent_folder, require_input
from pipelines.readers.splits import SYNONYMS, WHOLE, Found, choose_in_inputs, output_split
from pipelines.readers.unlisted import find_others, share_folder
from pipelines.text_encoding import decode_head
from ssd_dist.core.errors import DataError

# Names of folders, in lower case. Image folders are in the order in which they are preferred.
ANNOTATION_FOLDERS = ("annotations", "annotation", "annots", "annot", "xmls", "xml", "labels", "label")
IMAGE_FOLDERS = ("jpegimages", "images", "image", "imgs", "img", "pngimages", "photos")
LISTS = "ImageSets/Main"
# Number of XML files of a folder that are compared with its images, or read to recognize the format.
EXAMPLES = 20
HEAD_BYTES = 4096


@dataclass(frozen=True)
class VocLayout:
    """The files and folders of one split.

    Attributes:
      annotations: folder, file or pattern of the XML files.
      images: folder of the images; empty for the folder of each XML file.
      list_file: file with the image ids of the split; empty if every annotation belongs to the split.
      is_flat: whether subfolders of `annotations` are ignored.
      is_only_owner: whether every image in `images` must have an annotation of this layout, or be in its list.
      others: the other layouts with these images, in the first of them; every image must have an annotation of this
        layout or one of them, or be in one of their lists. Empty in the other layouts.
    """

    annotations: str
    images: str
    list_file: str = ""
    is_flat: bool = False
    is_only_owner: bool = False
    others: "tuple[VocLayout, ...]" = ()


def find_layouts(source: Source) -> list[VocLayout]:
    """Returns the layouts of the split in all inputs.

    Raises:
      DataError: if an input contains no VOC annotations, or the split is missing.
    """

    def find(path: str) -> Found[VocLayout]:
        found = find_splits(path, source.image_dir)
        if found is None:
            if beam_storage.is_pattern(path):
                raise DataError(f"--input={path} matches no file with VOC annotations; check the pattern")
            raise DataError(
                f"--input={path}: no VOC annotations (Annotations/*.xml, SPLIT/*.xml or *.xml that contain "
                "<annotation>); use --input_format=auto"
            )
        return found

    return choose_in_inputs(source, find, partial(share_folder, includes_inner=False))


def find_splits(path: str, image_dir: str) -> Found[VocLayout] | None:
    """Returns the splits in a folder, an XML file or a pattern of XML files; None if there are no VOC annotations.

    Raises:
      DataError: if the images of a folder of annotations are missing.
    """
    if beam_storage.is_pattern(path):
        matched = beam_storage.match_files(path)
        return Found("VOC annotations", {WHOLE: (VocLayout(path, image_dir),)}) if _are_voc(matched) else None
    require_input(path)
    if beam_storage.is_file(path):
        return Found("VOC annotation", {WHOLE: (VocLayout(path, image_dir),)}) if _are_voc([path]) else None
    folder = list_folder(path)
    xml_folders = _group_xml_files(folder)
    if not xml_folders:
        # Some exports contain no object and so no XML file; the folders of the devkit are enough to recognize them.
        xml_folders = {name: [] for name in folder.folders if posixpath.basename(name) == "Annotations"}
    if not xml_folders:
        return None
    splits: dict[str, tuple[VocLayout, ...]] = {}
    layouts: list[VocLayout] = []
    located = {name: _find_layout(folder, name, files, image_dir) for name, files in xml_folders.items()}
    everything = [found for found, _ in located.values()]
    owners = Counter(layout.images for layout in everything)
    for name, (found, base) in located.items():
        # Annotations of several splits may have their images in one folder.
        others = find_others(found, everything, includes_inner=False) if found.is_only_owner else ()
        layout = replace(found, is_only_owner=found.is_only_owner and owners[found.images] == 1, others=others)
        layouts.append(layout)
        for split, part in _divide(folder, layout, base, name).items():
            splits[split] = (*splits.get(split, ()), part)
    if not any(own[0].list_file or output_split(name) in SYNONYMS for name, own in splits.items()):
        # Folders with other names, such as one per class, are one dataset.
        splits = {}
    whole = _unite(folder, layouts, image_dir, has_splits=bool(splits))
    unions = frozenset(name for name in splits if _is_union(name, {*splits}))
    splits = _mark_list_owners(splits, unions)
    if whole:
        splits[WHOLE] = whole
    counts = {
        split: sum(map(_count_images, own))
        for split, own in splits.items()
        # The listing does not show to which split an image in a shared folder belongs.
        if split == WHOLE or all(layout.list_file or owners[layout.images] == 1 for layout in own)
    }
    listed = {split: own for split, own in splits.items() if split not in unions}
    return Found(_name_tool(folder, layouts), splits, counts, unions, _note_unlisted(listed))


def count_annotated(found: Found[VocLayout]) -> int:
    """Returns the number of XML files."""
    layouts = [layout for own in found.splits.values() for layout in own]
    folders = {
        layout.annotations: layout.is_flat for layout in layouts if not beam_storage.is_pattern(layout.annotations)
    }
    return sum(
        name.lower().endswith(".xml") and not (is_flat and "/" in name)
        for path, is_flat in folders.items()
        for name in list_folder(path).names
    )


def _unite(folder: Folder, layouts: list[VocLayout], image_dir: str, has_splits: bool) -> tuple[VocLayout, ...]:
    """Returns the layouts of all images; empty if the ids of images in different splits would be equal."""
    if len(layouts) == 1 or all(posixpath.basename(layout.annotations) == "Annotations" for layout in layouts):
        return tuple(layouts)
    parent = parent_folder(layouts[0].annotations)
    is_shared = all(parent_folder(layout.annotations) == parent for layout in layouts)
    if is_shared and posixpath.basename(parent).lower() in ANNOTATION_FOLDERS:
        images = os.path.commonpath([layout.images for layout in layouts])
        return (VocLayout(parent, images, is_only_owner=True),)
    if not has_splits and not any(layout.is_flat for layout in layouts):
        return tuple(layouts)
    return () if has_splits else (VocLayout(folder.path, image_dir, is_only_owner=False),)


def _group_xml_files(folder: Folder) -> dict[str, list[str]]:
    """Returns the names of the XML files by folder, for the folders whose files are VOC annotations.

    Subfolders of a folder of annotations that are no splits, such as one per video, belong to that folder.
    """
    groups: dict[str, list[str]] = {}
    for name in folder.names:
        if name.lower().endswith(".xml"):
            groups.setdefault(_annotation_folder(posixpath.dirname(name)), []).append(name)
    return {name: files for name, files in groups.items() if _are_voc([folder.join(file) for file in files[:EXAMPLES]])}


def _annotation_folder(name: str) -> str:
    """Returns the outermost folder of annotations in a path, or one of its subfolders that is named like a split."""
    parts = name.split("/")
    for index, part in enumerate(parts):
        if part.lower() in ANNOTATION_FOLDERS:
            end = index + 2 if index + 1 < len(parts) and output_split(parts[index + 1]) in SYNONYMS else index + 1
            return "/".join(parts[:end])
    return name


def _are_voc(paths: list[str]) -> bool:
    """Returns whether one of the first files begins like a VOC annotation, or none can be recognized at all."""
    kinds = {is_annotation(path) for path in paths[:EXAMPLES]}
    return True in kinds or (kinds == {None} and all(path.lower().endswith(".xml") for path in paths))


def is_annotation(path: str) -> bool | None:
    """Returns whether a file begins like a VOC annotation; None if it cannot be read or is no XML."""
    try:
        with beam_storage.open_input(path) as stream:
            head = decode_head(stream.read(HEAD_BYTES))
    except beam_storage.UNREADABLE:
        return None
    if re.search(r"<(\w+:)?annotation[\s>]", head):
        return True
    return False if re.search(r"<[A-Za-z]", head) else None


def _find_layout(folder: Folder, name: str, files: list[str], image_dir: str) -> tuple[VocLayout, str]:
    """Returns the layout of a folder of XML files, and the relative folder of its dataset or split."""
    parts = name.split("/")
    lower = [part.lower() for part in parts]
    if lower[-1] in ANNOTATION_FOLDERS:
        base, inner = "/".join(parts[:-1]), ""
    elif len(parts) > 1 and lower[-2] in ANNOTATION_FOLDERS:
        base, inner = "/".join(parts[:-2]), parts[-1]
    else:
        home = None if image_dir or folder.count_images(name) else _find_base(folder, name, files)
        if home is None:
            images = image_dir or folder.join(name)
            return VocLayout(folder.join(name), images, is_flat=True, is_only_owner=not image_dir), name
        base, inner = home, ""
    images = image_dir or folder.join(_find_images(folder, base, inner, files))
    return VocLayout(folder.join(name), images, is_only_owner=True), base


def _find_base(folder: Folder, name: str, files: list[str]) -> str | None:
    """Returns the nearest folder around a folder of XML files that contains their images; None if there is none."""
    stems = {stem_of(file) for file in files[:EXAMPLES]}
    images = [image for image in folder.names if is_image(image) and stem_of(image) in stems]
    while name:
        name = posixpath.dirname(name)
        if any(not name or image.startswith(f"{name}/") for image in images):
            return name
    return None


def _find_images(folder: Folder, base: str, inner: str, files: list[str]) -> str:
    """Returns the relative folder of images next to a folder of annotations.

    Raises:
      DataError: if there is none.
    """
    names = [name for name in folder.folders if posixpath.dirname(name) == base and name]
    order = {name: index for index, name in enumerate(IMAGE_FOLDERS)}
    candidates = sorted(names, key=lambda name: (order.get(posixpath.basename(name).lower(), len(order)), name))
    candidates = [*(posixpath.join(name, inner) for name in candidates if inner), *candidates, base]
    stems = {stem_of(name) for name in files[:EXAMPLES]}
    images = [name for name in folder.names if is_image(name) and stem_of(name) in stems]
    for candidate in candidates:
        prefix = f"{candidate}/" if candidate else ""
        if any(name.startswith(prefix) for name in images):
            return candidate
    for candidate in candidates:
        if folder.count_images(candidate) or posixpath.basename(candidate) == "JPEGImages":
            return candidate
    raise DataError(f"{folder.join(base)}: no folder of images beside the annotations; pass it as --image_dir")


def _divide(folder: Folder, layout: VocLayout, base: str, name: str) -> dict[str, VocLayout]:
    """Returns the splits of a layout: one per list file, or the split in the names of its folders."""
    lists = folder.find(posixpath.join(base, LISTS, "*.txt"))
    if lists:
        names = {posixpath.basename(file).removesuffix(".txt"): file for file in lists}
        if "default" in names:
            # CVAT lists all images in default.txt, and the images with a tag in TAG_default.txt.
            names = {name: file for name, file in names.items() if not re.fullmatch(r"(.*_)?default", name)}
        layout = replace(layout, is_only_owner=False, others=())
        return {name: replace(layout, list_file=folder.join(file)) for name, file in names.items()}
    parts = [part for part in name.split("/") if part]
    found = [part for part in parts if output_split(part) in SYNONYMS]
    rest = [part for part in parts if part.lower() not in (*ANNOTATION_FOLDERS, *IMAGE_FOLDERS)]
    split = found[-1] if found else rest[-1] if rest else WHOLE
    return {split: layout} if split else {}


def _is_union(name: str, names: set[str]) -> bool:
    """Returns whether a list repeats images of other lists: `trainval`, or one class of a split (`cat_train`)."""
    return (name == "trainval" and {"train", "val"} <= names) or name.rpartition("_")[2] in names - {name}


def _mark_list_owners(
    splits: Mapping[str, tuple[VocLayout, ...]], unions: Collection[str]
) -> dict[str, tuple[VocLayout, ...]]:
    """Returns the splits; the first list of each folder of images reports the images that none of its lists contains.

    Images that are only in the list of a union, such as `trainval`, are in no split that is read.
    """
    lists = [one for split, own in splits.items() if split not in unions for one in own if one.list_file]
    marked = {}
    for layout in lists:
        same = [other for other in lists if other.images == layout.images]
        if same[0] == layout:
            marked[layout] = replace(layout, is_only_owner=len(same) == 1, others=tuple(same[1:]))
    return {split: tuple(marked.get(layout, layout) for layout in own) for split, own in splits.items()}


def _note_unlisted(splits: Mapping[str, tuple[VocLayout, ...]]) -> tuple[str, ...]:
    """Returns a note for each folder of images with images that no list file contains."""
    listed: dict[str, set[str]] = {}
    for layout in itertools.chain(*splits.values()):
        if layout.list_file:
            listed.setdefault(layout.images, set()).update(map(fold_name, read_list(layout)))
    notes = []
    for images, ids in listed.items():
        stems = [fold_name(posixpath.splitext(name)[0]) for name in list_folder(images).names if is_image(name)]
        if count := sum(stem not in ids and posixpath.basename(stem) not in ids for stem in stems):
            notes.append(f"{count} images in {images} are in no list of {LISTS}; only --split_by reads them")
    return tuple(notes)


def _count_images(layout: VocLayout) -> int:
    if layout.list_file:
        return len(read_list(layout))
    found = list_folder(layout.images or layout.annotations)
    return sum(is_image(name) for name in found.names if not layout.is_flat or "/" not in name)


def _name_tool(folder: Folder, layouts: list[VocLayout]) -> str:
    if folder.find("README.roboflow.txt", "README.dataset.txt"):
        return "Roboflow VOC export"
    if folder.find(f"**/{LISTS}/*.txt"):
        return "VOC devkit" if len(layouts) == 1 else f"VOC devkit with {len(layouts)} datasets"
    return "VOC annotations beside the images" if layouts[0].is_flat else "VOC annotations"


def read_list(layout: VocLayout) -> list[str]:
    """Returns the image ids of the list file.

    A trailing 1, 0 or -1 (per-class lists of the devkit) is removed, unless an annotation file has the whole line as
    its name. If a line is an absolute image path, its file name without suffix is the id.
    """
    lines = list(filter(None, map(str.strip, beam_storage.read_text(layout.list_file).split("\n"))))
    columns = {line: column[1] for line in lines if (column := re.fullmatch(r"(.*\S)\s+-?[01]", line))}
    found = beam_storage.match_below(layout.annotations, "**") if columns else []
    existing = {beam_storage.path_below(layout.annotations, path) for path in found}
    ids = [columns[line] if line in columns and f"{line}.xml" not in existing else line for line in lines]
    return [stem_of(base_name(name)) if is_absolute(name) and is_image(name) else name for name in ids]
