"""Makes small datasets in every annotation format."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]


class FailingFile(io.BytesIO):
    """An open file that raises an error at the end of its data, as failing storage or a failing decoder would."""

    def __init__(self, data: bytes, error: Exception) -> None:
        super().__init__(data)
        self._error = error

    def read(self, size=-1):
        data = super().read(size)
        if not data:
            raise self._error
        return data


def jpeg(seed: int = 0, height: int = 48, width: int = 64) -> bytes:
    """Returns a small JPEG image of smooth random colors."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_files(folder, files):
    """Writes files, by relative path: None gives a different image each, texts are encoded as UTF-8."""
    folder = Path(folder)
    for seed, (name, content) in enumerate(files.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = jpeg(seed) if content is None else content
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def list_places(root):
    """Returns all places in a JSON value, as (object or array, key or index) pairs."""
    places = []

    def visit(node):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                visit(node[key])

    visit(root)
    return places


def voc_xml(filename: str, boxes, size=(48, 64)) -> str:
    """Returns a VOC annotation; boxes are (name, ymin, xmin, ymax, xmax) in pixels, size is (height, width) or None."""
    objects = "".join(
        f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin>"
        f"<xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox></object>"
        for name, ymin, xmin, ymax, xmax in boxes
    )
    claimed = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>" if size else ""
    return f"<annotation><filename>{filename}</filename>{claimed}{objects}</annotation>"


def make_voc(folder, images, splits=None):
    """Writes a dataset in the layout of the VOC devkit; images maps id -> boxes, splits name -> ids."""
    folder = Path(folder)
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for seed, (image_id, boxes) in enumerate(images.items()):
        (folder / "JPEGImages" / f"{image_id}.jpg").write_bytes(jpeg(seed))
        (folder / "Annotations" / f"{image_id}.xml").write_text(voc_xml(f"{image_id}.jpg", boxes))
    for name, ids in (splits if splits is not None else {"train": list(images)}).items():
        (folder / "ImageSets/Main" / f"{name}.txt").write_text("".join(f"{image_id}\n" for image_id in ids))
    return folder


def make_coco(folder, images, categories, split="train"):
    """Writes instances_train.json and images; images maps file name -> boxes, categories id -> name.

    Boxes are (category id, ymin, xmin, ymax, xmax) in pixels.
    """
    folder = Path(folder)
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / split).mkdir(exist_ok=True)
    content = {
        "info": {"description": "made by a test"},
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
    }
    for number, (name, boxes) in enumerate(images.items(), start=1):
        (folder / split / name).write_bytes(jpeg(number))
        content["images"].append({"id": number, "file_name": name, "height": 48, "width": 64})
        for category, ymin, xmin, ymax, xmax in boxes:
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": category,
                    "bbox": [xmin, ymin, xmax - xmin, ymax - ymin],
                    "area": (ymax - ymin) * (xmax - xmin),
                    "iscrowd": 0,
                }
            )
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


def make_yolo(folder, images, names, split="train"):
    """Writes data.yaml, images and labels; images maps stem -> lines of its label file, or None for no label file."""
    folder = Path(folder)
    (folder / "images" / split).mkdir(parents=True, exist_ok=True)
    (folder / "labels" / split).mkdir(parents=True, exist_ok=True)
    for seed, (stem, lines) in enumerate(images.items()):
        (folder / "images" / split / f"{stem}.jpg").write_bytes(jpeg(seed))
        if lines is not None:
            (folder / "labels" / split / f"{stem}.txt").write_text("".join(f"{line}\n" for line in lines))
    (folder / "data.yaml").write_text(json.dumps({"path": ".", split: f"images/{split}", "names": names}))
    return folder


def digests(folder):
    """Returns the SHA-256 of every file below a folder, by relative path."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def labeled_images(count, seed=0):
    """Returns boxes for `make_voc`: up to three per image, of three classes; every fourth image has none."""
    rng = np.random.default_rng(seed)
    images = {}
    for number in range(count):
        low = rng.integers(0, [30, 40], (number % 4, 2))
        high = low + rng.integers(5, [18, 24], (number % 4, 2))
        corners = np.concatenate([low, high], axis=1).tolist()
        images[f"image_{number:05d}"] = [("abc"[row % 3], *box) for row, box in enumerate(corners)]
    return images
