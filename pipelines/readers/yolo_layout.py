"""Finds the splits of a YOLO dataset: their images, labels and class names; `readers/yolo.py` lists the layouts.

YAML file, folder names -> folders and lists of each split -> folder of the labels of each -> `YoloLayout`
"""

import posixpath
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from pipelines import beam_storage
from pipelines.readers.folder import list_folder
from pipelines.readers.sources import first_folder, parent_folder, require_input
from pipelines.readers.splits import WHOLE, Found, output_split
from pipelines.readers.yolo_config import (
    USUAL_NAMES,
    YAML_SUFFIXES,
    YoloConfig,
    find_class_file,
    find_configs,
    is_split_name,
    list_class_files,
    read_class_file,
    read_data_file,
    read_yaml_file,
)
from pipelines.readers.yolo_files import YoloFiles, is_image_part, swap_images
from pipelines.readers.yolo_labels import BOX_COLUMNS, are_labels, count_columns, decode_text
from pipelines.readers.yolo_places import Places, group_by_split, locate_splits
from ssd_dist.core.errors import DataError

# Number of label files that are read to recognise the format, out of a larger number of candidates.
SAMPLES = 8
CANDIDATES = 64
# Files of these types may be the annotations of another format.
OTHER_ANNOTATIONS = (".xml", ".json", ".csv", ".tfrecord", ".record")


@dataclass(frozen=True)
class YoloLayout:
    """One folder of images, or some lists of images, and their labels.

    Attributes:
      images: folder of the images, or the folder in which listed images are searched.
      labels: folder of the labels; may be that of the images.
      names: class names by class number; empty if the classes are named by their numbers.
      list_files: files that list the images; empty for all images of the folder.
      id_root: folder to which image ids are relative; empty with `list_files`, whose ids are relative to the deepest
        folder that contains all listed images.
      home: folder of the YAML file, which may contain the labels of listed images.
      excluded: folders below `images` and `labels` that belong to other splits.
      keypoint_numbers: numbers per object that describe keypoints.
      needs_label: whether images without a label file are omitted, because other splits use the same folder of images.
    """

    images: str
    labels: str
    names: tuple[str, ...]
    list_files: tuple[str, ...] = ()
    id_root: str = ""
    home: str = ""
    excluded: tuple[str, ...] = ()
    keypoint_numbers: int = 0
    needs_label: bool = False


def find_layouts(path: str, image_dir: str) -> Found[YoloLayout] | None:
    """Returns the splits in a folder, a YAML file or a .data file; None if it is not a YOLO dataset.

    Without a YAML or .data file, a folder is one if text files with the names of images contain lines of YOLO.

    Raises:
      DataError: if the YAML file is not valid, images or labels are missing, or there are several datasets.
    """
    if beam_storage.is_pattern(path):
        return None
    require_input(path)
    is_file = beam_storage.is_file(path)
    configs = [config] if is_file and (config := _read_config(path)) else []
    if is_file and not configs:
        return None
    folder = list_folder(configs[0].home if is_file else path)
    if not any(name.lower().endswith(".txt") for name in folder.names) and not image_dir:
        return None
    images = list_folder(first_folder([image_dir], "images", "check --image_dir")) if image_dir else folder
    files = YoloFiles(folder, images, is_file)
    for labels in (image_dir, *swap_images(image_dir)) if image_dir else ():
        files.add_labels(labels)
    return _Search(files).find(configs or find_configs(folder))


def _read_config(path: str) -> YoloConfig | None:
    if path.lower().endswith(YAML_SUFFIXES):
        return read_yaml_file(path)
    return read_data_file(path) if path.lower().endswith(".data") else None


class _Search:
    """Finds the layouts of one dataset in its files, and collects facts to announce."""

    def __init__(self, files: YoloFiles) -> None:
        self.files = files
        self.notes: list[str] = []
        self._class_files = list_class_files(files.folder)

    def find(self, configs: Sequence[YoloConfig]) -> Found[YoloLayout] | None:
        """Returns the splits; None if nothing was recognised.

        Args:
          configs: the YAML and .data files, the most likely one first.
        """
        config, located = self._choose_config(configs)
        places = {split: own for split, own in located.items() if own}
        if not any(own.lists for own in places.values()):
            places |= group_by_split(self.files, places)
        self._note_missing(config, located, places)
        splits = {split: self._make_layouts(split, own, config) for split, own in places.items()}
        if not any(splits.values()):
            splits = {WHOLE: self._make_layouts("", Places(folders=self._find_all_folders(config)), config)}
        splits = _separate({split: own for split, own in splits.items() if own})
        layouts = [layout for own in splits.values() for layout in own]
        if not self._are_labels(layouts, is_certain=bool(config.names or config.splits)):
            self._require_other_format(config)
            return None
        if not all(layout.names for layout in layouts):
            self.notes.append(
                "no class names were found (data.yaml, obj.names, classes.txt); the classes are named by their numbers"
            )
        self._note_other_images(layouts)
        unions = _find_unions(splits)
        counts = {split: sum(map(self._count_images, own)) for split, own in splits.items()}
        if WHOLE not in splits:
            parts = [layout for split, own in splits.items() if split not in unions for layout in own]
            splits = {**splits, WHOLE: _join(parts, self.files.image_root)}
        return Found(
            self._name_tool(config, layouts), splits, counts, unions, (*config.notes, *dict.fromkeys(self.notes))
        )

    def _choose_config(self, configs: Sequence[YoloConfig]) -> tuple[YoloConfig, dict[str, Places]]:
        """Returns the first file whose splits exist, and where they are.

        Raises:
          DataError: if another file describes another dataset.
        """
        located = [(config, locate_splits(config, self.files, self.notes)) for config in configs]
        usable = [(config, places) for config, places in located if any(places.values())]
        config, places = (usable or located or [(YoloConfig("", self.files.root), {})])[0]
        others = [other for other, own in usable[1:] if self._is_other(config, places, other, own)]
        is_preferred = [posixpath.basename(one.path).lower() in USUAL_NAMES for one in (config, *others)]
        names = ", ".join(beam_storage.path_below(self.files.root, one.path) for one in (config, *others))
        if others and (any(is_preferred[1:]) or not is_preferred[0]):
            raise DataError(
                f"--input={self.files.root}: the folder contains several YOLO datasets ({names:.300}); pass one of "
                "these files as --input"
            )
        if others:
            self.notes.append(f"of the files {names:.300}, the first one is used; --input selects another one")
        return config, places

    def _note_missing(self, config: YoloConfig, places: Mapping[str, Places], splits: Collection[str]) -> None:
        """Announces the folders that the YAML file names in vain."""
        found = {output_split(split) for split in splits}
        for split, own in places.items():
            values = ", ".join(own.missing)
            if own or (is_split_name(split) and output_split(split) not in found):
                fate = "does not exist or contains no images"
            else:
                fate = "does not exist; the folder of this name is read" if ".txt" in values else ""
            if values and fate:
                self.notes.append(f"{config.path}: {split}: {values:.200} {fate}")

    def _is_other(
        self, config: YoloConfig, places: Mapping[str, Places], other: YoloConfig, own: Mapping[str, Places]
    ) -> bool:
        """Returns whether another file describes other images, other classes, or other labels of the same images."""
        first, second = ({(*one.folders, *one.lists) for one in each.values() if one} for each in (places, own))
        homes = [f"{one.home}/" for one in (config, other)]
        is_task = not homes[0].startswith(homes[1]) and not homes[1].startswith(homes[0])
        has_labels = all(self.files.text_counts.get(one.home) for one in (config, other))
        return first != second or config.names != other.names or (is_task and has_labels)

    def _make_layouts(self, split: str, places: Places, config: YoloConfig) -> tuple[YoloLayout, ...]:
        """Returns the layouts of a split; a folder without labels is omitted with a note."""
        layouts = []
        for folder in dict.fromkeys(places.folders):
            labels = self.files.find_labels(folder, config.home, [split] if split else [])
            if labels:
                names = self._find_names(config, labels, folder)
                layouts.append(YoloLayout(folder, labels, names, id_root=folder))
            else:
                self.notes.append(f"{folder} is omitted: none of its images has a label file")
        layouts = list(_set_id_root(layouts))
        if places.lists:
            names = self._find_names(config, parent_folder(places.lists[0]))
            layouts.append(YoloLayout(self.files.image_root, self.files.root, names, tuple(places.lists)))
        return tuple(replace(layout, home=config.home, keypoint_numbers=config.keypoint_numbers) for layout in layouts)

    def _find_all_folders(self, config: YoloConfig) -> list[str]:
        """Returns the folders of images of a dataset without splits: those with labels, without folders below them."""
        if self.files.has_image_dir:
            return [self.files.image_root]
        found: list[str] = []
        for folder in sorted(map(_outer_folder, self.files.image_folders()), key=lambda path: path.count("/")):
            is_below = any(f"{folder}/".startswith(f"{other.rstrip('/')}/") for other in found)
            if not is_below and self.files.find_labels(folder, config.home, []):
                found.append(folder)
        return found

    def _find_names(self, config: YoloConfig, *folders: str) -> tuple[str, ...]:
        """Returns the class names of the YAML or .data file, or else of the nearest file with one name per line."""
        if config.names:
            return config.names
        near = [parent for folder in folders for parent in self._parents(folder)]
        path = find_class_file(self._class_files, [*near, *sorted(self._class_files)])
        return read_class_file(path) if path else ()

    def _parents(self, folder: str) -> list[str]:
        parents = [folder]
        while folder != self.files.root and folder.startswith(self.files.root) and "/" in folder:
            folder = posixpath.dirname(folder)
            parents.append(folder)
        return parents

    def _are_labels(self, layouts: Sequence[YoloLayout], is_certain: bool) -> bool:
        """Returns whether the label files contain lines of YOLO, by a sample of them.

        Args:
          layouts: the folders and lists of all splits.
          is_certain: whether a YAML or .data file describes the dataset, so that its labels may be empty or damaged.
        """
        texts = []
        for path in self._sample(layouts):
            try:
                texts.append(decode_text(beam_storage.read_item(path)))
            except (OSError, ValueError):
                texts.append("damaged")
            if len(texts) - texts.count("") == SAMPLES:
                break
        verdicts = [are_labels(text) for text in texts]
        if any(BOX_COLUMNS + 1 in count_columns(text) for text in texts):
            self.notes.append("the labels have a sixth number (a confidence or a track), which is ignored")
        return bool(layouts) and (is_certain or verdicts.count(True) > verdicts.count(False))

    def _sample(self, layouts: Sequence[YoloLayout]) -> list[str]:
        """Returns paths of label files from all layouts."""
        labels: list[str] = []
        for layout in layouts:
            images = list(self.files.images_below(layout.images))
            step = max(1, len(images) * len(layouts) // CANDIDATES)
            found = (self.files.find_label(path, layout.images, layout.labels) for path in images[::step])
            labels += filter(None, found)
        return labels[:: max(1, len(labels) // CANDIDATES)]

    def _require_other_format(self, config: YoloConfig) -> None:
        """Checks that a dataset without labels may be in another format.

        Raises:
          DataError: if a YAML file describes the dataset, and there are no annotations of another format.
        """
        is_yolo = bool(config.names and any(map(is_split_name, config.splits)))
        if is_yolo and not any(name.lower().endswith(OTHER_ANNOTATIONS) for name in self.files.folder.names):
            details = "; ".join(dict.fromkeys(self.notes))
            raise DataError(
                f"{config.path}: no images with label files were found; {details or 'add them'}; --image_dir is the "
                "folder of images that are elsewhere"
            )

    def _note_other_images(self, layouts: Sequence[YoloLayout]) -> None:
        """Announces images that belong to no split."""
        if any(layout.list_files for layout in layouts):
            return
        own = tuple(f"{layout.images.rstrip('/')}/" for layout in layouts)
        others = [path for path in self.files.images if not path.startswith(own)]
        if others:
            self.notes.append(f"{len(others)} images belong to no split and are omitted (e.g. {others[0]})")

    def _count_images(self, layout: YoloLayout) -> int:
        if layout.list_files:
            return sum(len(read_list(path)) for path in layout.list_files)
        excluded = [folder for folder in layout.excluded if folder.startswith(f"{layout.images}/")]
        if layout.needs_label:
            paths = self.files.images_below(layout.images)
            return sum(self.files.find_label(path, layout.images, layout.labels) is not None for path in paths)
        return self.files.image_counts[layout.images] - sum(self.files.image_counts.get(path, 0) for path in excluded)

    def _name_tool(self, config: YoloConfig, layouts: Sequence[YoloLayout]) -> str:
        """Returns the tool that wrote the dataset, by the names of its files."""
        files = {posixpath.basename(name) for name in self.files.folder.names}
        has_lists = any(layout.list_files for layout in layouts)
        if config.is_roboflow or {"README.roboflow.txt", "README.dataset.txt"} & files or "_darknet.labels" in files:
            return "Roboflow Darknet export" if "_darknet.labels" in files else "Roboflow YOLO export"
        if config.path.endswith(".data"):
            return "CVAT YOLO 1.1 export" if "obj.data" in files else "Darknet dataset"
        if config.path:
            return "Ultralytics YOLO dataset with lists of images" if has_lists else "Ultralytics YOLO dataset"
        return "Label Studio YOLO export" if {"notes.json", "classes.txt"} <= files else "YOLO labels"


def read_list(path: str) -> list[str]:
    """Returns the nonempty lines of a file that lists images.

    Raises:
      DataError: if it cannot be read.
    """
    try:
        text = decode_text(beam_storage.read_bytes(path))
    except (*beam_storage.LASTING, ValueError) as error:
        raise DataError(f"{path}: the list of images cannot be read: {error}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _outer_folder(folder: str) -> str:
    """Returns the folder of images that a folder belongs to: `images` for `images/camera1`."""
    parts = folder.split("/")
    last = next((row for row in reversed(range(len(parts))) if is_image_part(parts[row])), len(parts) - 1)
    return "/".join(parts[: last + 1])


def _set_id_root(layouts: Sequence[YoloLayout]) -> tuple[YoloLayout, ...]:
    """Returns the layouts with ids relative to the deepest folder that contains all of them."""
    if len(layouts) < 2:
        return tuple(layouts)
    root = posixpath.commonpath([layout.images for layout in layouts]) or "."
    return tuple(replace(layout, id_root=root) for layout in layouts)


def _separate(splits: Mapping[str, tuple[YoloLayout, ...]]) -> dict[str, tuple[YoloLayout, ...]]:
    """Returns the splits without the images of other splits in folders below or in the same folder."""
    separated = {}
    for split, own in splits.items():
        others = [layout for other, layouts in splits.items() if other != split for layout in layouts]
        folders = dict.fromkeys(folder for layout in others for folder in (layout.images, layout.labels))
        separated[split] = tuple(
            replace(
                layout,
                excluded=() if layout.list_files else tuple(path for path in folders if _is_below(path, layout)),
                needs_label=any(other.images == layout.images and other.labels != layout.labels for other in others),
            )
            for layout in own
        )
    return separated


def _is_below(path: str, layout: YoloLayout) -> bool:
    return any(path.startswith(f"{folder.rstrip('/')}/") for folder in (layout.images, layout.labels)) and path not in (
        *(layout.images, layout.labels),
    )


def _find_unions(splits: Mapping[str, tuple[YoloLayout, ...]]) -> frozenset[str]:
    """Returns the splits whose images are those of earlier splits."""
    seen: set[tuple[str, str, tuple[str, ...]]] = set()
    unions = set()
    for split, layouts in splits.items():
        own = {(layout.images, layout.labels, layout.list_files) for layout in layouts}
        if own <= seen:
            unions.add(split)
        seen |= own
    return frozenset(unions)


def _join(layouts: Sequence[YoloLayout], root: str) -> tuple[YoloLayout, ...]:
    """Returns the layouts of all splits as those of the whole dataset."""
    lists = [layout for layout in layouts if layout.list_files]
    folders = [layout for layout in layouts if not layout.list_files]
    joined = list(_join_folders(folders, root))
    if lists:
        names = dict.fromkeys(name for layout in lists for name in layout.list_files)
        joined.append(replace(lists[0], list_files=tuple(names)))
    return tuple(joined)


def _join_folders(layouts: Sequence[YoloLayout], root: str) -> tuple[YoloLayout, ...]:
    """Returns `images` for `images/train` and `images/val`, or else the layouts with ids relative to one folder."""
    parents = {(posixpath.dirname(layout.images), posixpath.dirname(layout.labels), layout.names) for layout in layouts}
    if len(parents) == 1 and not any(layout.needs_label for layout in layouts):
        ((images, labels, _),) = parents
        is_inside = f"{images}/".startswith(f"{root.rstrip('/')}/")
        if is_inside and is_image_part(posixpath.basename(images)) and images != labels:
            return (replace(layouts[0], images=images, labels=labels, id_root=images, excluded=()),)
    whole = [replace(layout, excluded=()) for layout in layouts]
    return _set_id_root(list(dict.fromkeys(whole)))
