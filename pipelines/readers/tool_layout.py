"""Finds the annotation files, the images and the splits of a format that a parser describes.

folder -> annotation files, recognized by their beginning -> image folder with the most equal names -> splits
"""

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipelines import beam_storage
from pipelines.file_names import fold_name, stem_of
from pipelines.readers.folder import Folder, is_image, list_folder
from pipelines.readers.parsed_image import ParsedImage
from pipelines.readers.sources import parent_folder, require_input
from pipelines.readers.split_names import find_split
from pipelines.readers.splits import SYNONYMS, WHOLE, Found
from pipelines.readers.tool_files import EXAMPLES, ToolFormat, is_recognized, read_names, select_recognized
from pipelines.readers.unlisted import find_others
from pipelines.readers.yolo_config import read_class_file

# Split of the files outside of the folders of the splits.
UNSORTED = "unsorted"


@dataclass(frozen=True)
class ToolLayout:
    """The annotation files of one split.

    Attributes:
      files: paths of the files.
      folder: folder of the files, to which the names of images are relative.
      images: folder of the images.
      is_only_owner: whether every image in `images` must be described by one of the files.
      others: the other layouts with these images, in the first of them; every image must be described by a file of this
        layout or of one of them. Empty in the other layouts.
      inner: folders below `images` whose images other files describe.
      prefix: text before the name of an image in its id, which distinguishes equal names in several folders.
      classes: the class names, if a file lists them.
      splits: the splits that the files give to their images; empty if they give none.
      split: the one of `splits` to read; empty for all images.
    """

    files: tuple[str, ...]
    folder: str
    images: str
    is_only_owner: bool = True
    others: "tuple[ToolLayout, ...]" = ()
    inner: tuple[str, ...] = ()
    prefix: str = ""
    classes: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    split: str = ""

    def owns(self, path: str) -> bool:
        """Returns whether an image file in `images` must be described by one of the files and belongs to `split`."""
        if not (self.is_only_owner or self.others) or path.startswith(tuple(f"{folder}/" for folder in self.inner)):
            return False
        return not self.split or (self.find_split(path) or self.splits[0]) == self.split

    def find_split(self, path: str) -> str:
        """Returns the one of `splits` whose name a folder of an image file has; empty if there is none."""
        if not self.splits:
            return ""
        folders = fold_name(beam_storage.path_below(self.images, path)).split("/")[:-1]
        return next((split for split in self.splits if fold_name(split) in folders), "")


def find_splits(path: str, image_dir: str, tool_format: ToolFormat) -> Found[ToolLayout] | None:
    """Returns the splits in a folder, an annotation file or a pattern; None if no file is in the format."""
    if beam_storage.is_pattern(path):
        paths = [name for name in beam_storage.match_files(path) if is_recognized(name, tool_format)]
        folder = list_folder(beam_storage.literal_folder(path))
    else:
        require_input(path)
        is_file = beam_storage.is_file(path)
        folder = list_folder(parent_folder(path) if is_file else path)
        paths = [path] if is_file and is_recognized(path, tool_format) else []
        if not is_file:
            return _find_in_folder(folder, image_dir, tool_format)
    if not paths:
        return None
    names = [beam_storage.path_below(folder.path, name) for name in paths]
    layout = replace(_make_layout(folder, names, image_dir, tool_format), is_only_owner=False)
    splits = {WHOLE: (layout,)}
    return Found(tool_format.title, {**_divide(splits), **splits})


def _find_in_folder(folder: Folder, image_dir: str, tool_format: ToolFormat) -> Found[ToolLayout] | None:
    by_folder: dict[str, list[str]] = {}
    for name in folder.names:
        if name.lower().endswith(tool_format.suffix):
            by_folder.setdefault(posixpath.dirname(name), []).append(name)
    groups: dict[str, list[list[str]]] = {}
    stems = {fold_name(stem_of(name)) for name in folder.names if is_image(name)} if tool_format.is_per_image else set()
    for home, names in by_folder.items():
        if tool_format.is_per_image:
            # Other files, such as a README, are examined only if no annotation has the name of an image.
            examples = sorted(names, key=lambda name: stems.isdisjoint(_possible_stems(name)))
            is_in_format = any(is_recognized(folder.join(name), tool_format) for name in examples[:EXAMPLES])
            recognized = [names] if is_in_format else []
        else:
            recognized = [[name] for name in select_recognized(folder, names, tool_format)]
        for own in recognized:
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
    divided = _divide(splits)
    if divided:
        splits = {**divided, WHOLE: everything}
    elif len(splits) == 1 and WHOLE not in splits:
        splits = {**splits, WHOLE: next(iter(splits.values()))}
    elif len(splits) > 1 and WHOLE in splits and len(splits[WHOLE]) < len(everything):
        splits[UNSORTED] = splits.pop(WHOLE)
    counts = {
        split: _count_images(folder, layouts)
        for split, layouts in splits.items()
        # The listing does not show to which split an image in a shared folder belongs.
        if split == WHOLE or divided or not _shares_images(layouts, everything)
    }
    if divided and not all(counts.values()):
        # The folders of the images do not have the names of the splits.
        counts = {WHOLE: counts[WHOLE]}
    return Found(tool_format.title, splits, counts, notes=() if image_dir else _note_unread(folder, everything))


def _possible_stems(name: str) -> tuple[str, str]:
    """Returns the stems that the image of an annotation file may have: Supervisely appends .json to its whole name."""
    stem = stem_of(name)
    return fold_name(stem), fold_name(stem_of(stem))


def _divide(splits: Mapping[str, tuple[ToolLayout, ...]]) -> dict[str, tuple[ToolLayout, ...]]:
    """Returns the splits that the files give to their images; empty if the names of the files give splits."""
    layouts = splits.get(WHOLE, ())
    names = dict.fromkeys(name for layout in layouts for name in layout.splits)
    if len(splits) > 1 or not names:
        return {}
    divided = {
        name: tuple(replace(layout, split=name) for layout in layouts if name in layout.splits)
        for name in sorted(names, key=lambda name: _split_order(name.lower()))
    }
    rest = tuple(layout for layout in layouts if not layout.splits)
    return {**divided, UNSORTED: (*divided.get(UNSORTED, ()), *rest)} if rest else divided


def _shares_images(layouts: tuple[ToolLayout, ...], everything: tuple[ToolLayout, ...]) -> bool:
    """Returns whether layouts of other splits have images in the same folders."""
    files = {layout.files for layout in layouts}
    others = {other.images for other in everything if other.files not in files}
    return any(layout.images in others for layout in layouts)


def _count_images(folder: Folder, layouts: tuple[ToolLayout, ...]) -> int:
    """Returns the number of image files of a split."""
    homes = {_images_below(folder, layout) for layout in layouts if not layout.split}
    count = sum(map(folder.count_images, homes))
    for layout in layouts:
        if layout.split:
            listing = list_folder(layout.images)
            count += sum(
                is_image(name) and layout.find_split(listing.join(name)) == layout.split for name in listing.names
            )
    return count


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
        others=find_others(layout, everything, includes_inner=False),
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
    listed = [] if tool_format.is_per_image else [image for path in paths for image in _list_first(path, tool_format)]
    splits = tuple(dict.fromkeys(image.split for image in listed if image.split))
    if image_dir:
        return ToolLayout(paths, folder.join(home), image_dir, splits=splits)
    # Names of images by their base name, as the annotations write them.
    wanted: dict[str, str] = {}
    if tool_format.is_per_image:
        wanted = {fold_name(stem_of(name)): "" for name in names[:EXAMPLES]}
    else:
        for image in listed:
            parents, _, base = image.filename.replace("\\", "/").rpartition("/")
            other = tool_format.other_name(base)
            wanted |= {fold_name(name): parents for name in (base, other, tool_format.to_stored_name(other))}
            wanted.setdefault(fold_name(stem_of(base)), parents)
    scores: dict[str, int] = {}
    for name in filter(is_image, folder.names):
        base = posixpath.basename(name)
        keys = (fold_name(base), fold_name(stem_of(name)), fold_name(tool_format.to_stored_name(base)))
        key = next((key for key in keys if key in wanted), None)
        if key is not None:
            root = _remove_parents(posixpath.dirname(name), wanted[key])
            scores[root] = scores.get(root, 0) + 1
    own_split = find_split(f"{home}/")

    def rank(name: str) -> tuple[bool, int, int, str]:
        # The folder of the same split, then the folder with most of the images, then the nearest one.
        return find_split(f"{name}/") != own_split, -scores[name], -len(posixpath.commonprefix([name, home])), name

    images = min(scores, key=rank, default=home)
    if splits and scores:
        # Every split may have a folder of its own.
        images = posixpath.commonpath(scores)
    classes = _read_classes(folder, home, tool_format.class_files)
    return ToolLayout(paths, folder.join(home), folder.join(images), classes=classes, splits=splits)


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
            return read_class_file(folder.join(name))
    return ()


def _list_first(path: str, tool_format: ToolFormat) -> list[ParsedImage]:
    """Returns the first images of each split in a file; their objects may be missing."""
    if tool_format.list_images is None:
        return [ParsedImage(name) for name in read_names(path, tool_format.parse)]
    first: dict[str, list[ParsedImage]] = {}
    try:
        for image in tool_format.list_images(beam_storage.read_item(path)):
            own = first.setdefault(image.split, [])
            if len(own) < EXAMPLES:
                own.append(image)
    except (*beam_storage.LASTING, ValueError):
        return []
    return [image for own in first.values() for image in own]


def _images_below(folder: Folder, layout: ToolLayout) -> str:
    return "" if layout.images == folder.path else beam_storage.path_below(folder.path, layout.images)
