"""Writes annotations as annotation tools and public datasets store them, for images of 64 x 48 pixels.

`PER_IMAGE` and `PER_FOLDER` map each value of `--input_format` to a function that returns the text of an annotation
file: of one image, and of all images of a folder. Boxes are (xmin, ymin, xmax, ymax) in pixels, all of the same class.
"""

import json

from raw_sets import jpeg

# y 12 to 36 of 48 and x 8 to 24 of 64.
BOX = (8, 12, 24, 36)
CORNERS = [0.25, 0.125, 0.75, 0.375]
# A second box.
OTHER = (30, 6, 60, 42)
WIDTH, HEIGHT = 64, 48


def labelme(name, boxes):
    shapes = [
        {"label": "car", "points": [[x1, y1], [x2, y2]], "group_id": None, "shape_type": "rectangle", "flags": {}}
        for x1, y1, x2, y2 in boxes
    ]
    return json.dumps(
        {
            "version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": name, "imageData": None,
            "imageHeight": HEIGHT, "imageWidth": WIDTH,
        },
        indent=2,
    )  # fmt: skip


def supervisely(name, boxes):
    objects = [
        {
            "id": number, "classId": 7, "description": "", "geometryType": "rectangle", "tags": [],
            "classTitle": "car", "points": {"exterior": [[x1, y1], [x2, y2]], "interior": []},
        }
        for number, (x1, y1, x2, y2) in enumerate(boxes)
    ]  # fmt: skip
    return json.dumps({"description": "", "tags": [], "size": {"height": HEIGHT, "width": WIDTH}, "objects": objects})


def kitti(name, boxes):
    rest = "1.65 1.67 3.64 -0.65 1.71 46.70 -1.59"
    return "".join(f"car 0.00 0 -1.58 {x1}.00 {y1}.00 {x2}.00 {y2}.00 {rest}\n" for x1, y1, x2, y2 in boxes)


def dota(name, boxes):
    lines = (f"{x1}.0 {y1}.0 {x2}.0 {y1}.0 {x2}.0 {y2}.0 {x1}.0 {y2}.0 car 0\n" for x1, y1, x2, y2 in boxes)
    return "imagesource:GoogleEarth\ngsd:0.146343590398\n" + "".join(lines)


def visdrone(name, boxes):
    return "".join(f"{x1},{y1},{x2 - x1},{y2 - y1},1,4,0,0\n" for x1, y1, x2, y2 in boxes)


def create_ml(images):
    def entry(x1, y1, x2, y2):
        center = {"x": (x1 + x2) / 2, "y": (y1 + y2) / 2, "width": x2 - x1, "height": y2 - y1}
        return {"label": "car", "coordinates": center}

    return json.dumps([{"image": name, "annotations": [entry(*box) for box in own]} for name, own in images.items()])


def via(images):
    def region(x1, y1, x2, y2):
        shape = {"name": "rect", "x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
        return {"shape_attributes": shape, "region_attributes": {"type": "car"}}

    return json.dumps({
        f"{name}3000": {"filename": name, "size": 3000, "regions": [region(*box) for box in own], "file_attributes": {}}
        for name, own in images.items()
    })  # fmt: skip


def via3(images):
    files, views, metadata = {}, {}, {}
    for number, (name, own) in enumerate(images.items(), start=1):
        files[str(number)] = {"fid": str(number), "fname": name, "type": 2, "loc": 1, "src": name}
        views[str(number)] = {"fid_list": [str(number)]}
        for box, (x1, y1, x2, y2) in enumerate(own):
            metadata[f"{number}_{box}"] = {
                "vid": str(number), "flg": 0, "z": [], "xy": [2, x1, y1, x2 - x1, y2 - y1], "av": {"1": "0"},
            }  # fmt: skip
    attribute = {"aname": "class", "anchor_id": "FILE1_Z0_XY1", "type": 4, "options": {"0": "car"}}
    return json.dumps({
        "project": {"pid": "__VIA_PROJECT_ID__", "pname": "parts", "data_format_version": "3.1.1"},
        "config": {"file": {"loc_prefix": {"1": "", "2": "", "3": "", "4": ""}}},
        "attribute": {"1": attribute}, "file": files, "metadata": metadata, "view": views,
    })  # fmt: skip


def vott_asset(name, boxes):
    regions = [
        {
            "id": f"r{number}", "type": "RECTANGLE", "tags": ["car"],
            "boundingBox": {"height": y2 - y1, "width": x2 - x1, "left": x1, "top": y1},
            "points": [{"x": x1, "y": y1}, {"x": x2, "y": y1}, {"x": x2, "y": y2}, {"x": x1, "y": y2}],
        }
        for number, (x1, y1, x2, y2) in enumerate(boxes)
    ]  # fmt: skip
    asset = {
        "format": "jpg", "id": f"id of {name}", "name": name, "path": f"file:C:/data/{name}", "state": 2, "type": 1,
        "size": {"width": WIDTH, "height": HEIGHT},
    }  # fmt: skip
    return {"asset": asset, "regions": regions, "version": "2.2.0"}


def vott(images):
    assets = {f"id of {name}": vott_asset(name, own) for name, own in images.items()}
    tags = [{"name": "car", "color": "#5db300"}]
    return json.dumps({"name": "parts", "securityToken": "parts Token", "tags": tags, "assets": assets})


def label_studio(images):
    def result(number, x1, y1, x2, y2):
        percent = {
            "x": 100 * x1 / WIDTH, "y": 100 * y1 / HEIGHT,
            "width": 100 * (x2 - x1) / WIDTH, "height": 100 * (y2 - y1) / HEIGHT,
        }  # fmt: skip
        return {
            "id": f"r{number}", "type": "rectanglelabels", "from_name": "label", "to_name": "image",
            "original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0,
            "value": {**percent, "rotation": 0, "rectanglelabels": ["car"]},
        }  # fmt: skip

    return json.dumps([
        {
            "id": number, "file_upload": f"0a1b2c3d-{name}", "data": {"image": f"/data/upload/1/0a1b2c3d-{name}"},
            "annotations": [{"id": number, "was_cancelled": False, "result": [
                result(place, *box) for place, box in enumerate(own)
            ]}],
        }
        for number, (name, own) in enumerate(images.items(), start=1)
    ])  # fmt: skip


def cvat(images):
    nodes = []
    for number, (name, own) in enumerate(images.items()):
        boxes = "".join(
            f'<box label="car" source="manual" occluded="0" xtl="{x1}.00" ytl="{y1}.00" xbr="{x2}.00" ybr="{y2}.00" '
            'z_order="0"></box>'
            for x1, y1, x2, y2 in own
        )
        nodes.append(f'<image id="{number}" name="{name}" width="{WIDTH}" height="{HEIGHT}">{boxes}</image>')
    task = "<meta><task><id>1</id><name>parts</name></task><dumped>2024-01-01</dumped></meta>"
    head = '<?xml version="1.0" encoding="utf-8"?>\n'
    return f"{head}<annotations><version>1.1</version>{task}{''.join(nodes)}</annotations>\n"


def wider(images):
    lines = []
    for name, own in images.items():
        faces = [f"{x1} {y1} {x2 - x1} {y2 - y1} 0 0 0 0 0 0" for x1, y1, x2, y2 in own]
        lines += [name, str(len(own)), *(faces or ["0 0 0 0 0 0 0 0 0 0"])]
    return "".join(f"{line}\n" for line in lines)


def keras_yolo(images):
    return "".join(
        " ".join([name, *(",".join(map(str, (*box, 0))) for box in own)]) + "\n" for name, own in images.items()
    )


PER_IMAGE = {"labelme": labelme, "supervisely": supervisely, "kitti": kitti, "dota": dota, "visdrone": visdrone}
PER_FOLDER = {
    "create_ml": create_ml,
    "via": via,
    "via3": via3,
    "vott": vott,
    "label_studio": label_studio,
    "cvat": cvat,
    "wider": wider,
    "keras_yolo": keras_yolo,
}


def write(root, name, content=None):
    """Writes one file; without content an image whose pixels depend on its name."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = jpeg(sum(name.encode()) * 31 + len(name)) if content is None else content
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def write_per_image(root, input_format, annotation, image, boxes):
    """Writes an annotation and an image per entry of `boxes`, a mapping of stems to boxes.

    `annotation` and `image` are the paths of the files; `{}` in them is replaced by the stem.
    """
    for stem, own in boxes.items():
        write(root, image.format(stem))
        name = image.format(stem).rpartition("/")[2]
        write(root, annotation.format(stem), PER_IMAGE[input_format](name, own))


def write_per_folder(root, input_format, annotation, image, boxes, prefix=""):
    """Writes one annotation file and an image per entry of `boxes`; `prefix` stands before the names in the file."""
    for stem in boxes:
        write(root, image.format(stem))
    base = image.rpartition("/")[2]
    content = PER_FOLDER[input_format]({f"{prefix}{base.format(stem)}": own for stem, own in boxes.items()})
    write(root, annotation, content)
