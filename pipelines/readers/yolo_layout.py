"""Describes where a split of a YOLO dataset is, and combines the layouts of several splits.

The splits of a dataset may share folders, so each one excludes the images of the others; joined, they are the whole
dataset. `yolo_search.py` finds the layouts.
"""

import itertools
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipelines import beam_storage
from pipelines.readers.yolo_files import is_image_part
from pipelines.text_encoding import decode_text
from ssd_dist.core.errors import DataError


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
      needs_label: whether images without a label file are not images without objects, because other splits or inputs
        use the same folder of images.
      other_labels: the folders of their labels.
      reports_unlabeled: whether images without a label file in any of these folders are rejected; set in the first
        layout of a folder of images.
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
    other_labels: tuple[str, ...] = ()
    reports_unlabeled: bool = False


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


def set_id_root(layouts: Sequence[YoloLayout]) -> tuple[YoloLayout, ...]:
    """Returns the layouts with ids relative to the deepest folder that contains all of them."""
    if len(layouts) < 2:
        return tuple(layouts)
    # posixpath.commonpath would remove a slash of gs://.
    folders = zip(*(layout.images.split("/") for layout in layouts), strict=False)
    root = "/".join(names[0] for names in itertools.takewhile(lambda names: len(set(names)) == 1, folders))
    return tuple(replace(layout, id_root=root) for layout in layouts)


def separate_splits(splits: Mapping[str, tuple[YoloLayout, ...]]) -> dict[str, tuple[YoloLayout, ...]]:
    """Returns the splits without the images of other splits in folders below or in the same folder."""
    separated = {}
    before: list[YoloLayout] = []
    for split, own in splits.items():
        others = [layout for other, layouts in splits.items() if other != split for layout in layouts]
        folders = dict.fromkeys(folder for layout in others for folder in (layout.images, layout.labels))
        separated[split] = tuple(
            replace(
                share_images(layout, others, before),
                excluded=() if layout.list_files else tuple(path for path in folders if _is_below(path, layout)),
            )
            for layout in own
        )
        before += own
    return separated


def share_images(layout: YoloLayout, others: Sequence[YoloLayout], before: Sequence[YoloLayout]) -> YoloLayout:
    """Returns a layout whose folder of images other layouts use with other labels.

    Args:
      layout: the layout.
      others: the layouts of other splits or of other inputs.
      before: those of the others that come before the layout; the first one reports images without a label file.
    """
    labels = [other.labels for other in others if other.images == layout.images and other.labels != layout.labels]
    if not labels:
        return layout
    is_first = layout.reports_unlabeled or not layout.needs_label
    return replace(
        layout,
        needs_label=True,
        other_labels=tuple(dict.fromkeys((*layout.other_labels, *labels))),
        reports_unlabeled=is_first and not any(other.images == layout.images for other in before),
    )


def _is_below(path: str, layout: YoloLayout) -> bool:
    own = (layout.images, layout.labels)
    return path not in own and path.startswith(tuple(f"{folder.rstrip('/')}/" for folder in own))


def find_unions(splits: Mapping[str, tuple[YoloLayout, ...]]) -> frozenset[str]:
    """Returns the splits whose images are those of earlier splits."""
    seen: set[tuple[str, str, tuple[str, ...]]] = set()
    unions = set()
    for split, layouts in splits.items():
        own = {(layout.images, layout.labels, layout.list_files) for layout in layouts}
        if own <= seen:
            unions.add(split)
        seen |= own
    return frozenset(unions)


def join_splits(layouts: Sequence[YoloLayout], root: str) -> tuple[YoloLayout, ...]:
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
    return set_id_root(list(dict.fromkeys(layouts)))
