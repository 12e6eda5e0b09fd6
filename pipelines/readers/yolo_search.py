"""Finds the splits of a YOLO dataset: their images, labels and class names; `readers/yolo.py` lists the layouts.

YAML file, folder names -> folders and lists of each split -> folder of the labels of each -> `YoloLayout`
"""

import posixpath
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from pipelines import beam_storage
from pipelines.readers.folder import list_folder
from pipelines.readers.image_index import ImageIndex
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
from pipelines.readers.yolo_labels import BOX_COLUMNS, are_labels, count_columns
from pipelines.readers.yolo_layout import YoloLayout, find_unions, join_splits, read_list, separate_splits, set_id_root
from pipelines.readers.yolo_places import Places, group_by_split, locate_outside, locate_splits
from pipelines.text_encoding import decode_text
from ssd_dist.core.errors import DataError

# Number of label files that are read to recognize the format, out of a larger number of candidates.
SAMPLES = 8
CANDIDATES = 64
# Files of these types may be the annotations of another format.
OTHER_ANNOTATIONS = (".xml", ".json", ".csv", ".tfrecord", ".record")


def find_layouts(path: str, image_dir: str) -> Found[YoloLayout] | None:
    """Returns the splits in a folder, a YAML file or a .data file; None if it is not a YOLO dataset.

    Without a YAML or .data file, a folder is one if text files with the names of images contain lines of YOLO.

    Raises:
      DataError: if the YAML file is not valid, images or labels are missing, or there are several datasets.
    """
    started = _start_search(path, image_dir)
    if started is None:
        return None
    search, configs = started
    return search.find(configs)


def explain_missing(path: str, image_dir: str) -> str:
    """Returns why an input contains no YOLO dataset, and how to fix it."""
    if beam_storage.is_pattern(path):
        return "a pattern is not supported for YOLO; pass the folder or its data.yaml"
    if beam_storage.is_file(path) and _read_config(path) is None:
        return "not the YAML file of a YOLO dataset, which has `names:`, nor a .data file; pass the folder or data.yaml"
    fault = find_fault(path, image_dir) or "no text files"
    return (
        f"no YOLO dataset: {fault}; pass the folder that contains images, label files and a data.yaml with `names:`, "
        "and --image_dir if the images are elsewhere"
    )


def find_fault(path: str, image_dir: str) -> str:
    """Returns why the text files of a folder are not the labels of its images; empty if there are none."""
    started = _start_search(path, image_dir)
    if started is None:
        return ""
    search, configs = started
    search.find(configs)
    return search.fault


def _start_search(path: str, image_dir: str) -> "tuple[_Search, list[YoloConfig]] | None":
    """Returns the files of an input and the files that describe the dataset; None if the input is of another kind."""
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
    try:
        return _Search(files), configs or find_configs(folder)
    except DataError:
        # A damaged data.yaml is an error only in a YOLO dataset.
        if any(files.find_label(image, files.image_root, files.root) for image in files.images):
            raise
        return None


def _read_config(path: str) -> YoloConfig | None:
    if path.lower().endswith(YAML_SUFFIXES):
        return read_yaml_file(path)
    return read_data_file(path) if path.lower().endswith(".data") else None


class _Search:
    """Finds the layouts of one dataset in its files.

    Attributes:
      files: the files of the dataset.
      notes: facts to announce.
      fault: why the files are not a YOLO dataset; empty if they are one.
    """

    def __init__(self, files: YoloFiles) -> None:
        self.files = files
        self.notes: list[str] = []
        self.fault = ""
        self._omitted: list[str] = []
        self._class_files = list_class_files(files.folder)

    def find(self, configs: Sequence[YoloConfig]) -> Found[YoloLayout] | None:
        """Returns the splits; None if nothing was recognized.

        Args:
          configs: the YAML and .data files, the most likely one first.
        """
        config, located = self._choose_config(configs)
        places = {split: own for split, own in located.items() if own}
        if not any(own.lists for own in places.values()):
            places |= group_by_split(self.files, places)
        self._note_missing(config, located, places)
        splits = {split: self._make_layouts(split, own, config) for split, own in places.items()}
        if not any(located.values()):
            splits = self._add_rest({split: own for split, own in splits.items() if own}, config)
        splits = separate_splits({split: own for split, own in splits.items() if own})
        layouts = [layout for own in splits.values() for layout in own]
        self.fault = self._find_fault(layouts, is_described=any(located.values()))
        if self.fault:
            self._require_other_format(config)
            return None
        if not all(layout.names for layout in layouts):
            self.notes.append(
                "no class names were found (data.yaml, obj.names, classes.txt); the classes are named by their numbers"
            )
        self._note_other_images(layouts)
        unions = find_unions(splits)
        counts = {split: sum(map(self._count_images, own)) for split, own in splits.items()}
        for split in [split for split, count in counts.items() if not count and any(counts.values())]:
            self.notes.append(f"split {split} is omitted, because all of its images belong to other splits")
            del splits[split], counts[split]
        if WHOLE not in splits:
            parts = [layout for split, own in splits.items() if split not in unions for layout in own]
            splits = {**splits, WHOLE: join_splits(parts, self.files.image_root)}
        return Found(
            self._name_tool(config, layouts), splits, counts, unions, (*config.notes, *dict.fromkeys(self.notes))
        )

    def _add_rest(
        self, splits: Mapping[str, tuple[YoloLayout, ...]], config: YoloConfig
    ) -> dict[str, tuple[YoloLayout, ...]]:
        """Returns the splits and the labeled images outside of them: the training split, or everything."""
        if any(output_split(split) == "train" for split in splits):
            return dict(splits)
        known = tuple(f"{layout.images}/" for own in splits.values() for layout in own)
        folders = [folder for folder in self._find_all_folders(config) if not f"{folder}/".startswith(known)]
        rest = self._make_layouts("", Places(folders=folders), config)
        if splits and rest:
            self.notes.append(f"the images outside of {', '.join(splits)} are the training split")
        return {("train" if splits else WHOLE): rest, **splits} if rest else dict(splits)

    def _choose_config(self, configs: Sequence[YoloConfig]) -> tuple[YoloConfig, dict[str, Places]]:
        """Returns the first file whose splits exist, and where they are.

        Raises:
          DataError: if another file describes another dataset.
        """
        located = [(config, locate_splits(config, self.files)) for config in configs]
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
        self.notes += locate_outside(config, places, self.files)
        return config, places

    def _note_missing(self, config: YoloConfig, places: Mapping[str, Places], splits: Collection[str]) -> None:
        """Announces the folders in the YAML file that do not exist."""
        found = {output_split(split) for split in splits}
        for split, own in places.items():
            if not own.missing or not (own or is_split_name(split)):
                continue
            is_replaced = not own and output_split(split) in found
            problem = "; the folder of this name is read" if is_replaced else " or contains no images"
            self.notes.append(f"{config.path}: {split}: {', '.join(own.missing):.200} does not exist{problem}")

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
                self._omitted.append(folder)
        layouts = list(set_id_root(layouts))
        if places.lists:
            names = self._find_names(config, parent_folder(places.lists[0]))
            layouts.append(YoloLayout(self.files.image_root, self.files.root, names, tuple(places.lists)))
        return tuple(replace(layout, home=config.home, keypoint_numbers=config.keypoint_numbers) for layout in layouts)

    def _find_all_folders(self, config: YoloConfig) -> list[str]:
        """Returns the folders of images of a dataset without splits: those with labels, without folders below them."""
        if self.files.has_image_dir:
            return [self.files.image_root]
        found: list[str] = []
        folders = {self._outer_folder(folder) for folder in self.files.image_folders()}
        for folder in sorted(folders, key=lambda path: (path.count("/"), path)):
            is_below = any(f"{folder}/".startswith(f"{other.rstrip('/')}/") for other in found)
            if not is_below and self.files.find_labels(folder, config.home, []):
                found.append(folder)
        return found

    def _outer_folder(self, folder: str) -> str:
        """Returns the folder of images that a folder belongs to: `images` for `images/camera1`."""
        parents = self._parents(folder)
        return next((parent for parent in parents[:-1] if is_image_part(posixpath.basename(parent))), folder)

    def _find_names(self, config: YoloConfig, *folders: str) -> tuple[str, ...]:
        """Returns the class names of the YAML or .data file, or else of the nearest file with one name per line."""
        if config.names:
            return config.names
        near = [parent for folder in folders for parent in self._parents(folder)]
        path = find_class_file(self._class_files, [*near, *sorted(self._class_files)])
        return read_class_file(path) if path else ()

    def _parents(self, folder: str) -> list[str]:
        """Returns a folder and those that contain it, up to the folder of the dataset."""
        parents = [folder]
        while folder != self.files.root and folder.startswith(self.files.root) and "/" in folder:
            folder = posixpath.dirname(folder)
            parents.append(folder)
        return parents

    def _find_fault(self, layouts: Sequence[YoloLayout], is_described: bool) -> str:
        """Returns why the layouts are not a YOLO dataset, by a sample of the label files; empty if they are one.

        Args:
          layouts: the folders and lists of all splits.
          is_described: whether a YAML or .data file names the splits, so that the labels may be empty or damaged.
        """
        if not layouts:
            count = len(self.files.images)
            return f"none of {count} images has a label file, a text file of the same name" if count else "no images"
        texts = {}
        for path in self._sample(layouts):
            try:
                texts[path] = decode_text(beam_storage.read_item(path))
            except (OSError, ValueError) as error:
                texts[path] = f"({error})"
            if sum(map(bool, texts.values())) == SAMPLES:
                break
        if any(BOX_COLUMNS + 1 in count_columns(text) for text in texts.values()):
            self.notes.append("the labels have a sixth number (a confidence or a track), which is ignored")
        has_names = all(layout.names for layout in layouts)
        has_lines = [path for path, text in texts.items() if are_labels(text) is not None]
        others = [path for path in has_lines if not are_labels(texts[path])]
        if is_described or (has_names and not others):
            return ""
        if 2 * len(others) >= len(has_lines):
            path = (others or list(texts) or [layouts[0].labels])[0]
            line = (texts.get(path, "").strip().splitlines() or ["an empty file"])[0]
            return f"{path}: {line!r:.100} is not a line of YOLO: class x_center y_center width height as fractions"
        if not has_names and 2 * len(self.files.folder.find("**/*.xml")) >= len(self.files.images):
            return "there are no class names, but XML annotations; add classes.txt or data.yaml to read the text files"
        return ""

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
        own = tuple(f"{folder.rstrip('/')}/" for folder in (*(one.images for one in layouts), *self._omitted))
        others = [path for path in self.files.images if not path.startswith(own)]
        if others:
            self.notes.append(f"{len(others)} images belong to no split and are omitted (e.g. {others[0]})")

    def _count_images(self, layout: YoloLayout) -> int:
        if layout.list_files:
            index = ImageIndex(list_folder(self.files.image_root))
            listed = {name for path in layout.list_files for line in read_list(path) for name in index.find(line)[:1]}
            return len(listed)
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
        return "Label Studio YOLO export" if "notes.json" in files else "YOLO labels"
