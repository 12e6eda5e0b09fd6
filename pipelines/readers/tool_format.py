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
from pipelines.readers.image_index import ImageIndex
from pipelines.readers.parsed_image import ParsedImage
from pipelines.readers.read_annotations import ReadAnnotations
from pipelines.readers.sources import Source, locate_image, parent_folder, require_input
from pipelines.readers.split_names import find_split
from pipelines.readers.splits import SYNONYMS, WHOLE, Found, choose_split
from pipelines.readers.unlisted import ImageFolder
from ssd_dist.core.errors import DataError

# How much of a file is read to recognise its format, and how many files of a folder are compared with its images.
HEAD_BYTES = 1 << 16
EXAMPLES = 20
READ_AHEAD = 16

# A function of the bytes of a file. The parsers of formats with `class_files` also take the argument `names`.
Parser = Callable[..., Iterable[ParsedImage]]


@dataclass(frozen=True)
class ToolFormat:
    """One format.

    Attributes:
      title: the tool and its export, for messages.
      suffix: suffix of the annotation files, in lower case.
      recognise: returns whether a file with this beginning is in the format.
      parse: parses a whole file; raises ValueError with a reason if the file is not in the format.
      is_per_image: whether a file describes one image, the one with its stem.
      class_files: patterns of the names of files that list the class names, one per line.
      other_name: returns the name that an image file may have instead of the name in the annotation.
    """

    title: str
    suffix: str
    recognise: Callable[[str], bool]
    parse: Parser
    is_per_image: bool = False
    class_files: tuple[str, ...] = ()
    other_name: Callable[[str], str] = str


@dataclass(frozen=True)
class ToolLayout:
    """The annotation files of one split.

    Attributes:
      files: paths of the files.
      folder: folder of the files, to which the names of images are relative.
      images: folder of the images.
      is_only_owner: whether every image in `images` must be described by one of the files.
      inner: folders below `images` whose images other files describe.
      prefix: text before the name of an image in its id, which distinguishes equal names in several folders.
      classes: the class names, if a file lists them.
    """

    files: tuple[str, ...]
    folder: str
    images: str
    is_only_owner: bool = True
    inner: tuple[str, ...] = ()
    prefix: str = ""
    classes: tuple[str, ...] = ()

    def owns(self, path: str) -> bool:
        """Returns whether an image file in `images` must be described by one of the files."""
        return self.is_only_owner and not path.startswith(tuple(f"{folder}/" for folder in self.inner))


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
            partial(_list_entries, layouts, source, tool_format), partial(_read_entry, parse=tool_format.parse)
        )
    documents = [_Document(number, layout) for number, layout in enumerate(layouts)]
    return ReadAnnotations(partial(list, documents), partial(_read_document, source=source, tool_format=tool_format))


def find_splits(path: str, image_dir: str, tool_format: ToolFormat) -> Found[ToolLayout] | None:
    """Returns the splits in a folder, an annotation file or a pattern; None if no file is in the format."""
    if beam_storage.is_pattern(path):
        paths = [name for name in beam_storage.match_files(path) if _is_recognised(name, tool_format)]
        folder = list_folder(beam_storage.literal_folder(path))
    else:
        require_input(path)
        is_file = beam_storage.is_file(path)
        folder = list_folder(parent_folder(path) if is_file else path)
        paths = [path] if is_file and _is_recognised(path, tool_format) else []
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
    stems = {_fold(_stem(name)) for name in folder.names if is_image(name)} if tool_format.is_per_image else set()
    for home, names in by_folder.items():
        if tool_format.is_per_image:
            # Other files, such as a README, are examined only if no annotation has the name of an image.
            examples = sorted(names, key=lambda name: stems.isdisjoint((_fold(_stem(name)), _fold(_stem(_stem(name))))))
            is_recognised = any(_is_recognised(folder.join(name), tool_format) for name in examples[:EXAMPLES])
            recognised = [names] if is_recognised else []
        else:
            first = [name for name in names[:EXAMPLES] if _is_recognised(folder.join(name), tool_format)]
            # A folder with many files in the format, such as VoTT's file per image, contains nothing else.
            rest = names[EXAMPLES:] if len(first) == EXAMPLES else []
            recognised = [[name] for name in (*first, *rest)]
        for own in recognised:
            # The name of a file that describes one image is the name of the image.
            split = find_split(f"{home}/" if tool_format.is_per_image else own[0])
            groups.setdefault(split, []).append(own)
    if not groups:
        return None
    splits = {
        split: tuple(_make_layout(folder, own, image_dir, tool_format) for own in _join_by_folder(lists))
        for split, lists in sorted(groups.items(), key=lambda group: _split_order(group[0]))
    }
    everything = tuple(layout for layouts in splits.values() for layout in layouts)
    splits = {
        split: tuple(_compare_with_others(layout, layouts, everything, folder.path) for layout in layouts)
        for split, layouts in splits.items()
    }
    if len(splits) == 1 and WHOLE not in splits:
        splits = {**splits, WHOLE: next(iter(splits.values()))}
    if len(splits) > 1 and WHOLE in splits and len(splits[WHOLE]) < len(everything):
        # Files outside of the folders of the splits form a split of their own.
        splits["unsorted"] = splits.pop(WHOLE)
    counts = {
        split: sum(folder.count_images(name) for name in {_images_below(folder, layout) for layout in layouts})
        for split, layouts in splits.items()
    }
    return Found(tool_format.title, splits, counts, notes=() if image_dir else _note_unread(folder, everything))


def _compare_with_others(
    layout: ToolLayout, same_split: tuple[ToolLayout, ...], everything: tuple[ToolLayout, ...], root: str
) -> ToolLayout:
    """Returns the layout with the images that other files describe, and with ids that differ from theirs."""
    images = [other.images for other in everything]
    own = [other.images for other in same_split]
    has_own_images = len(same_split) > 1 and len({*own}) == len(own)
    return replace(
        layout,
        is_only_owner=images.count(layout.images) == 1,
        inner=tuple(other for other in dict.fromkeys(images) if other.startswith(f"{layout.images}/")),
        prefix=f"{beam_storage.path_below(root, layout.folder)}/" if has_own_images and layout.folder != root else "",
    )


def _note_unread(folder: Folder, layouts: tuple[ToolLayout, ...]) -> tuple[str, ...]:
    """Returns a note on the images outside of the folders of the layouts."""
    read = {_images_below(folder, layout) for layout in layouts}
    unread: dict[str, int] = {}
    for name in folder.names:
        parent = posixpath.dirname(name)
        if is_image(name) and "" not in read and not f"{parent}/".startswith(tuple(f"{home}/" for home in read)):
            unread[parent] = unread.get(parent, 0) + 1
    if not unread:
        return ()
    places = ", ".join(f"{count} in {parent or folder.path}" for parent, count in unread.items())
    return (f"images without annotations, which are not read: {places:.200}",)


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
    # Names of images by their base name, as the annotations write them.
    wanted: dict[str, str] = {}
    if tool_format.is_per_image:
        # Supervisely adds .json to the name of the image with its suffix.
        wanted = {_fold(posixpath.splitext(posixpath.basename(name))[0]): "" for name in names[:EXAMPLES]}
    else:
        for written in (name for path in paths for name in _read_names(path, tool_format.parse)):
            parents, _, base = written.replace("\\", "/").rpartition("/")
            wanted |= {_fold(name): parents for name in (base, tool_format.other_name(base))}
            wanted.setdefault(_fold(_stem(base)), parents)
    scores: dict[str, int] = {}
    for name in filter(is_image, folder.names):
        keys = (_fold(posixpath.basename(name)), _fold(_stem(name)))
        key = next((key for key in keys if key in wanted), None)
        if key is not None:
            root = _remove_parents(posixpath.dirname(name), wanted[key])
            scores[root] = scores.get(root, 0) + 1
    own_split = find_split(f"{home}/")

    def rank(name: str) -> tuple[bool, int, int, str]:
        # The folder of the same split, then the folder with most of the images, then the nearest one.
        return find_split(f"{name}/") != own_split, -scores[name], -len(posixpath.commonprefix([name, home])), name

    images = min(scores, key=rank, default=home)
    classes = _read_classes(folder, home, tool_format.class_files)
    return ToolLayout(paths, folder.join(home), folder.join(images), classes=classes)


def _remove_parents(folder: str, parents: str) -> str:
    """Returns the folder to which a name with these parents is relative; `folder` if it is not in such folders."""
    return f"/{folder}".removesuffix(f"/{parents}").removeprefix("/") if parents else folder


def _read_classes(folder: Folder, home: str, patterns: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the class names in the nearest file that lists them, one per line."""
    places = [home]
    while places[-1]:
        places.append(posixpath.dirname(places[-1]))
    for place in places:
        for name in folder.find(*(posixpath.join(place, pattern) for pattern in patterns))[:1]:
            lines = beam_storage.read_text(folder.join(name)).splitlines()
            return tuple(filter(None, map(str.strip, lines)))
    return ()


def _read_names(path: str, parse: Parser) -> list[str]:
    """Returns the names of the first images in a file."""
    try:
        return [image.filename for image, _ in zip(parse(beam_storage.read_item(path)), range(EXAMPLES), strict=False)]
    except (*beam_storage.LASTING, ValueError):
        return []


def _is_recognised(path: str, tool_format: ToolFormat) -> bool:
    """Returns whether the beginning of a file is in the format."""
    if not path.lower().endswith(tool_format.suffix):
        return False
    try:
        head = _read_head(path)
    except beam_storage.UNREADABLE:
        return False
    return bool(head) and tool_format.recognise(head)


def _is_other_file(path: str, tool_format: ToolFormat) -> bool:
    """Returns whether a file has content that is not in the format."""
    try:
        head = _read_head(path)
    except beam_storage.UNREADABLE:
        return False
    return bool(head) and not tool_format.recognise(head)


def _read_head(path: str) -> str:
    with beam_storage.open_input(path) as stream:
        return str(stream.read(HEAD_BYTES).decode("utf-8-sig", "ignore").strip())


def _images_below(folder: Folder, layout: ToolLayout) -> str:
    return "" if layout.images == folder.path else beam_storage.path_below(folder.path, layout.images)


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

    A file without an image that is not in the format, such as a README, is no annotation. Names of images are read
    from annotations only if their stem has no image and there are images left.
    """
    listing = list_folder(layout.images)
    paths = {name: listing.join(name) for name in listing.names if is_image(name)}
    by_name: dict[str, str] = {}
    for name in sorted(paths, reverse=True):
        by_name[_fold(_stem(name))] = by_name[_fold(posixpath.basename(name))] = name
        by_name[_fold(posixpath.splitext(name)[0])] = by_name[_fold(name)] = name
    entries, used = [], set()
    for path in layout.files:
        name = posixpath.splitext(beam_storage.path_below(layout.folder, path))[0]
        found = by_name.get(_fold(name), "")
        used.add(found)
        entries.append(_Entry(layout.prefix + name, 0, path, layout.images, paths.get(found, "")))
    unmatched = [entry for entry in entries if not entry.image]
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        are_other = pool.map(partial(_is_other_file, tool_format=tool_format), [e.annotation for e in unmatched])
        others = {entry.annotation for entry, is_other in zip(unmatched, are_other, strict=True) if is_other}
        entries = [entry for entry in entries if entry.annotation not in others]
        left = [name for name in sorted(paths.keys() - used) if layout.owns(paths[name])]
        files = [entry.annotation for entry in entries if left and not entry.image]
        read_names = pool.map(partial(_read_names, parse=tool_format.parse), files)
        named = {_fold(_base_name(name)) for names in read_names for name in names}
    problem = Problem("not_annotated", f"no annotation in {layout.folder} describes this image file")
    return entries + [
        _Entry(layout.prefix + name, 0, layout.folder, layout.images, paths[name], problem)
        for name in left
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


def _read_document(document: _Document, source: Source, tool_format: ToolFormat) -> Iterator[Element]:
    """Yields the images of files that describe many images, the images that none describes, and their classes."""
    layout, rows = document.layout, 0
    parse = partial(tool_format.parse, names=layout.classes) if layout.classes else tool_format.parse
    listing = list_folder(layout.images)
    index, present = ImageIndex(listing), {listing.join(name) for name in listing.names}
    folder = ImageFolder(layout.images)
    names: dict[str, None] = {}
    unknown: Problem | None = None
    for path in layout.files:
        for parsed in _parse_document(path, parse):
            if not parsed.filename:
                unknown = unknown or parsed.problem
            image_id = layout.prefix + (parsed.filename or f"{parsed.where} of {path}")
            image = _make_image(parsed, image_id, document.number, rows, path, layout.images)
            if image.path not in present and parsed.problem is None:
                image = _search_image(image, index, listing, tool_format.other_name)
            folder.mark_listed(image)
            if source.includes(image_id):
                yield make_element(image)
                rows += 1
                names.update(dict.fromkeys(box.category for box in parsed.boxes if box.problem is None))
    for image in folder.make_images(source, document.number, rows, layout.files[0]):
        if layout.owns(image.path):
            if unknown:
                # An entry without a name may be the annotation of this image.
                detail = f"no entry has the name of this image file, and an entry has no name: {unknown.detail}"
                image = image._replace(problem=Problem("broken_annotation", detail))
            yield make_element(image._replace(row=rows))
            rows += 1
    for name in names:
        yield make_element(Category(name, 0, name))
    yield make_element(Listing(document.number, rows, layout.files[0]))


def _search_image(image: Image, index: ImageIndex, listing: Folder, other_name: Callable[[str], str]) -> Image:
    """Returns the image with the path of the only file in the folder of images whose path ends like its name."""
    for name in dict.fromkeys((image.filename, other_name(_base_name(image.filename)))):
        found = index.find(name)
        if len(found) == 1:
            return image._replace(path=listing.join(found[0]), problem=None)
    return image


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
