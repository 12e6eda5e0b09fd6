"""YOLO: one text file an image, `class x_center y_center width height` a line, normalised; names in data.yaml.

    DIR/data.yaml  DIR/images/SPLIT/*  DIR/labels/SPLIT/*.txt         the usual layout
    DIR/data.yaml  DIR/SPLIT/images/*  DIR/SPLIT/labels/*.txt         one folder a split
    DIR/X/any.yaml DIR/images/SPLIT/*  DIR/X/labels/SPLIT/*.txt       labels of one task beside shared images

`--input` is DIR or the YAML file itself. SPLIT is a folder or a key of the YAML (`train`, `val`) that names one, or a
`.txt` list of image files, whose labels lie under `labels/` where the images lie under `images/`. Images in folders
below are read too; such an image is known by its path there, that of a list by its path below the folder of them all.
With `--split_by` all of `images/` is one set, unless `--source_split` names a SPLIT.
"""

import posixpath
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import apache_beam as beam
import yaml

from pipelines import beam_storage
from pipelines.annotations import IMAGE_SUFFIXES, Box, Category, Element, Image, Listing, Problem, keyed, pack_boxes
from pipelines.classes import first_duplicate
from pipelines.readers.sources import Source, SpreadInputs, first_folder, folder_of, locate_image, require_input
from ssd_dist.core.errors import DataError


@dataclass(frozen=True)
class YoloLayout:
    """Where one input keeps its parts; `names` are the classes in order.

    With a `list_file` the split is what it lists, by paths below `images`; `labels` is empty then. `others` are the
    folders of images and labels below these that are another split's.
    """

    images: str
    labels: str
    names: tuple[str, ...]
    list_file: str = ""
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class YoloEntry:
    """One image to read; an empty `image` or `label` is a file that does not exist."""

    image_id: str
    row: int
    filename: str
    image: str
    label: str
    problem: Problem | None = None


def read_yolo(source: Source) -> beam.PTransform:
    """The transform that reads the source; finds the layout of each input first.

    Raises:
      DataError: if an input or its split is missing, or the inputs differ in their classes.
    """
    layouts = tuple(find_layout(path, source) for path in source.inputs)
    for path, layout in zip(source.inputs, layouts, strict=True):
        if layout.names != layouts[0].names:
            raise DataError(
                f"--input={path} has other classes than {source.inputs[0]}; prepare them with one data.yaml"
            )
    return ReadYolo(layouts, source)


class ReadYolo(beam.PTransform):
    """YOLO labels -> elements."""

    def __init__(self, layouts: tuple[YoloLayout, ...], source: Source) -> None:
        super().__init__()
        self._layouts = layouts
        self._source = source

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection:
        """Lists in order, then parses in parallel."""
        return (
            begin
            | "Layouts" >> SpreadInputs([self._layouts])
            | "List labels" >> beam.FlatMap(list_labels, self._source)
            | "Spread labels" >> beam.Reshuffle()
            | "Parse labels" >> beam.FlatMap(read_label)
        )


def find_layout(path: str, source: Source) -> YoloLayout:
    """Finds the YAML file, images and labels of the split below an input.

    Raises:
      DataError: if one of them is missing.
    """
    require_input(path)
    config, content = _find_yaml(path)
    home = folder_of(config)
    root = home if path == config else path
    bases = list(dict.fromkeys((*_declared_root(home, content), home, root)))
    split = source.split_name
    named = content.get(split)
    names = _class_names(content["names"], config)
    if isinstance(named, list):
        raise DataError(
            f"{config}: {split}: expected one folder or list file, got {len(named)}; prepare them as splits"
        )
    if isinstance(named, str) and named.endswith(".txt"):
        return _find_listed(named, bases, config, names, source)
    below = named if isinstance(named, str) and beam_storage.relative_path(named) else f"images/{split}".rstrip("/")
    image_folders = [beam_storage.join(base, below) for base in bases]
    if split:
        image_folders += [beam_storage.join(base, "images", split) for base in bases]
        image_folders += [beam_storage.join(base, split, "images") for base in bases]
    elif any(isinstance(value, str) and value.endswith(".txt") for value in content.values()) and not source.image_dir:
        raise DataError(f"{config} names lists of images; --source_split says which of them --split_by is to split")
    if source.image_dir:
        image_folders = [source.image_dir]
    of_split = f" of split {split!r}" if split else ""
    images = first_folder(image_folders, f"images{of_split}", "--source_split or --image_dir names them")
    inner = below.replace("images", "labels", 1)
    label_folders = [_sibling_labels(images)]
    label_folders += [beam_storage.join(base, name) for base in bases for name in (inner, f"labels/{split}")]
    labels = first_folder(
        [folder for folder in label_folders if folder != images], f"labels{of_split}", "is this a YOLO set?"
    )
    return YoloLayout(images, labels, names, others=_other_splits(content, split, bases) if split else ())


def _other_splits(content: dict[str, Any], split: str, bases: list[str]) -> tuple[str, ...]:
    """The folders of images that the YAML names for other splits, and those of their labels."""
    named = [
        beam_storage.relative_path(value) for key, value in content.items() if key != split and isinstance(value, str)
    ]
    folders = [beam_storage.join(base, name) for base in bases for name in named if name]
    return tuple(dict.fromkeys([*folders, *map(_sibling_labels, folders)]))


def _declared_root(home: str, content: dict[str, Any]) -> tuple[str, ...]:
    """The folder that the YAML's `path:` names, if it lies beside the file or below it."""
    declared = content.get("path")
    clean = beam_storage.relative_path(declared) if isinstance(declared, str) else None
    return (beam_storage.join(home, clean),) if clean else ()


def _find_listed(named: str, bases: list[str], config: str, names: tuple[str, ...], source: Source) -> YoloLayout:
    clean = beam_storage.relative_path(named)
    for base in bases:
        if clean is not None and beam_storage.is_file(beam_storage.join(base, clean)):
            images = first_folder([source.image_dir], "images", "check --image_dir") if source.image_dir else base
            return YoloLayout(images, "", names, beam_storage.join(base, clean))
    raise DataError(f"{config} names the list {named}, which is not in {' or '.join(bases)}; put it there")


def _sibling_labels(images: str) -> str:
    """The folder that lies under `labels` as this one under `images`; itself, if it lies under none.

    What follows the word in a folder's name stays: `images_train` has `labels_train`.
    """
    parts = images.split("/")
    for index in reversed(range(len(parts))):
        if parts[index].startswith("images"):
            return "/".join([*parts[:index], "labels" + parts[index].removeprefix("images"), *parts[index + 1 :]])
    return images


def _find_yaml(path: str) -> tuple[str, dict[str, Any]]:
    if path.endswith((".yaml", ".yml")):
        candidates = [path]
    else:
        found = beam_storage.match_below(path, "*.y*ml")
        found += beam_storage.match_below(path, "*", "*.y*ml")
        candidates = sorted(found, key=lambda name: (name.count("/"), posixpath.basename(name) != "data.yaml", name))
    for candidate in candidates:
        try:
            content = yaml.safe_load(beam_storage.read_text(candidate))
        except yaml.YAMLError as error:
            raise DataError(f"{candidate} is not valid YAML: {error}") from None
        if isinstance(content, dict) and "names" in content:
            return candidate, content
    raise DataError(f"--input={path}: no data.yaml with `names:` in it or in a folder below; add one")


def _class_names(names: Any, config: str) -> tuple[str, ...]:
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DataError(f"{config}: names: the indices must be 0 to {len(names) - 1}, each once")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int) for name in names):
        raise DataError(f"{config}: names: expected a list of class names or `index: name`")
    texts = tuple(str(name) for name in names)
    twice = first_duplicate(texts)
    if twice is not None:
        raise DataError(f"{config}: names: class {twice!r} is there twice; take one out")
    return texts


def list_labels(layouts: tuple[YoloLayout, ...], source: Source) -> Iterator[YoloEntry | Category | Listing]:
    """The classes, the images of all inputs in order of their names, and the end of the listing.

    Images and labels are matched by their path without suffix, however Unicode composes it: an image without a label
    file shows nothing, a label file without an image is listed too, so that it is reported.

    Raises:
      DataError: if a list names images of which none has a label file.
    """
    for index, name in enumerate(layouts[0].names):
        yield Category(str(index), index, name)
    row = 0
    for layout in layouts:
        for entry in _listed_entries(layout) if layout.list_file else _folder_entries(layout):
            if source.keeps(entry.image_id):
                yield replace(entry, row=row)
                row += 1
    yield Listing(0, row, layouts[0].list_file or layouts[0].labels)


def _folder_entries(layout: YoloLayout) -> Iterator[YoloEntry]:
    """What the folders hold, in order of the names; two images of one stem are two entries of one id."""
    images = [path for path in _files_below(layout.images, layout) if path.lower().endswith(IMAGE_SUFFIXES)]
    texts = [path for path in _files_below(layout.labels, layout) if path.lower().endswith(".txt")]
    stems = [_stem_below(layout.images, path) for path in images]
    labels = {_stem_below(layout.labels, path): path for path in texts}
    # Some systems take a name's letters and accents apart, and archives carry both forms.
    loose = {_composed(stem): stem for stem in labels.keys() - set(stems)}
    partners = [stem if stem in labels else loose.get(_composed(stem), "") for stem in stems]
    entries = [(stem, image, labels.get(own, "")) for stem, image, own in zip(stems, images, partners, strict=True)]
    # A list of the classes, which labelling tools put beside the labels, is no label.
    lonely = labels.keys() - set(partners)
    entries += [(stem, "", labels[stem]) for stem in lonely if posixpath.basename(stem) != "classes"]
    for stem, image, label in sorted(entries):
        yield YoloEntry(stem, 0, beam_storage.path_below(layout.images, image) if image else "", image, label)


def _files_below(folder: str, layout: YoloLayout) -> list[str]:
    others = tuple(f"{other}/" for other in layout.others if other.startswith(f"{folder.rstrip('/')}/"))
    return [path for path in beam_storage.match_below(folder, "**") if not path.startswith(others)]


def _listed_entries(layout: YoloLayout) -> Iterator[YoloEntry]:
    """What the list file names, in its order; ids are paths below the folder that holds all of it."""
    lines = list(filter(None, map(str.strip, beam_storage.read_text(layout.list_file).splitlines())))
    places = [locate_image(layout.images, line) for line in lines]
    found = [beam_storage.path_below(layout.images, where.path) for where in places if where.problem is None]
    shared = beam_storage.join(layout.images, posixpath.commonpath(map(posixpath.dirname, found)) if found else "")
    folders: dict[str, dict[str, str]] = {}
    labelled = looked_at = 0
    for line, where in zip(lines, places, strict=True):
        if where.problem is not None:
            yield YoloEntry(_stem(line), 0, line, where.path, "", where.problem)
            continue
        folder = _sibling_labels(posixpath.dirname(where.path))
        if folder not in folders:
            there = beam_storage.list_files(folder)
            folders[folder] = {**{_composed(path): path for path in there}, **{path: path for path in there}}
        name = f"{folder}/{_stem(where.path)}.txt"
        label = folders[folder].get(name) or folders[folder].get(_composed(name), "")
        labelled, looked_at = labelled + bool(label), looked_at + 1
        yield YoloEntry(_stem_below(shared, where.path), 0, line, where.path, label)

    if looked_at and not labelled:
        raise DataError(
            f"{layout.list_file}: none of {looked_at} images has a label file in {' or '.join(folders)}; "
            "put the images below a folder called images, the labels below labels beside it"
        )


def _stem(path: str) -> str:
    return posixpath.basename(path).rpartition(".")[0]


def _composed(path: str) -> str:
    return unicodedata.normalize("NFC", path)


def _stem_below(folder: str, path: str) -> str:
    """The path below the folder without its suffix."""
    return posixpath.splitext(beam_storage.path_below(folder, path))[0]


def read_label(entry: YoloEntry | Category | Listing) -> Iterator[Element]:
    """The image that an entry stands for, with its boxes."""
    if not isinstance(entry, YoloEntry):
        yield keyed(entry)
        return
    packed = b""
    problem = entry.problem
    if problem is None and not entry.image:
        problem = Problem("missing_image", f"no image has the name of {entry.label}")
    if entry.label:
        try:
            packed = pack_boxes(parse_label(beam_storage.read_item(entry.label).decode("utf-8-sig")))
        except (*beam_storage.LASTING, ValueError) as error:
            problem = problem or Problem("broken_annotation", str(error))
    source = entry.label or entry.image
    yield keyed(
        Image(entry.image_id, 0, entry.row, source, entry.filename, entry.image, packed=packed, problem=problem)
    )


def parse_label(text: str) -> Iterator[Box]:
    """The boxes of a label file, one a line; a line that is none carries its problem."""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield _parse_line(line.split(), f"line {number}")


def _parse_line(fields: list[str], where: str) -> Box:
    try:
        category = int(fields[0])
        x_center, y_center, width, height = map(float, fields[1:])
    except ValueError as error:
        return Box("", (0, 0, 0, 0), where, problem=Problem("broken_box", f"expected class x y width height: {error}"))
    corners = (y_center - height / 2, x_center - width / 2, y_center + height / 2, x_center + width / 2)
    return Box(str(category), corners, where, normalized=True)
