"""Recognizes the columns of a CSV file by its header.

Names of columns are compared in lower case without spaces and punctuation: `X_Min`, `x min` and `xmin` are the same.
A role is filled by the first of its names that occurs:

    image       filename, image_name, image_path, path, file, image, img, frame, image_id, id, ...   (`IMAGE_NAMES`)
    class       class, class_name, label, category, tag, object, class_id, ...                       (`CLASS_NAMES`)
    corners     xmin ymin xmax ymax | x1 y1 x2 y2 | x0 y0 x1 y1 | left top right bottom | ...        (`CORNERS`)
    or size     x y w h | x y width height | left top width height | xmin ymin width height | ...    (`SIZES`)
    or center   x_center y_center width height | cx cy w h | ...                                     (`CENTERS`)
    or list     bbox, one field with "[x, y, width, height]" (Kaggle)                                (`LISTS`)
    image size  width and height if they are not those of the box, image_width, img_width, ...
    split       split, set, subset, usage, partition, ml_use: if its values are names of splits
    flags       is_group_of, is_crowd; difficult

`name` is the image if there is a class column, and the class otherwise. The columns of a box may begin with bbox, box
or roi: `bbox_x`, `Roi.X1`. Without a class column, all boxes get the class `object`.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from pipelines.readers.csv_boxes import Dialect
from ssd_dist.core.spreadsheet_text import DETECTION_COLUMNS

IMAGE_NAMES = (
    *("filename", "imagefilename", "imagename", "imagefile", "imagepath", "imgname", "imgpath", "imgfile", "filepath"),
    *("path", "file", "image", "img", "frame", "imageid", "imgid", "imageuri", "gcsuri", "uri", "patientid", "id"),
)
CLASS_NAMES = (
    *("class", "classname", "label", "labelname", "category", "categoryname", "classlabel", "objectclass", "object"),
    *("objectname", "species", "tag", "annotationtag", "classtext", "classid", "labelid", "categoryid"),
)
EITHER = "name"
CORNERS = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("x1", "y1", "x2", "y2"),
    ("x0", "y0", "x1", "y1"),
    ("left", "top", "right", "bottom"),
    ("minx", "miny", "maxx", "maxy"),
    ("xtl", "ytl", "xbr", "ybr"),
    ("xstart", "ystart", "xend", "yend"),
    ("startx", "starty", "endx", "endy"),
    ("topleftx", "toplefty", "bottomrightx", "bottomrighty"),
    ("upperleftcornerx", "upperleftcornery", "lowerrightcornerx", "lowerrightcornery"),
)
SIDES = (("w", "h"), ("width", "height"))
SIZES = tuple(
    (*corner, *sides)
    for corner in (("x", "y"), ("left", "top"), ("xmin", "ymin"), ("x1", "y1"), ("topleftx", "toplefty"))
    for sides in SIDES
)
CENTERS = tuple(
    (*center, *sides)
    for center in (("xcenter", "ycenter"), ("centerx", "centery"), ("cx", "cy"), ("xc", "yc"))
    for sides in SIDES
)
LISTS = ("bbox", "box", "boundingbox")
PREFIXES = ("", "bbox", "box", "boundingbox", "roi")
IMAGE_SIZES = tuple((f"{prefix}width", f"{prefix}height") for prefix in ("image", "img", "im", "original", ""))
SPLIT_NAMES = ("split", "set", "subset", "usage", "partition", "mluse", "datasetsplit")
OPEN_IMAGES = {"imageid", "labelname", "xmin", "xmax", "ymin", "ymax"}
# Columns that accompany those of Open Images in its files of boxes.
OPEN_IMAGES_MORE = {"source", "confidence", "isgroupof"}


def match_header(header: Sequence[str]) -> Dialect | None:
    """Returns the dialect of a file with this header, or None if it has no columns for an image and a box."""
    names = [simplify(name) for name in header]
    found = _find_box(names)
    image, category = _find_image_and_class(names)
    if found is None or image is None or "maskpath" in names:
        return None
    form, places = found
    columns = {"image": image}
    if category is not None:
        columns["class"] = category
    width, height = next(
        ([names.index(name) for name in size] for size in IMAGE_SIZES if all(name in names for name in size)),
        (-1, -1),
    )
    if width >= 0 and width not in places:
        columns |= {"width": width, "height": height}
    for role, candidates in (
        ("split", SPLIT_NAMES),
        ("crowd", ("isgroupof", "iscrowd")),
        ("difficult", ("difficult", "isdifficult")),
    ):
        place = _first(names, candidates)
        if place is not None:
            columns[role] = place
    is_open_images = {*names} >= OPEN_IMAGES and bool({*names} & OPEN_IMAGES_MORE)
    return Dialect(
        tool="Open Images annotations" if is_open_images else _name_tool(names),
        columns=columns,
        places=places,
        names=tuple(header[place] for place in places),
        form="size" if form == "list" else form,
        # Spreadsheets add empty columns at the end.
        count=max(place for place, name in enumerate(header) if name) + 1,
        is_list=form == "list",
        normalized=is_open_images,
        is_protected=tuple(header) == DETECTION_COLUMNS,
    )


def simplify(name: str) -> str:
    """Returns the name of a column in lower case, without spaces and punctuation."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _name_tool(names: list[str]) -> str:
    if names == ["image", "xmin", "ymin", "xmax", "ymax", "label"]:
        return "VoTT CSV export"
    if names[:6] == ["labelname", "bboxx", "bboxy", "bboxwidth", "bboxheight", "imagename"]:
        return "makesense.ai CSV export"
    return "CSV annotations"


def _find_box(names: list[str]) -> tuple[str, tuple[int, ...]] | None:
    """Returns the form of the box and the indices of its columns, or None."""
    for form, sets in (("corners", CORNERS), ("size", SIZES), ("center", CENTERS)):
        for prefix in PREFIXES:
            for wanted in sets:
                # A column that occurs twice does not identify a corner, as in AutoML's header.
                if all(names.count(prefix + name) == 1 for name in wanted):
                    return form, tuple(names.index(prefix + name) for name in wanted)
    place = _first(names, LISTS)
    return None if place is None else ("list", (place,))


def _find_image_and_class(names: list[str]) -> tuple[int | None, int | None]:
    image, category = _first(names, IMAGE_NAMES), _first(names, CLASS_NAMES)
    either = names.index(EITHER) if EITHER in names else None
    # `id` numbers the boxes if another column contains the name of the image.
    if either is not None and category is not None and (image is None or names[image] == "id"):
        image = either
    elif category is None:
        category = either
    return image, category


def _first(names: list[str], wanted: Sequence[str]) -> int | None:
    return next((names.index(name) for name in wanted if name in names), None)


def match_automl_header(header: Sequence[str]) -> Dialect | None:
    """Recognizes AutoML's lines below a header such as set,path,label,x_min,y_min,x_max,y_min,x_max,y_max,..."""
    names = [simplify(name) for name in header]
    first = next((place for place, name in enumerate(names) if name in ("xmin", "x1")), 0)
    if first not in (2, 3) or len(names) != first + 8 or _first(names, IMAGE_NAMES) != first - 2:
        return None
    return replace(make_automl(first == 3), header_lines=1)


def make_automl(has_split: bool) -> Dialect:
    """Returns the dialect of AutoML; the first column, the split, may be omitted."""
    first = 3 if has_split else 2
    columns = {"image": first - 2, "class": first - 1} | ({"split": 0} if has_split else {})
    return Dialect(
        tool="AutoML CSV (Vertex AI, TFLite Model Maker)",
        columns=columns,
        places=tuple(range(first, first + 8)),
        names=("x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4"),
        form="vertices",
        count=first + 8,
        header_lines=0,
        normalized=True,
    )
