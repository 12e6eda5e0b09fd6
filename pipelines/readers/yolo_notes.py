"""Announces the images of a YOLO dataset without a label file, which are read as images without objects."""

import posixpath
from collections.abc import Collection, Sequence

from pipelines.readers.folder import list_folder
from pipelines.readers.splits import WHOLE, Found
from pipelines.readers.yolo_config import CLASS_FILES, NOT_LABELS
from pipelines.readers.yolo_files import list_label_paths
from pipelines.readers.yolo_layout import YoloLayout
from pipelines.readers.yolo_listing import list_images
from ssd_dist.core.errors import DataError


def note_missing_labels(found: Found[YoloLayout]) -> tuple[str, ...]:
    """Returns a note per split with images without a label file, from the listings of the folders alone.

    If labels of listed images may have other names, a second note reports text files that belong to no listed image.
    """
    names = found.names or [WHOLE]
    try:
        entries = {name: [entry for layout in found.splits[name] for entry in list_images(layout)] for name in names}
    except DataError:
        # Reported when the split is read.
        return ()
    used = {entry.label for own in entries.values() for entry in own}
    notes = []
    for name, own in entries.items():
        bare = [entry.image for entry in own if entry.image and not entry.label and not entry.problem]
        if bare:
            prefix = f"{name}: " if name else ""
            notes.append(
                f"{prefix}{len(bare)} images have no label file and are read as images without objects (e.g. {bare[0]})"
            )
            unused = _find_unused(bare, [layout for layout in found.splits[name] if layout.list_files], used)
            if unused:
                notes.append(
                    f"{prefix}{len(unused)} text files beside the labels belong to no listed image (e.g. {unused[0]}); "
                    "check that images and labels have the same names"
                )
    return tuple(notes)


def _find_unused(images: Sequence[str], layouts: Sequence[YoloLayout], used: Collection[str]) -> list[str]:
    """Returns the text files in the folders of the labels of listed images that are the label of none."""
    folders = {posixpath.dirname(path) for image in images for path in list_label_paths(image)}
    listings = [list_folder(path) for path in dict.fromkeys(layout.labels for layout in layouts)]
    known = {*used, *(path for layout in layouts for path in layout.list_files)}
    return [
        path
        for listing in listings
        for path in map(listing.join, listing.names)
        if path.lower().endswith(".txt") and posixpath.dirname(path) in folders and path not in known
        if posixpath.basename(path).lower() not in CLASS_FILES and not NOT_LABELS.fullmatch(posixpath.basename(path))
    ]
