"""Reads Pascal VOC annotations: one XML file per image.

    DIR/Annotations/*.xml  DIR/JPEGImages/*  DIR/ImageSets/Main/SPLIT.txt      VOC devkit, CVAT
    DIR/VOC2007/...  DIR/VOC2012/...                                           several years of the devkit, merged
    DIR/Annotations/SPLIT/*.xml  DIR/JPEGImages/[SPLIT/]*                      the same without list files
    DIR/annotations/*.xml  DIR/images/*                                        Kaggle, Label Studio
    DIR/SPLIT/annots/*.xml  DIR/SPLIT/images/*                                 one folder per split
    DIR/SPLIT/*.xml and images in the same folder                              Roboflow, LabelImg
    DIR/*.xml or a pattern of XML files                                        all files are one dataset

The annotations and images of a folder are recognised by their names and by equal stems. Coordinates are used as they
are, as in the TF Object Detection API: the devkit's shift by one pixel is not applied. Rotated boxes (roLabelImg) and
polygons (Roboflow, FAIR1M) become the upright box around them.
"""

import itertools
import math
import os
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from xml.etree.ElementTree import Element as XmlElement

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from pipelines import beam_storage
from pipelines.annotations import (
    IMAGE_SUFFIXES,
    Box,
    Category,
    Element,
    Image,
    Listing,
    Problem,
    make_element,
    pack_boxes,
)
from pipelines.readers.folder import Folder, is_image, list_folder
from pipelines.readers.read_annotations import ReadAnnotations
from pipelines.readers.sources import Location, Source, is_absolute, locate_image, parent_folder, require_input
from pipelines.readers.splits import SYNONYMS, WHOLE, Found, choose_split, output_split
from ssd_dist.core.errors import DataError
from ssd_dist.core.storage import join

# Names of folders, in lower case. Image folders are in the order in which they are preferred.
ANNOTATION_FOLDERS = ("annotations", "annotation", "annots", "annot", "xmls", "xml", "labels", "label")
IMAGE_FOLDERS = ("jpegimages", "images", "image", "imgs", "img", "pngimages", "photos")
LISTS = "ImageSets/Main"
SIDES = ("ymin", "xmin", "ymax", "xmax")
# Number of XML files of a folder that are compared with its images, or read to recognise the format.
EXAMPLES = 20
HEAD_BYTES = 4096
READ_AHEAD = 16


@dataclass(frozen=True)
class VocLayout:
    """The files and folders of one split.

    Attributes:
      annotations: folder, file or pattern of the XML files.
      images: folder of the images; empty for the folder of each XML file.
      list_file: file with the image ids of the split; empty if every annotation belongs to the split.
      is_flat: whether subfolders of `annotations` are ignored.
      is_only_owner: whether every image in `images` must have an annotation of this layout.
    """

    annotations: str
    images: str
    list_file: str = ""
    is_flat: bool = False
    is_only_owner: bool = False


@dataclass(frozen=True)
class VocEntry:
    """One image to read.

    Attributes:
      image_id: id of the image, its path relative to the annotations without a suffix.
      row: position in the listing.
      annotation: path of the XML file.
      images: folder of the images.
      problem: set if the id is not usable.
    """

    image_id: str
    row: int
    annotation: str
    images: str
    problem: Problem | None = None


def read_voc(source: Source) -> ReadAnnotations:
    """Returns the transform that reads the source, after finding the layout of each input.

    Raises:
      DataError: if an input or its split is missing.
    """
    return ReadAnnotations(partial(list_annotations, find_layouts(source), source), read_annotation)


def find_layouts(source: Source) -> list[VocLayout]:
    """Returns the layouts of the split in all inputs.

    Raises:
      DataError: if an input contains no VOC annotations, or the split is missing.
    """
    layouts: list[VocLayout] = []
    for path in source.inputs:
        found = find_splits(path, source.image_dir)
        if found is None:
            if beam_storage.is_pattern(path):
                raise DataError(f"--input={path} matches no file with VOC annotations; check the pattern")
            raise DataError(
                f"--input={path}: no VOC annotations (Annotations/*.xml, SPLIT/*.xml or *.xml that contain "
                "<annotation>); use --input_format=auto"
            )
        layouts += choose_split(found, source, path)
    return layouts


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
        # Some exports contain no object and so no XML file; the folders of the devkit are enough to recognise them.
        xml_folders = {name: [] for name in folder.folders if posixpath.basename(name) == "Annotations"}
    if not xml_folders:
        return None
    splits: dict[str, tuple[VocLayout, ...]] = {}
    layouts: list[VocLayout] = []
    located = {name: _find_layout(folder, name, files, image_dir) for name, files in xml_folders.items()}
    owners = Counter(layout.images for layout, _ in located.values())
    for name, (found, base) in located.items():
        # Annotations of several splits may have their images in one folder.
        layout = replace(found, is_only_owner=found.is_only_owner and owners[found.images] == 1)
        layouts.append(layout)
        for split, part in _divide(folder, layout, base, name).items():
            splits[split] = (*splits.get(split, ()), part)
    if not splits.keys() & {*itertools.chain(*SYNONYMS.values())} and not any(
        own[0].list_file for own in splits.values()
    ):
        # Folders with other names, such as one per class, are one dataset.
        splits = {}
    whole = _unite(folder, layouts, image_dir, has_splits=bool(splits))
    unions = frozenset(name for name in splits if _is_union(name, {*splits}))
    if whole:
        splits[WHOLE] = whole
    counts = {split: sum(map(_count_images, own)) for split, own in splits.items()}
    return Found(_name_tool(folder, layouts), splits, counts, unions, _note_unlisted(splits))


def _unite(folder: Folder, layouts: list[VocLayout], image_dir: str, has_splits: bool) -> tuple[VocLayout, ...]:
    """Returns the layouts of all images; empty if the ids of images in different splits would be equal."""
    if len(layouts) == 1 or all(posixpath.basename(layout.annotations) == "Annotations" for layout in layouts):
        return tuple(layouts)
    parent = parent_folder(layouts[0].annotations)
    is_shared = all(parent_folder(layout.annotations) == parent for layout in layouts)
    if is_shared and posixpath.basename(parent).lower() in ANNOTATION_FOLDERS:
        images = os.path.commonpath([layout.images for layout in layouts])
        return (VocLayout(parent, images, is_only_owner=True),)
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
    """Returns whether one of the first files begins like a VOC annotation, or none can be recognised at all."""
    kinds = {_is_annotation(path) for path in paths[:EXAMPLES]}
    return True in kinds or (kinds == {None} and all(path.lower().endswith(".xml") for path in paths))


def _is_annotation(path: str) -> bool | None:
    """Returns whether a file begins like a VOC annotation; None if it cannot be read or is no XML."""
    try:
        with beam_storage.open_input(path) as stream:
            head = stream.read(HEAD_BYTES)
    except beam_storage.UNREADABLE:
        return None
    if re.search(rb"<(\w+:)?annotation[\s>]", head):
        return True
    return False if re.search(rb"<[A-Za-z]", head) else None


def _find_layout(folder: Folder, name: str, files: list[str], image_dir: str) -> tuple[VocLayout, str]:
    """Returns the layout of a folder of XML files, and the relative folder of its dataset or split."""
    parts = name.split("/")
    lower = [part.lower() for part in parts]
    if lower[-1] in ANNOTATION_FOLDERS:
        base, inner = "/".join(parts[:-1]), ""
    elif len(parts) > 1 and lower[-2] in ANNOTATION_FOLDERS:
        base, inner = "/".join(parts[:-2]), parts[-1]
    else:
        images = image_dir or folder.join(name)
        return VocLayout(folder.join(name), images, is_flat=True, is_only_owner=not image_dir), name
    images = image_dir or folder.join(_find_images(folder, base, inner, files))
    return VocLayout(folder.join(name), images, is_only_owner=True), base


def _find_images(folder: Folder, base: str, inner: str, files: list[str]) -> str:
    """Returns the relative folder of images next to a folder of annotations.

    Raises:
      DataError: if there is none.
    """
    names = [name for name in folder.folders if posixpath.dirname(name) == base and name]
    order = {name: index for index, name in enumerate(IMAGE_FOLDERS)}
    candidates = sorted(names, key=lambda name: (order.get(posixpath.basename(name).lower(), len(order)), name))
    candidates = [*(posixpath.join(name, inner) for name in candidates if inner), *candidates, base]
    stems = {_stem(name) for name in files[:EXAMPLES]}
    images = [
        name for name in folder.names if is_image(name) and posixpath.splitext(posixpath.basename(name))[0] in stems
    ]
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
        return {name: replace(layout, list_file=folder.join(file), is_only_owner=False) for name, file in names.items()}
    parts = [part for part in name.split("/") if part]
    found = [part for part in parts if output_split(part) in SYNONYMS]
    rest = [part for part in parts if part.lower() not in (*ANNOTATION_FOLDERS, *IMAGE_FOLDERS)]
    split = found[-1] if found else rest[-1] if rest else WHOLE
    return {split: layout} if split else {}


def _is_union(name: str, names: set[str]) -> bool:
    """Returns whether a list repeats images of other lists: `trainval`, or one class of a split (`cat_train`)."""
    return (name == "trainval" and {"train", "val"} <= names) or name.rpartition("_")[2] in names - {name}


def _note_unlisted(splits: Mapping[str, tuple[VocLayout, ...]]) -> tuple[str, ...]:
    """Returns a note for each folder of images with images that no list file contains."""
    listed: dict[str, set[str]] = {}
    for layout in itertools.chain(*splits.values()):
        if layout.list_file:
            listed.setdefault(layout.images, set()).update(map(_fold, _read_list(layout)))
    notes = []
    for images, ids in listed.items():
        stems = [_fold(posixpath.splitext(name)[0]) for name in list_folder(images).names if is_image(name)]
        if count := sum(stem not in ids and posixpath.basename(stem) not in ids for stem in stems):
            notes.append(f"{count} images in {images} are in no list of {LISTS}; only --split_by reads them")
    return tuple(notes)


def _count_images(layout: VocLayout) -> int:
    if layout.list_file:
        return len(_read_list(layout))
    found = list_folder(layout.images)
    return sum(is_image(name) for name in found.names if not layout.is_flat or "/" not in name)


def _name_tool(folder: Folder, layouts: list[VocLayout]) -> str:
    if folder.find("README.roboflow.txt", "README.dataset.txt"):
        return "Roboflow VOC export"
    if folder.find(f"**/{LISTS}/*.txt"):
        return "VOC devkit" if len(layouts) == 1 else f"VOC devkit with {len(layouts)} datasets"
    return "VOC annotations beside the images" if layouts[0].is_flat else "VOC annotations"


def list_annotations(layouts: list[VocLayout], source: Source) -> Iterator[VocEntry | Listing]:
    """Yields the annotations of all inputs in order, the images without annotation, then the end of the listing."""
    row = 0
    for layout in layouts:
        entries = []
        for name, location in _locate_annotations(layout):
            image_id = posixpath.splitext(name)[0] if name.lower().endswith(".xml") else name
            images = layout.images or posixpath.dirname(location.path)
            entries.append(VocEntry(image_id, 0, location.path or layout.list_file, images, location.problem))
        if layout.is_only_owner:
            entries = _compare_with_images(layout, entries)
        for entry in entries:
            if source.includes(entry.image_id):
                yield replace(entry, row=row)
                row += 1
    yield Listing(0, row, layouts[0].annotations)


def _compare_with_images(layout: VocLayout, entries: list[VocEntry]) -> list[VocEntry]:
    """Returns the annotations, without other XML files, and the image files that none describes, as rejected entries.

    An annotation describes the image with its own stem, or the one that it names. Only the annotations whose stem has
    no image are examined, and their names are read only if there are images left.
    """
    listing = list_folder(layout.images)
    names = [name for name in listing.names if is_image(name) and not (layout.is_flat and "/" in name)]
    present = {_fold(posixpath.splitext(name)[0]) for name in names}
    stems = {_fold(entry.image_id) for entry in entries}
    stems |= {_fold(posixpath.basename(entry.image_id)) for entry in entries}
    left = [name for name in names if _fold(posixpath.splitext(name)[0]) not in stems]
    second = _find_second_files(names, {_fold(entry.image_id): entry for entry in entries if not entry.problem})
    unmatched = [entry for entry in entries if _fold(entry.image_id) not in present and not entry.problem]
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        are_annotations = pool.map(_is_annotation, [entry.annotation for entry in unmatched])
        others = [entry for entry, kind in zip(unmatched, are_annotations, strict=True) if kind is False]
        found = {_fold(posixpath.splitext(name)[0]) for name in pool.map(_read_filename, unmatched if left else [])}
    # Such as the file of a project; a damaged annotation has an image with its stem.
    other_ids = {entry.image_id for entry in others}
    problem = Problem("not_annotated", f"no annotation in {layout.annotations} describes this image file")
    return (
        [entry for entry in entries if entry.image_id not in other_ids]
        + [
            VocEntry(listing.join(name), 0, layout.annotations, layout.images, problem)
            for name in left
            if _fold(posixpath.splitext(name)[0]) not in found and _fold(_stem(name)) not in found
        ]
        + [VocEntry(listing.join(name), 0, layout.annotations, layout.images, problem) for name in second]
    )


def _find_second_files(names: list[str], entries: Mapping[str, VocEntry]) -> list[str]:
    """Returns the image files that share their stem with the image that an annotation describes, such as a.png.

    The annotation describes the file that it names, or else the first one by suffix.
    """
    by_stem: dict[str, list[str]] = {}
    for name in names:
        by_stem.setdefault(_fold(posixpath.splitext(name)[0]), []).append(name)
    second = []
    for stem, files in by_stem.items():
        if len(files) > 1 and stem in entries:
            named = _read_filename(entries[stem])
            order = [stem + suffix for suffix in IMAGE_SUFFIXES]
            files.sort(key=lambda name: (posixpath.basename(name) != named, _index(order, _fold(name)), name))
            second += files[1:]
    return second


def _index(values: list[str], value: str) -> int:
    return values.index(value) if value in values else len(values)


def _read_filename(entry: VocEntry) -> str:
    """Returns the file name in an annotation; empty if it cannot be read."""
    try:
        image = parse_annotation(beam_storage.read_item(entry.annotation), entry)
    except (*beam_storage.LASTING, ValueError):
        return ""
    return posixpath.basename(image.filename.replace("\\", "/"))


def _stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]


def _fold(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def _locate_annotations(layout: VocLayout) -> Iterator[tuple[str, Location]]:
    if layout.list_file:
        for name in _read_list(layout):
            location = locate_image(layout.annotations, f"{name}.xml")
            yield posixpath.basename(name) if location.problem else name, location
        return
    if beam_storage.is_pattern(layout.annotations) or beam_storage.is_file(layout.annotations):
        yield from ((posixpath.basename(path), Location(path)) for path in beam_storage.match_files(layout.annotations))
        return
    # Annotations next to their images are in one folder per split; the devkit's Annotations may have subfolders.
    found = (
        beam_storage.list_files(layout.annotations)
        if layout.is_flat
        else beam_storage.match_below(layout.annotations, "**")
    )
    for path in found:
        if path.lower().endswith(".xml"):
            yield beam_storage.path_below(layout.annotations, path), Location(path)


def _read_list(layout: VocLayout) -> list[str]:
    """Returns the ids of the list file, without the second column (1, 0 or -1) of the devkit's per-class lists.

    An id may itself contain spaces and end in such a number. If there is an annotation with the name of the whole line,
    the line is an id. Some tools write the path of the image instead of the id.
    """
    lines = list(filter(None, map(str.strip, beam_storage.read_text(layout.list_file).split("\n"))))
    columns = {line: column[1] for line in lines if (column := re.fullmatch(r"(.*\S)\s+-?[01]", line))}
    found = beam_storage.match_below(layout.annotations, "**") if columns else []
    existing = {beam_storage.path_below(layout.annotations, path) for path in found}
    ids = [columns[line] if line in columns and f"{line}.xml" not in existing else line for line in lines]
    return [_stem(name.replace("\\", "/")) if is_absolute(name) and is_image(name) else name for name in ids]


def read_annotation(entry: VocEntry | Listing) -> Iterator[Element]:
    """Yields the image of an entry and its classes; a broken annotation gives an image with a problem."""
    if isinstance(entry, Listing):
        yield make_element(entry)
        return
    if entry.problem is not None:
        yield make_element(_make_broken_image(entry, *entry.problem))
        return
    try:
        image = parse_annotation(beam_storage.read_item(entry.annotation), entry)
    except (*beam_storage.LASTING, ValueError) as error:
        image = _make_broken_image(entry, "missing_annotation", str(error))
    yield make_element(image)
    for name in dict.fromkeys(box.category for box in image.boxes if box.problem is None):
        yield make_element(Category(name, 0, name))


def parse_annotation(data: bytes, entry: VocEntry) -> Image:
    """Returns the image that an XML file describes."""
    try:
        root = fromstring(data, forbid_dtd=True)
    except DefusedXmlException as error:
        detail = f"the file contains a DTD or an entity ({type(error).__name__}); remove it"
        return _make_broken_image(entry, "unsafe_annotation", detail)
    except (ParseError, ValueError, LookupError) as error:
        return _make_broken_image(entry, "broken_annotation", str(error))
    for node in root.iter():
        # Removes the namespace.
        node.tag = node.tag.rpartition("}")[2]
    if root.tag != "annotation":
        return _make_broken_image(entry, "broken_annotation", f"expected <annotation>, got <{root.tag:.100}>")
    filename = _find_text(root, "filename") or entry.image_id
    # The image of an annotation in a subfolder is in the subfolder of the same name, or directly in the image folder.
    subfolder, stem = posixpath.split(entry.image_id)
    images = join(entry.images, subfolder) if subfolder else entry.images
    location = locate_image(images, filename, stem, dataset=entry.images)
    return Image(
        image_id=entry.image_id,
        file=0,
        row=entry.row,
        source=entry.annotation,
        filename=filename,
        path=location.path,
        stems=location.stems,
        size=_parse_size(root),
        # Some datasets, such as FAIR1M, wrap the objects in <objects>.
        packed=pack_boxes(_parse_object(node, number) for number, node in enumerate(root.iter("object"))),
        problem=location.problem,
    )


def _parse_object(node: XmlElement, number: int) -> Box:
    where = f"object {number}"
    name = _find_text(node, "name") or _find_text(node, "possibleresult/name")
    corners, is_reduced = _parse_corners(node), False
    if corners is None:
        points = _parse_points(node)
        is_reduced = bool(points)
        corners = (
            (min(y for _, y in points), min(x for x, _ in points), max(y for _, y in points), max(x for x, _ in points))
            if points
            else None
        )
    if corners is None:
        given = {side: _find_text(node, f"bndbox/{side}") for side in SIDES}
        detail = f"bndbox: expected four numbers, got {given}" if any(given.values()) else "the object has no bndbox"
        return Box("", (0, 0, 0, 0), where, problem=Problem("broken_box", detail))
    if not name:
        return Box("", (0, 0, 0, 0), where, problem=Problem("broken_box", "the object has no name"))
    return Box(name, corners, where, difficult=_find_text(node, "difficult") == "1", is_reduced=is_reduced)


def _parse_corners(node: XmlElement) -> tuple[float, float, float, float] | None:
    """Returns the corners of an upright box; None if one is missing or is not a number."""
    try:
        ymin, xmin, ymax, xmax = (float(_find_text(node, f"bndbox/{side}")) for side in SIDES)
    except ValueError:
        return None
    return ymin, xmin, ymax, xmax


def _parse_points(node: XmlElement) -> list[tuple[float, float]]:
    """Returns the corners (x, y) of a rotated box or a polygon; empty if there is none or one is not a number."""
    try:
        rotated = node.find("robndbox")
        if rotated is not None:
            cx, cy, width, height, angle = (float(_find_text(rotated, key)) for key in ("cx", "cy", "w", "h", "angle"))
            cos, sin = math.cos(angle) / 2, math.sin(angle) / 2
            halves = [(width * i, height * j) for i, j in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
            return [(cx + w * cos - h * sin, cy + w * sin + h * cos) for w, h in halves]
        polygon = node.find("polygon")
        if polygon is not None:
            values = {child.tag: float(child.text or "") for child in polygon if re.fullmatch(r"[xy]\d+", child.tag)}
            return [(values[key], values[f"y{key[1:]}"]) for key in values if key[0] == "x" and f"y{key[1:]}" in values]
        texts = [point.text or "" for point in node.iterfind("points/point")]
        return [(float(x), float(y)) for x, y in (text.split(",")[:2] for text in texts)]
    except ValueError:
        return []


def _parse_size(root: XmlElement) -> tuple[int, int] | None:
    """Returns (height, width) according to the annotation; None if one is missing or 0."""
    try:
        height, width = int(float(_find_text(root, "size/height"))), int(float(_find_text(root, "size/width")))
    except (ValueError, OverflowError):
        return None
    return (height, width) if height > 0 and width > 0 else None


def _find_text(node: XmlElement, path: str) -> str:
    return (node.findtext(path) or "").strip()


def _make_broken_image(entry: VocEntry, reason: str, detail: str) -> Image:
    return Image(entry.image_id, 0, entry.row, entry.annotation, "", "", problem=Problem(reason, detail))
