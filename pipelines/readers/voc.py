"""Reads Pascal VOC annotations: one XML file per image.

    DIR/Annotations/*.xml  DIR/JPEGImages/*  DIR/ImageSets/Main/SPLIT.txt      VOC devkit, CVAT
    DIR/VOC2007/...  DIR/VOC2012/...                                           several years of the devkit, merged
    DIR/Annotations/SPLIT/*.xml  DIR/JPEGImages/[SPLIT/]*                      the same without list files
    DIR/annotations/*.xml  DIR/images/*                                        Kaggle, Label Studio
    DIR/labels_PROJECT/*.xml  DIR/images/*                                     makesense
    DIR/SPLIT/annots/*.xml  DIR/SPLIT/images/*                                 one folder per split
    DIR/SPLIT/*.xml and images in the same folder                              Roboflow, LabelImg
    DIR/*.xml or a pattern of XML files                                        all files are one dataset

The annotations and images of a folder are recognized by their names and by equal stems. `voc_layout.py` finds them, and
`voc_xml.py` parses an annotation.
"""

import posixpath
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from pipelines import beam_storage
from pipelines.annotations import IMAGE_SUFFIXES, Category, Element, Listing, Problem, make_element
from pipelines.file_names import base_name, fold_address, fold_name, stem_of
from pipelines.readers.folder import is_image, list_folder
from pipelines.readers.read_annotations import ReadAnnotations
from pipelines.readers.sources import Location, Source, locate_image
from pipelines.readers.voc_layout import LISTS, VocLayout, find_layouts, is_annotation, read_list
from pipelines.readers.voc_xml import VocEntry, make_broken_image, parse_annotation

READ_AHEAD = 16


def read_voc(source: Source) -> ReadAnnotations:
    """Returns the transform that reads the source, after finding the layout of each input.

    Raises:
      DataError: if an input or its split is missing.
    """
    return ReadAnnotations(partial(list_annotations, find_layouts(source), source), read_annotation)


def list_annotations(layouts: list[VocLayout], source: Source) -> Iterator[VocEntry | Listing]:
    """Yields the annotations of all inputs in order, the images without annotation, then the end of the listing."""
    row = 0
    for layout in layouts:
        entries = _list_entries(layout)
        if layout.is_only_owner or layout.others:
            entries = _compare_with_images(layout, entries)
        for entry in entries:
            if source.includes(entry.image_id):
                yield replace(entry, row=row)
                row += 1
    yield Listing(0, row, layouts[0].annotations)


def _list_entries(layout: VocLayout) -> list[VocEntry]:
    entries = []
    own = _find_own_images(layout.images) if layout.images else {}
    for name, location in _locate_annotations(layout):
        image_id = posixpath.splitext(name)[0] if name.lower().endswith(".xml") else name
        images = layout.images or posixpath.dirname(location.path)
        image = own.get(fold_name(image_id), "")
        entries.append(VocEntry(image_id, 0, location.path or layout.list_file, images, location.problem, image))
    return entries


def _find_own_images(folder: str) -> dict[str, str]:
    """Returns the paths of the image files in a folder by their names without suffix, if one file has the name."""
    listing = list_folder(folder)
    by_stem: dict[str, list[str]] = {}
    for name in filter(is_image, listing.names):
        by_stem.setdefault(fold_name(posixpath.splitext(name)[0]), []).append(listing.join(name))
    return {stem: paths[0] for stem, paths in by_stem.items() if len(paths) == 1}


def _compare_with_images(layout: VocLayout, own: list[VocEntry]) -> list[VocEntry]:
    """Returns the annotations, without other XML files, and the image files that none describes, as rejected entries.

    An annotation describes the image with its own stem, or the one that it names. Only the annotations whose stem has
    no image are examined, and their names are read only if there are images left. The annotations of `layout.others`
    describe images too, but are not returned.
    """
    entries = [*own, *(entry for other in layout.others for entry in _list_entries(other))]
    listing = list_folder(layout.images)
    names = [name for name in listing.names if is_image(name) and not (layout.is_flat and "/" in name)]
    present = {fold_name(posixpath.splitext(name)[0]) for name in names}
    ids = [form for entry in entries for form in (entry.image_id, posixpath.basename(entry.image_id))]
    stems = {form(image_id) for image_id in ids for form in (fold_name, fold_address)}
    left = [name for name in names if fold_name(posixpath.splitext(name)[0]) not in stems]
    second = _find_second_files(names, {fold_name(entry.image_id): entry for entry in entries if not entry.problem})
    unmatched = [entry for entry in entries if fold_name(entry.image_id) not in present and not entry.problem]
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        # What a list contains is an annotation, which may be missing.
        examined = [] if layout.list_file else unmatched
        are_annotations = pool.map(is_annotation, [entry.annotation for entry in examined])
        others = [entry for entry, kind in zip(examined, are_annotations, strict=True) if kind is False]
        named = [posixpath.splitext(name)[0] for name in pool.map(_read_filename, unmatched if left else [])]
    found = {form(stem) for stem in named for form in (fold_name, fold_address)}
    # Such as the file of a project; a damaged annotation has an image with its stem.
    other_files = {entry.annotation for entry in others}
    left = [name for name in left if not {fold_name(posixpath.splitext(name)[0]), fold_name(stem_of(name))} & found]
    folders = " or ".join(dict.fromkeys(part.annotations for part in (layout, *layout.others)))
    problem = Problem("not_annotated", f"no annotation in {folders:.300} describes this image file")
    unlisted = Problem("not_listed", f"no list of {LISTS} that is read contains this image; --split_by reads all")
    existing = _list_stems(layout.annotations) if layout.list_file and left else set()
    reasons = {name: unlisted if fold_name(posixpath.splitext(name)[0]) in existing else problem for name in left}
    reasons |= dict.fromkeys(second, problem)
    return [entry for entry in own if entry.annotation not in other_files] + [
        VocEntry(listing.join(name), 0, layout.annotations, layout.images, reason) for name, reason in reasons.items()
    ]


def _list_stems(folder: str) -> set[str]:
    """Returns the names of the annotations in a folder, without suffix, in the form in which they are compared."""
    return {fold_name(posixpath.splitext(name)[0]) for name in list_folder(folder).names if name.endswith(".xml")}


def _find_second_files(names: list[str], entries: Mapping[str, VocEntry]) -> list[str]:
    """Returns the image files that share their stem with the image that an annotation describes, such as a.png.

    The annotation describes the file that it names, or else the first one by suffix.
    """
    by_stem: dict[str, list[str]] = {}
    for name in names:
        by_stem.setdefault(fold_name(posixpath.splitext(name)[0]), []).append(name)
    second = []
    for stem, files in by_stem.items():
        if len(files) > 1 and stem in entries:
            named = _read_filename(entries[stem])
            order = [stem + suffix for suffix in IMAGE_SUFFIXES]
            files.sort(key=lambda name: (posixpath.basename(name) != named, _index(order, fold_name(name)), name))
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
    return base_name(image.filename)


def _locate_annotations(layout: VocLayout) -> Iterator[tuple[str, Location]]:
    if layout.list_file:
        for name in read_list(layout):
            location = locate_image(layout.annotations, f"{name}.xml")
            yield posixpath.basename(name) if location.problem else name, location
        return
    if beam_storage.is_pattern(layout.annotations) or beam_storage.is_file(layout.annotations):
        yield from ((posixpath.basename(path), Location(path)) for path in beam_storage.match_files(layout.annotations))
        return
    # Annotations next to their images are in one folder per split; the devkit's Annotations may have subfolders.
    listing = list_folder(layout.annotations)
    for name in listing.names:
        if name.lower().endswith(".xml") and not (layout.is_flat and "/" in name):
            yield name, Location(listing.join(name))


def read_annotation(entry: VocEntry | Listing) -> Iterator[Element]:
    """Yields the image of an entry and its classes; a broken annotation gives an image with a problem."""
    if isinstance(entry, Listing):
        yield make_element(entry)
        return
    if entry.problem is not None:
        yield make_element(make_broken_image(entry, *entry.problem))
        return
    try:
        image = parse_annotation(beam_storage.read_item(entry.annotation), entry)
    except (*beam_storage.LASTING, ValueError) as error:
        image = make_broken_image(entry, "missing_annotation", str(error))
    yield make_element(image)
    for name in dict.fromkeys(box.category for box in image.boxes if box.problem is None):
        yield make_element(Category(name, 0, name))
