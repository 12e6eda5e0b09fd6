"""Reads YOLO annotations: one text file per image, `readers/yolo_labels.py` describes its lines.

    DIR/data.yaml  DIR/images/SPLIT/*  DIR/labels/SPLIT/*.txt           Ultralytics, CVAT Ultralytics YOLO
    DIR/data.yaml  DIR/SPLIT/images/*  DIR/SPLIT/labels/*.txt           Roboflow
    DIR/data.yaml  DIR/SPLIT.txt (lists of images)                      Ultralytics, CVAT
    DIR/X/any.yaml DIR/images/SPLIT/*  DIR/X/labels/SPLIT/*.txt         labels of one task, images shared by all tasks
    DIR/obj.data   DIR/obj.names  DIR/SPLIT.txt  DIR/obj_SPLIT_data/*   CVAT YOLO 1.1, Darknet: labels beside the images
    DIR/SPLIT/_darknet.labels  DIR/SPLIT/*                              Roboflow Darknet: labels beside the images
    DIR/images/*  DIR/labels/SPLIT/*.txt                                one folder of images for all splits
    DIR/classes.txt  DIR/images/*  DIR/labels/*.txt                     Label Studio, which adds notes.json
    DIR/*  DIR/classes.txt                                              LabelImg: labels beside the images

`--input` is DIR, a folder up to two levels above it, the YAML file or the .data file, and may be repeated. SPLIT is a
key of the YAML file (`train`, `val`) whose value is a folder, a list file or several of them, or the name of a folder.
`--image_dir` is the folder of the images or of the split folders. The labels of an image are searched for in the folder
with `labels` instead of `images` in its path, then beside the image. Images in subfolders are read too. An image
without a label file has no objects.

The id of an image is its path without a suffix, relative to the folder of the images; for several folders or listed
images, relative to the deepest folder that contains them all.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from pipelines import beam_storage
from pipelines.annotations import Category, Element, Image, Listing, Problem, make_element, pack_boxes
from pipelines.readers.read_annotations import ReadAnnotations
from pipelines.readers.sources import Source
from pipelines.readers.splits import Found, choose_in_inputs, choose_split
from pipelines.readers.yolo_labels import parse_label
from pipelines.readers.yolo_layout import YoloLayout, share_images
from pipelines.readers.yolo_listing import YoloEntry, list_images
from pipelines.readers.yolo_notes import note_missing_labels
from pipelines.readers.yolo_search import explain_missing, find_layouts
from pipelines.text_encoding import decode_text
from ssd_dist.core.errors import DataError


def find_splits(path: str, image_dir: str) -> Found[YoloLayout] | None:
    """Returns the splits in a folder, a YAML file or a .data file; None if it is not a YOLO dataset.

    Raises:
      DataError: if the YAML file is not valid, images or labels are missing, or there are several datasets.
    """
    found = find_layouts(path, image_dir)
    return None if found is None else replace(found, notes=(*found.notes, *note_missing_labels(found)))


def read_yolo(source: Source) -> ReadAnnotations:
    """Returns the transform that reads the source, after finding the layout of each input.

    Raises:
      DataError: if an input or its split is missing.
    """
    return ReadAnnotations(partial(list_labels, choose_layouts(source), source), read_label)


def count_annotated(found: Found[YoloLayout]) -> int:
    """Returns how many images have a label file."""
    layouts = dict.fromkeys(layout for own in found.splits.values() for layout in own)
    try:
        return len({entry.image for layout in layouts for entry in list_images(layout) if entry.image and entry.label})
    except DataError:
        # None of the listed images has a label file.
        return 0


def choose_layouts(source: Source) -> list[YoloLayout]:
    """Returns the layouts of the split in all inputs.

    Raises:
      DataError: if an input or its split is missing.
    """

    def find(path: str) -> Found[YoloLayout]:
        found = find_layouts(path, source.image_dir)
        if found is None:
            raise DataError(f"--input={path}: {explain_missing(path, source.image_dir)}")
        return found

    def choose(found: Found[YoloLayout], source: Source, path: str) -> tuple[YoloLayout, ...]:
        try:
            return _choose_by_folder(found, source) or choose_split(found, source, path)
        except DataError as error:
            raise DataError("; ".join([str(error), *found.notes])) from None

    return choose_in_inputs(source, find, share_images, choose)


def _choose_by_folder(found: Found[YoloLayout], source: Source) -> tuple[YoloLayout, ...]:
    """Returns the layouts of a split that is named by its folder, `train2017`, instead of its key in the YAML file."""
    wanted = source.split_name
    if not wanted or wanted in found.splits:
        return ()
    named = [
        layouts
        for split, layouts in found.splits.items()
        if split and all(wanted in layout.images.split("/")[-2:] and not layout.list_files for layout in layouts)
    ]
    return named[0] if named else ()


def list_labels(layouts: list[YoloLayout], source: Source) -> Iterator[YoloEntry | Category | Listing]:
    """Yields the classes, the images of all layouts, and the end of the listing.

    Raises:
      DataError: if none of the images in the list files has a label file.
    """
    prefixes: dict[tuple[str, ...], str] = {}
    for layout in layouts:
        if layout.names not in prefixes:
            prefix = prefixes[layout.names] = f"{len(prefixes)}/" if prefixes else ""
            for index, name in enumerate(layout.names):
                yield Category(f"{prefix}{index}", index, name)
    row = 0
    for layout in layouts:
        prefix = prefixes[layout.names]
        for entry in list_images(layout):
            if source.includes(entry.image_id):
                yield replace(
                    entry,
                    row=row,
                    key_prefix=prefix,
                    has_names=bool(layout.names),
                    keypoint_numbers=layout.keypoint_numbers,
                )
                row += 1
    yield Listing(0, row, layouts[0].list_files[0] if layouts[0].list_files else layouts[0].labels)


def read_label(entry: YoloEntry | Category | Listing) -> Iterator[Element]:
    """Yields the image of an entry with its boxes, and the classes if only the label files define them."""
    if not isinstance(entry, YoloEntry):
        yield make_element(entry)
        return
    packed = b""
    problem = entry.problem
    if problem is None and not entry.image:
        problem = Problem("missing_image", f"there is no image for the label file {entry.label}")
    if entry.label:
        try:
            text = decode_text(beam_storage.read_item(entry.label))
            boxes = list(parse_label(text, entry.keypoint_numbers))
        except (*beam_storage.LASTING, ValueError) as error:
            boxes = []
            problem = problem or Problem("broken_annotation", f"{entry.label}: {error}")
        if not entry.has_names:
            for number in sorted({int(box.category) for box in boxes if box.problem is None and box.category >= "0"}):
                yield make_element(Category(f"{entry.key_prefix}{number}", number, str(number)))
        packed = pack_boxes(box._replace(category=entry.key_prefix + box.category) for box in boxes)
    source = entry.label or entry.image
    yield make_element(
        Image(entry.image_id, 0, entry.row, source, entry.filename, entry.image, packed=packed, problem=problem)
    )
