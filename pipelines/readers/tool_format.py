"""Reads formats that are described by a parser of one annotation file: where the files are, and how they become images.

    folder -> annotation files, recognised by their beginning -> image folder with the most equal names -> splits
    annotation file -> parser -> `ParsedImage` -> image

A `ToolFormat` is one such format. Files that describe one image each are parsed in parallel, one element per file. A
file that describes many images is parsed by one worker and held in memory.
"""

import posixpath
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from pipelines import beam_storage
from pipelines.annotations import Category, Element, Image, Listing, Problem, make_element, pack_boxes
from pipelines.readers.folder import Folder, is_image, list_folder
from pipelines.readers.parsed_image import ParsedImage
from pipelines.readers.read_annotations import ReadAnnotations
from pipelines.readers.sources import Source, locate_image, parent_folder, require_input
from pipelines.readers.splits import SYNONYMS, WHOLE, Found, choose_split, split_in_path
from pipelines.readers.unlisted import ImageFolder
from ssd_dist.core.errors import DataError

# How much of a file is read to recognise its format, and how many files of a folder are compared with its images.
HEAD_BYTES = 1 << 16
EXAMPLES = 20
READ_AHEAD = 16

Parser = Callable[[bytes], Iterable[ParsedImage]]


@dataclass(frozen=True)
class ToolFormat:
    """One format.

    Attributes:
      title: the tool and its export, for messages.
      suffix: suffix of the annotation files, in lower case.
      recognise: returns whether a file with this beginning is in the format.
      parse: parses a whole file; raises ValueError with a reason if the file is not in the format.
      is_per_image: whether a file describes one image, the one with its stem.
    """

    title: str
    suffix: str
    recognise: Callable[[str], bool]
    parse: Parser
    is_per_image: bool = False


@dataclass(frozen=True)
class ToolLayout:
    """The annotation files of one split.

    Attributes:
      files: paths of the files.
      folder: folder of the files, to which the ids of images are relative.
      images: folder of the images.
      is_only_owner: whether every image in `images` must be described by one of the files.
    """

    files: tuple[str, ...]
    folder: str
    images: str
    is_only_owner: bool = True


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
    layouts: list[ToolLayout] = []
    for path in source.inputs:
        found = find_splits(path, source.image_dir, tool_format)
        if found is None:
            raise DataError(f"--input={path}: no {tool_format.title} (*{tool_format.suffix}); use --input_format=auto")
        layouts += choose_split(found, source, path)
    if tool_format.is_per_image:
        return ReadAnnotations(
            partial(_list_entries, layouts, source, tool_format.parse), partial(_read_entry, parse=tool_format.parse)
        )
    documents = [_Document(number, layout) for number, layout in enumerate(layouts)]
    return ReadAnnotations(partial(list, documents), partial(_read_document, source=source, parse=tool_format.parse))


def find_splits(path: str, image_dir: str, tool_format: ToolFormat) -> Found[ToolLayout] | None:
    """Returns the splits in a folder, an annotation file or a pattern; None if no file is in the format."""
    if beam_storage.is_pattern(path):
        paths = [name for name in beam_storage.match_files(path) if _is_recognised([name], tool_format)]
        folder = list_folder(beam_storage.literal_folder(path))
    else:
        require_input(path)
        is_file = beam_storage.is_file(path)
        folder = list_folder(parent_folder(path) if is_file else path)
        paths = [path] if is_file and _is_recognised([path], tool_format) else []
        if not is_file:
            return _find_in_folder(folder, image_dir, tool_format)
    if not paths:
        return None
    names = [beam_storage.path_below(folder.path, name) for name in paths]
    layout = _make_layout(folder, names, image_dir, tool_format)
    return Found(tool_format.title, {WHOLE: (replace(layout, is_only_owner=False),)})


def _find_in_folder(folder: Folder, image_dir: str, tool_format: ToolFormat) -> Found[ToolLayout] | None:
    by_folder: dict[str, list[str]] = {}
    for name in folder.names:
        if name.lower().endswith(tool_format.suffix):
            by_folder.setdefault(posixpath.dirname(name), []).append(name)
    groups: dict[str, list[list[str]]] = {}
    for names in by_folder.values():
        if tool_format.is_per_image:
            recognised = [names] if _is_recognised(map(folder.join, names), tool_format) else []
        else:
            first = [name for name in names[:EXAMPLES] if _is_recognised([folder.join(name)], tool_format)]
            # A folder with many files in the format, such as VoTT's file per image, contains nothing else.
            rest = names[EXAMPLES:] if len(first) == EXAMPLES else []
            recognised = [[name] for name in (*first, *rest)]
        for own in recognised:
            groups.setdefault(split_in_path(posixpath.splitext(own[0])[0]), []).append(own)
    if not groups:
        return None
    splits = {
        split: tuple(_make_layout(folder, own, image_dir, tool_format) for own in _join_by_folder(lists))
        for split, lists in sorted(groups.items(), key=lambda group: _split_order(group[0]))
    }
    everything = tuple(layout for layouts in splits.values() for layout in layouts)
    images = [layout.images for layout in everything]
    splits = {
        split: tuple(replace(layout, is_only_owner=images.count(layout.images) == 1) for layout in layouts)
        for split, layouts in splits.items()
    }
    if len(splits) == 1 and WHOLE not in splits:
        splits = {**splits, WHOLE: next(iter(splits.values()))}
    if len(splits) > 1 and WHOLE in splits and len(splits[WHOLE]) < len(everything):
        # Files outside of the folders of the splits form a split of their own.
        splits["unsorted"] = splits.pop(WHOLE)
    counts = {split: sum(_count_images(folder, layout) for layout in layouts) for split, layouts in splits.items()}
    return Found(tool_format.title, splits, counts)


def _join_by_folder(lists: list[list[str]]) -> list[list[str]]:
    """Returns the files grouped by their folder, because files in one folder describe the same images."""
    joined: dict[str, list[str]] = {}
    for names in lists:
        joined.setdefault(posixpath.dirname(names[0]), []).extend(names)
    return list(joined.values())


def _split_order(split: str) -> tuple[int, str]:
    known = [name for names in SYNONYMS.values() for name in names]
    return (known.index(split) if split in known else len(known)), split


def _make_layout(folder: Folder, names: list[str], image_dir: str, tool_format: ToolFormat) -> ToolLayout:
    """Returns the layout of annotation files, with the folder that contains most of their images."""
    home = posixpath.dirname(names[0])
    paths = tuple(map(folder.join, names))
    if image_dir:
        return ToolLayout(paths, folder.join(home), image_dir)
    if tool_format.is_per_image:
        wanted = {_fold(posixpath.splitext(posixpath.basename(name))[0]) for name in names[:EXAMPLES]}
    else:
        wanted = {_fold(_base_name(name)) for path in paths for name in _read_names(path, tool_format.parse)}
    scores: dict[str, int] = {}
    for name in folder.names:
        if is_image(name) and not wanted.isdisjoint((_fold(posixpath.basename(name)), _fold(_stem(name)))):
            scores[posixpath.dirname(name)] = scores.get(posixpath.dirname(name), 0) + 1
    own_split = split_in_path(home)

    def rank(name: str) -> tuple[bool, int, int, str]:
        # The folder of the same split, then the folder with most of the images, then the nearest one.
        return split_in_path(name) != own_split, -scores[name], -len(posixpath.commonprefix([name, home])), name

    images = min(scores, key=rank, default=home)
    return ToolLayout(paths, folder.join(home), folder.join(images))


def _read_names(path: str, parse: Parser) -> list[str]:
    """Returns the names of the first images in a file."""
    try:
        return [image.filename for image, _ in zip(parse(beam_storage.read_item(path)), range(EXAMPLES), strict=False)]
    except (*beam_storage.LASTING, ValueError):
        return []


def _is_recognised(paths: Iterable[str], tool_format: ToolFormat) -> bool:
    """Returns whether the first of the files that is not empty is in the format."""
    for path, _ in zip(paths, range(EXAMPLES), strict=False):
        try:
            if not path.lower().endswith(tool_format.suffix):
                return False
            with beam_storage.open_input(path) as stream:
                head = stream.read(HEAD_BYTES).decode("utf-8-sig", "ignore").strip()
        except beam_storage.UNREADABLE:
            return False
        if head:
            return tool_format.recognise(head)
    return False


def _count_images(folder: Folder, layout: ToolLayout) -> int:
    return folder.count_images(beam_storage.path_below(folder.path, layout.images))


def _list_entries(layouts: list[ToolLayout], source: Source, parse: Parser) -> Iterator[_Entry | Listing]:
    """Yields the annotation files, the images without one, then the end of the listing."""
    row = 0
    for layout in layouts:
        for entry in _match_images(layout, parse):
            if source.includes(entry.image_id):
                yield replace(entry, row=row)
                row += 1
    yield Listing(0, row, layouts[0].folder)


def _match_images(layout: ToolLayout, parse: Parser) -> list[_Entry]:
    """Returns one entry per annotation file, with the image of its stem, and one per image that no file describes.

    Names of images are read from annotations only if their stem has no image and there are images left.
    """
    listing = list_folder(layout.images)
    paths = {name: listing.join(name) for name in listing.names if is_image(name)}
    by_name: dict[str, str] = {}
    for name in sorted(paths, reverse=True):
        by_name[_fold(_stem(name))] = by_name[_fold(posixpath.basename(name))] = name
        by_name[_fold(posixpath.splitext(name)[0])] = by_name[_fold(name)] = name
    entries, used = [], set()
    for path in layout.files:
        image_id = posixpath.splitext(beam_storage.path_below(layout.folder, path))[0]
        name = by_name.get(_fold(image_id), "")
        used.add(name)
        entries.append(_Entry(image_id, 0, path, layout.images, paths.get(name, "")))
    left = paths.keys() - used
    if not left or not layout.is_only_owner:
        return entries
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        unmatched = [entry.annotation for entry in entries if not entry.image]
        named = {
            _fold(_base_name(name))
            for names in pool.map(partial(_read_names, parse=parse), unmatched)
            for name in names
        }
    problem = Problem("not_annotated", f"no annotation in {layout.folder} describes this image file")
    return entries + [
        _Entry(name, 0, layout.folder, layout.images, paths[name], problem)
        for name in sorted(left)
        if _fold(posixpath.basename(name)) not in named
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


def _read_document(document: _Document, source: Source, parse: Parser) -> Iterator[Element]:
    """Yields the images of files that describe many images, the images that none describes, and their classes."""
    layout, rows = document.layout, 0
    folder = ImageFolder(layout.images) if layout.is_only_owner else None
    names: dict[str, None] = {}
    is_complete = True
    for path in layout.files:
        for parsed in _parse_document(path, parse):
            is_complete &= bool(parsed.filename)
            image_id = parsed.filename or f"{parsed.where} of {path}"
            image = _make_image(parsed, image_id, document.number, rows, path, layout.images)
            if folder is not None:
                folder.mark_listed(image)
            if source.includes(image_id):
                yield make_element(image)
                rows += 1
                names.update(dict.fromkeys(box.category for box in parsed.boxes if box.problem is None))
    if folder is not None and is_complete:
        for image in folder.make_images(source, document.number, rows, layout.files[0]):
            yield make_element(image)
            rows += 1
    for name in names:
        yield make_element(Category(name, 0, name))
    yield make_element(Listing(document.number, rows, layout.files[0]))


def _parse_document(path: str, parse: Parser) -> Iterator[ParsedImage]:
    try:
        yield from parse(beam_storage.read_item(path))
    except (*beam_storage.LASTING, ValueError) as error:
        yield ParsedImage("", where="a part", problem=Problem("broken_annotation", str(error)))


def _make_image(parsed: ParsedImage, image_id: str, file: int, row: int, annotation: str, images: str) -> Image:
    """Returns the image of a parsed annotation; its file is in `images` under the name in the annotation."""
    filename = parsed.filename or posixpath.basename(image_id)
    # labelme writes paths from the annotation, such as ../images/a.jpg.
    name = _base_name(filename) if filename.startswith("..") else filename
    location = locate_image(images, name, stem=_base_name(name).rpartition(".")[0])
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


def _base_name(name: str) -> str:
    return posixpath.basename(name.replace("\\", "/"))


def _stem(name: str) -> str:
    return posixpath.splitext(_base_name(name))[0]


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
