"""Reads formats that are described by a parser of one annotation file.

    annotation file -> parser -> `ParsedImage` -> image

`tool_layout.py` finds the files. Files that describe one image each are parsed in parallel, one element per file. A
file that describes many images is parsed by one worker and held in memory.
"""

import posixpath
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from pipelines import beam_storage
from pipelines.annotations import Category, Element, Image, Listing, Problem, make_element, pack_boxes
from pipelines.file_names import base_name, fold_name, stem_of
from pipelines.readers.folder import Folder, is_image, list_folder
from pipelines.readers.image_index import ImageIndex
from pipelines.readers.parsed_image import ParsedImage
from pipelines.readers.read_annotations import ReadAnnotations
from pipelines.readers.sources import Source, locate_image
from pipelines.readers.splits import Found, choose_in_inputs
from pipelines.readers.tool_files import Parser, ToolFormat, is_other_file, read_names
from pipelines.readers.tool_layout import ToolLayout, find_splits
from pipelines.readers.unlisted import ImageFolder, share_folder
from ssd_dist.core.errors import DataError

READ_AHEAD = 16
# Number of files that are read to estimate how many of them are in the format.
COUNT_EXAMPLES = 64


@dataclass(frozen=True)
class _Document:
    """A layout whose files describe many images, and its number in the listing."""

    number: int
    layout: ToolLayout


@dataclass(frozen=True)
class _Entry:
    """One file that describes one image; `image` is the path of the image with its stem, or empty."""

    image_id: str
    row: int
    annotation: str
    images: str
    image: str = ""
    problem: Problem | None = None


def read_tool_format(source: Source, tool_format: ToolFormat) -> ReadAnnotations:
    """Returns the transform that reads the source, after finding the annotation files of each input.

    Raises:
      DataError: if an input is not in the format, or the split is missing.
    """

    def find(path: str) -> Found[ToolLayout]:
        found = find_splits(path, source.image_dir, tool_format)
        if found is None:
            raise DataError(f"--input={path}: no {tool_format.title} (*{tool_format.suffix}); use --input_format=auto")
        return found

    layouts = choose_in_inputs(source, find, partial(share_folder, includes_inner=False))
    if tool_format.is_per_image:
        return ReadAnnotations(
            partial(_list_entries, layouts, source, tool_format), partial(_read_entry, parse=tool_format.parse)
        )
    documents = [_Document(number, layout) for number, layout in enumerate(layouts)]
    return ReadAnnotations(partial(list, documents), partial(_read_document, source=source, tool_format=tool_format))


def count_annotated(found: Found[ToolLayout], tool_format: ToolFormat) -> int:
    """Returns how many images the annotations describe; with one file per image, by a sample of the files."""
    files = sorted({path for layouts in found.splits.values() for layout in layouts for path in layout.files})
    if tool_format.is_per_image:
        examples = files[:: max(1, len(files) // COUNT_EXAMPLES)]
        others = sum(is_other_file(path, tool_format) for path in examples)
        return len(files) * (len(examples) - others) // len(examples)
    parse = tool_format.list_images or tool_format.parse
    return len({image.filename for path in files for image in _parse_document(path, parse) if image.filename})


def _list_entries(layouts: list[ToolLayout], source: Source, tool_format: ToolFormat) -> Iterator[_Entry | Listing]:
    """Yields the annotation files, the images without one, then the end of the listing."""
    row = 0
    for layout in layouts:
        for entry in _match_images(layout, tool_format):
            if source.includes(entry.image_id):
                yield replace(entry, row=row)
                row += 1
    yield Listing(0, row, layouts[0].folder)


def _match_images(layout: ToolLayout, tool_format: ToolFormat) -> list[_Entry]:
    """Returns one entry per annotation file, with the image of its stem, and one per image that no file describes.

    The files of `layout.others` describe images too, but have no entries. A file without an image that is not in the
    format, such as a README, is no annotation. Names of images are read from annotations only if their stem has no
    image and there are images left.
    """
    listing = list_folder(layout.images)
    paths = {name: listing.join(name) for name in listing.names if is_image(name)}
    by_name: dict[str, str] = {}
    for name in sorted(paths, reverse=True):
        by_name[fold_name(stem_of(name))] = by_name[fold_name(posixpath.basename(name))] = name
        by_name[fold_name(posixpath.splitext(name)[0])] = by_name[fold_name(name)] = name
    entries, used = [], set()
    for part in (layout, *layout.others):
        for path in part.files:
            name = posixpath.splitext(beam_storage.path_below(part.folder, path))[0]
            found = by_name.get(fold_name(name), "")
            used.add(found)
            entries.append(_Entry(part.prefix + name, 0, path, part.images, paths.get(found, "")))
    unmatched = [entry for entry in entries if not entry.image]
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        are_other = pool.map(partial(is_other_file, tool_format=tool_format), [e.annotation for e in unmatched])
        others = {entry.annotation for entry, is_other in zip(unmatched, are_other, strict=True) if is_other}
        entries = [entry for entry in entries if entry.annotation not in others]
        left = [name for name in sorted(paths.keys() - used) if layout.owns(paths[name])]
        files = [entry.annotation for entry in entries if left and not entry.image]
        names_by_file = pool.map(partial(read_names, parse=tool_format.parse), files)
        named = {fold_name(base_name(name)) for names in names_by_file for name in names}
    folders = " or ".join(dict.fromkeys(part.folder for part in (layout, *layout.others)))
    problem = Problem("not_annotated", f"no annotation in {folders:.300} describes this image file")
    own = {*layout.files}
    return [entry for entry in entries if entry.annotation in own] + [
        _Entry(layout.prefix + name, 0, layout.folder, layout.images, paths[name], problem)
        for name in left
        if fold_name(posixpath.basename(name)) not in named
    ]


def _read_entry(entry: _Entry | Listing, parse: Parser) -> Iterator[Element]:
    """Yields the image of an entry and its classes."""
    if isinstance(entry, Listing):
        yield make_element(entry)
        return
    parsed = ParsedImage("", problem=entry.problem)
    if entry.problem is None:
        try:
            found = list(parse(beam_storage.read_item(entry.annotation)))
            parsed = found[0] if found else ParsedImage("")
        except (*beam_storage.LASTING, ValueError) as error:
            parsed = ParsedImage("", problem=Problem("broken_annotation", str(error)))
    image = _make_image(parsed, entry.image_id, 0, entry.row, entry.annotation, entry.images)
    if entry.image:
        image = image._replace(filename=posixpath.basename(entry.image), path=entry.image, problem=parsed.problem)
    yield make_element(image)
    for name in dict.fromkeys(box.category for box in parsed.boxes if box.problem is None):
        yield make_element(Category(name, 0, name))


def _read_document(document: _Document, source: Source, tool_format: ToolFormat) -> Iterator[Element]:
    """Yields the images of files that describe many images, the images that none describes, and their classes."""
    layout, rows = document.layout, 0
    listing = list_folder(layout.images)
    folder = ImageFolder(layout.images)
    names: dict[str, None] = {}
    unknown: Problem | None = None
    is_described = False
    for part in (layout, *layout.others):
        for parsed, image in _list_images(part, listing, tool_format):
            is_described |= bool(parsed.filename)
            if not parsed.filename:
                unknown = unknown or parsed.problem
            folder.mark_listed(image)
            is_in_split = not layout.split or parsed.split in ("", layout.split)
            if part is layout and is_in_split and source.includes(image.image_id):
                yield make_element(image._replace(file=document.number, row=rows))
                rows += 1
                names.update(dict.fromkeys(box.category for box in parsed.boxes if box.problem is None))
    annotations = [path for part in (layout, *layout.others) for path in part.files[:1]]
    for image in folder.make_images(source, document.number, rows, annotations):
        if layout.owns(image.path):
            if unknown:
                # An entry without a name may be the annotation of this image.
                detail = f"no entry has the name of this image file, and an entry has no name: {unknown.detail}"
                image = image._replace(problem=Problem("broken_annotation", detail))
            yield make_element(image._replace(row=rows))
            rows += 1
    for name in names:
        yield make_element(Category(name, 0, name))
    broken = Problem(unknown.reason, f"{layout.files[0]}: {unknown.detail}") if unknown and not is_described else None
    yield make_element(Listing(document.number, rows, layout.files[0], broken))


def _list_images(layout: ToolLayout, listing: Folder, tool_format: ToolFormat) -> Iterator[tuple[ParsedImage, Image]]:
    """Yields the images that the files of a layout describe; `listing` is the folder of its images."""
    parse = partial(tool_format.parse, names=layout.classes) if layout.classes else tool_format.parse
    search = _ImageSearch(listing, layout, tool_format)
    present = {listing.join(name) for name in listing.names}
    for path in layout.files:
        for parsed in _parse_document(path, parse):
            image_id = layout.prefix + (parsed.filename or f"{parsed.where} of {path}")
            image = _make_image(parsed, image_id, 0, 0, path, layout.images)
            if image.path not in present and (parsed.filename or parsed.problem is None):
                image = search.find(image, parsed.split, parsed.problem)
            yield parsed, image


class _ImageSearch:
    """Finds image files whose path differs from the name in the annotation.

    Args:
      listing: the folder of images.
      layout: the layout, which defines the splits of the files.
      tool_format: the format, which defines other names of a file.
    """

    def __init__(self, listing: Folder, layout: ToolLayout, tool_format: ToolFormat) -> None:
        self._listing = listing
        self._layout = layout
        self._other_name = tool_format.other_name
        self._by_name = ImageIndex(listing)
        self._by_stored_name = ImageIndex(listing, key=tool_format.to_stored_name)

    def find(self, image: Image, split: str, problem: Problem | None) -> Image:
        """Returns the image with the path of the only file whose path ends like its name or one of its other names.

        If several files have another name of the image, it is rejected, and `stems` are these files, so that they are
        not reported as images without annotations too. A file in the folder of another split is another image.
        `problem` is that of the annotation.
        """
        paths = self._find_paths(self._by_name, image.filename, split)
        is_exact = bool(paths)
        paths = paths or self._find_paths(self._by_stored_name, self._other_name(base_name(image.filename)), split)
        if len(paths) == 1:
            return image._replace(path=paths[0], problem=problem)
        if is_exact or not paths:
            return image
        stems = tuple(posixpath.splitext(path)[0] for path in paths)
        if problem is not None:
            return image._replace(stems=stems)
        detail = f"{image.filename} may be any of these files: {', '.join(paths):.300}; give them different names"
        return image._replace(stems=stems, problem=Problem("missing_image", detail))

    def _find_paths(self, index: ImageIndex, name: str, split: str) -> list[str]:
        paths = map(self._listing.join, index.find(name))
        return [path for path in paths if self._layout.find_split(path) in ("", split)]


def _parse_document(path: str, parse: Parser) -> Iterator[ParsedImage]:
    try:
        yield from parse(beam_storage.read_item(path))
    except (*beam_storage.LASTING, ValueError) as error:
        yield ParsedImage("", where="a part", problem=Problem("broken_annotation", str(error)))


def _make_image(parsed: ParsedImage, image_id: str, file: int, row: int, annotation: str, images: str) -> Image:
    """Returns the image of a parsed annotation; its file is in `images` under the name in the annotation."""
    filename = parsed.filename or posixpath.basename(image_id)
    # labelme writes paths from the annotation, such as ../images/a.jpg.
    name = base_name(filename) if filename.startswith("..") else filename
    location = locate_image(images, name, stem=base_name(name).rpartition(".")[0])
    return Image(
        image_id=image_id,
        file=file,
        row=row,
        source=annotation,
        filename=filename,
        path=location.path,
        stems=location.stems,
        size=parsed.size,
        packed=pack_boxes(parsed.boxes),
        problem=parsed.problem or location.problem,
    )
