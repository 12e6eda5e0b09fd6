"""Writes detections as annotations that labeling tools import, so that people correct boxes instead of drawing them.

coco           coco.json                                   COCO annotations with scores
cvat           cvat.xml                                    "CVAT for images 1.1"
label_studio   label_studio.json, label_studio.xml         tasks with predictions; the labeling configuration
yolo           yolo/labels/train/NAME.txt, yolo/data.yaml  Ultralytics YOLO; the images belong in yolo/images/train
voc            voc/Annotations/NAME.xml                    Pascal VOC; the images belong in voc/JPEGImages

Only the detections above the score thresholds are written. Images have their path below the folder that contains all of
them, so images of different folders cannot be confused; tools look for them under this name.
"""

import json
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np
import yaml

from ssd_dist.core.errors import UsageError
from ssd_dist.core.storage import is_remote, write_text
from ssd_dist.evaluation.detections import Detections, convert_to_coco_boxes

# Characters that XML 1.0 cannot represent, not even as a reference.
_NOT_IN_XML = dict.fromkeys([*range(9), 11, 12, *range(14, 32), 0xFFFE, 0xFFFF])
# Label Studio serves files below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT under this address.
_LABEL_STUDIO_FILES = "/data/local-files/?d="


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and the detections to write.

    Attributes:
      path: path of the image file.
      height: height in pixels.
      width: width in pixels.
      found: the detections.
    """

    path: str
    height: int
    width: int
    found: Detections

    def list_boxes(self) -> Iterator[tuple[int, float, tuple[float, float, float, float]]]:
        """Yields label, score and (x, y, width, height) in pixels of each detection."""
        boxes = convert_to_coco_boxes(self.found.boxes, self.height, self.width)
        for label, score, box in zip(self.found.labels.tolist(), self.found.scores.tolist(), boxes, strict=True):
            x, y, width, height = (round(value, 2) for value in box)
            yield label, round(score, 4), (x, y, width, height)


def write_preannotations(kind: str, folder: str, images: Sequence[AnnotatedImage], classes: Sequence[str]) -> None:
    """Writes detections in the format of a labeling tool.

    Args:
      kind: a key of `FORMATS`.
      folder: the folder to write to.
      images: the images with their detections.
      classes: class names in label order.

    Raises:
      OSError: if a file cannot be written.
    """
    names = name_images([image.path for image in images])
    FORMATS[kind](Path(folder), dict(zip(names, images, strict=True)), classes)


def name_images(paths: Sequence[str]) -> list[str]:
    """Returns the path of each image below the folder that contains all of them; it is always relative.

    >>> name_images(["/photos/a/1.jpg", "/photos/b/1.jpg"]), name_images(["x/1.jpg"])
    (['a/1.jpg', 'b/1.jpg'], ['1.jpg'])
    >>> name_images(["gs://bucket/1.jpg", "/photos/1.jpg"]), name_images(["/1.jpg", "/2.jpg"])
    (['gs/bucket/1.jpg', 'photos/1.jpg'], ['1.jpg', '2.jpg'])
    """
    full = [path.replace("://", "/", 1) if is_remote(path) else os.path.abspath(path).lstrip("/") for path in paths]
    folders = [path.split("/")[:-1] for path in full]
    common = sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False)))
    return ["/".join(path.split("/")[common:]) for path in full]


def check_stems(formats: Sequence[str], paths: Sequence[str]) -> None:
    """Checks that no two images would share a file in a format with one file per image.

    Raises:
      UsageError: if two would.
    """
    stems: dict[str, str] = {}
    for name in name_images(paths):
        other = stems.setdefault(_replace_suffix(name, ""), name)
        if other != name and (kinds := [kind for kind in ("yolo", "voc") if kind in formats]):
            raise UsageError(
                f"--format={kinds[0]}: {other} and {name} would have the same annotation file; rename one of them"
            )


def _write_coco(folder: Path, images: dict[str, AnnotatedImage], classes: Sequence[str]) -> None:
    annotations = [
        {"image_id": number, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": 0, "score": score}
        for number, image in enumerate(images.values(), 1)
        for label, score, box in image.list_boxes()
    ]
    content = {
        "images": [
            {"id": number, "file_name": name, "height": image.height, "width": image.width}
            for number, (name, image) in enumerate(images.items(), 1)
        ],
        "categories": [{"id": label, "name": name} for label, name in enumerate(classes, 1)],
        "annotations": [{"id": number, **annotation} for number, annotation in enumerate(annotations, 1)],
    }
    write_text(folder / "coco.json", json.dumps(content, indent=1) + "\n")


def _write_cvat(folder: Path, images: dict[str, AnnotatedImage], classes: Sequence[str]) -> None:
    root = ElementTree.Element("annotations")
    _add_text(root, "version", "1.1")
    for number, (name, image) in enumerate(images.items()):
        size = {"width": str(image.width), "height": str(image.height)}
        node = ElementTree.SubElement(root, "image", {"id": str(number), "name": _clean_xml(name)} | size)
        for label, _, (x, y, width, height) in image.list_boxes():
            corners = {"xtl": x, "ytl": y, "xbr": x + width, "ybr": y + height}
            attributes = {"label": _clean_xml(classes[label - 1]), "source": "auto", "occluded": "0"}
            values = {key: f"{value:.2f}" for key, value in corners.items()}
            ElementTree.SubElement(node, "box", attributes | values | {"z_order": "0"})
    _write_xml(folder / "cvat.xml", root)


def _write_label_studio(folder: Path, images: dict[str, AnnotatedImage], classes: Sequence[str]) -> None:
    def describe_region(
        image: AnnotatedImage, number: int, label: int, score: float, box: Sequence[float]
    ) -> dict[str, Any]:
        x, y, width, height = box
        percent = {
            "x": 100 * x / image.width, "y": 100 * y / image.height,
            "width": 100 * width / image.width, "height": 100 * height / image.height,
        }  # fmt: skip
        return {
            "id": f"detection_{number}", "type": "rectanglelabels", "from_name": "label", "to_name": "image",
            "original_width": image.width, "original_height": image.height, "image_rotation": 0, "score": score,
            "value": {**percent, "rotation": 0, "rectanglelabels": [classes[label - 1]]},
        }  # fmt: skip

    tasks = []
    for name, image in images.items():
        regions = [describe_region(image, number, *found) for number, found in enumerate(image.list_boxes())]
        address = image.path if is_remote(image.path) else _LABEL_STUDIO_FILES + quote(name, errors="surrogateescape")
        score = float(np.mean([region["score"] for region in regions])) if regions else 0.0
        prediction = {"model_version": "ssd_dist", "score": score, "result": regions}
        tasks.append({"data": {"image": address}, "predictions": [prediction]})
    write_text(folder / "label_studio.json", json.dumps(tasks, indent=1) + "\n")
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", {"name": "image", "value": "$image"})
    labels = ElementTree.SubElement(view, "RectangleLabels", {"name": "label", "toName": "image"})
    for name in classes:
        ElementTree.SubElement(labels, "Label", {"value": _clean_xml(name)})
    _write_xml(folder / "label_studio.xml", view)


def _write_yolo(folder: Path, images: dict[str, AnnotatedImage], classes: Sequence[str]) -> None:
    for name, image in images.items():
        lines = []
        # Not the pixels above: their rounding would move the boxes of small images.
        for label, (ymin, xmin, ymax, xmax) in zip(image.found.labels, image.found.boxes, strict=True):
            values = ((xmin + xmax) / 2, (ymin + ymax) / 2, xmax - xmin, ymax - ymin)
            lines.append(" ".join([str(label - 1), *(f"{value:.6f}" for value in values)]) + "\n")
        write_text(folder / "yolo" / "labels" / "train" / _replace_suffix(name, ".txt"), "".join(lines))
    content = {"path": ".", "train": "images/train", "val": "images/train", "names": dict(enumerate(classes))}
    write_text(folder / "yolo" / "data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _write_voc(folder: Path, images: dict[str, AnnotatedImage], classes: Sequence[str]) -> None:
    for name, image in images.items():
        root = ElementTree.Element("annotation")
        _add_text(root, "folder", "JPEGImages")
        _add_text(root, "filename", posixpath.basename(name))
        size = ElementTree.SubElement(root, "size")
        for key, value in (("width", image.width), ("height", image.height), ("depth", 3)):
            _add_text(size, key, str(value))
        for label, _, (x, y, width, height) in image.list_boxes():
            node = ElementTree.SubElement(root, "object")
            _add_text(node, "name", classes[label - 1])
            for key, text in (("pose", "Unspecified"), ("truncated", "0"), ("difficult", "0")):
                _add_text(node, key, text)
            box = ElementTree.SubElement(node, "bndbox")
            # Most tools read whole numbers only.
            for key, corner in (("xmin", x), ("ymin", y), ("xmax", x + width), ("ymax", y + height)):
                _add_text(box, key, str(round(corner)))
        _write_xml(folder / "voc" / "Annotations" / _replace_suffix(name, ".xml"), root)


FORMATS: dict[str, Callable[[Path, dict[str, AnnotatedImage], Sequence[str]], None]] = {
    "coco": _write_coco,
    "cvat": _write_cvat,
    "label_studio": _write_label_studio,
    "yolo": _write_yolo,
    "voc": _write_voc,
}


def _replace_suffix(name: str, suffix: str) -> str:
    return posixpath.splitext(name)[0] + suffix


def _add_text(parent: ElementTree.Element, tag: str, text: str) -> None:
    ElementTree.SubElement(parent, tag).text = _clean_xml(text)


def _clean_xml(text: str) -> str:
    """Replaces bytes that are not UTF-8 and removes characters that XML cannot represent."""
    return text.encode("utf-8", "replace").decode().translate(_NOT_IN_XML)


def _write_xml(path: Path, root: ElementTree.Element) -> None:
    ElementTree.indent(root)
    write_text(path, ElementTree.tostring(root, encoding="unicode") + "\n")
