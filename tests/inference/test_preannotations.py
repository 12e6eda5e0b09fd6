"""Detections as annotations for labeling tools: read back with our readers, and compared with the tools' formats."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from PIL import Image

from pipelines.readers.cvat_xml import parse_cvat_xml
from pipelines.readers.label_studio import parse_label_studio
from pipelines.readers.voc_xml import VocEntry, parse_annotation
from pipelines.readers.yolo_labels import parse_label
from ssd_dist.core.errors import UsageError
from ssd_dist.core.file_kinds import ANNOTATION_FORMATS
from ssd_dist.evaluation.detections import Detections
from ssd_dist.inference.preannotations import FORMATS, AnnotatedImage, check_stems, write_preannotations

CLASSES = ("cat & dog", "=bird")
WIDTH, HEIGHT = 64, 48
# (xmin, ymin, xmax, ymax) in pixels, class
OBJECTS = [((8, 12, 24, 36), 1), ((0, 0, 64, 48), 2)]


def annotate(path: str, objects=OBJECTS) -> AnnotatedImage:
    boxes = np.float32([[y0 / HEIGHT, x0 / WIDTH, y1 / HEIGHT, x1 / WIDTH] for (x0, y0, x1, y1), _ in objects])
    labels = np.int64([label for _, label in objects])
    scores = np.float32([0.9, 0.5][: len(objects)])
    return AnnotatedImage(path, HEIGHT, WIDTH, Detections(path, boxes.reshape(-1, 4), labels, scores))


@pytest.fixture
def images() -> list[AnnotatedImage]:
    return [annotate("/photos/a/1 é.jpg"), annotate("/photos/b/2.png", [])]


def expected_boxes(scale: tuple[float, float] = (1.0, 1.0)) -> list[tuple]:
    """Returns (class, (ymin, xmin, ymax, xmax)) in units of `scale` (height, width)."""
    h, w = scale
    return [
        (CLASSES[label - 1], pytest.approx((y0 / h, x0 / w, y1 / h, x1 / w), abs=1e-5))
        for (x0, y0, x1, y1), label in OBJECTS
    ]


def describe(image) -> list[tuple]:
    assert not [box.problem for box in image.boxes if box.problem]
    return [(box.category, box.corners) for box in image.boxes]


def test_every_format_of_the_flag_can_be_written() -> None:
    assert tuple(FORMATS) == ANNOTATION_FORMATS


def test_cvat(images, tmp_path) -> None:
    write_preannotations("cvat", str(tmp_path), images, CLASSES)
    data = (tmp_path / "cvat.xml").read_bytes()
    first, second = parse_cvat_xml(data)
    assert (first.filename, first.size, describe(first)) == ("a/1 é.jpg", (HEIGHT, WIDTH), expected_boxes())
    assert (second.filename, describe(second)) == ("b/2.png", [])
    # CVAT reads these attributes of a box without defaults (docs.cvat.ai: XML annotation format).
    box = ElementTree.fromstring(data).find("image/box")
    assert set(box.keys()) == {"label", "source", "occluded", "xtl", "ytl", "xbr", "ybr", "z_order"}


def test_label_studio(images, tmp_path) -> None:
    write_preannotations("label_studio", str(tmp_path), images, CLASSES)
    tasks = json.loads((tmp_path / "label_studio.json").read_text())
    assert tasks[0]["data"]["image"] == "/data/local-files/?d=a/1%20%C3%A9.jpg"
    assert tasks[0]["predictions"][0]["score"] == pytest.approx(0.7)
    # The names must be those of the labeling configuration.
    view = ElementTree.parse(tmp_path / "label_studio.xml").getroot()
    labels = view.find("RectangleLabels")
    for region in tasks[0]["predictions"][0]["result"]:
        assert (region["from_name"], region["to_name"]) == (labels.get("name"), view.find("Image").get("name"))
    assert [label.get("value") for label in labels] == list(CLASSES)
    # Our reader ignores predictions, so they are read as the annotations that a person accepts.
    accepted = [task | {"annotations": task["predictions"]} for task in tasks]
    first, second = parse_label_studio(json.dumps(accepted).encode())
    assert (first.size, describe(first)) == ((HEIGHT, WIDTH), expected_boxes((HEIGHT, WIDTH)))
    assert describe(second) == []


def test_an_image_on_a_store_keeps_its_address_in_label_studio(tmp_path) -> None:
    write_preannotations("label_studio", str(tmp_path), [annotate("gs://bucket/a/1.jpg")], CLASSES)
    assert json.loads((tmp_path / "label_studio.json").read_text())[0]["data"]["image"] == "gs://bucket/a/1.jpg"


def test_yolo(images, tmp_path) -> None:
    write_preannotations("yolo", str(tmp_path), images, CLASSES)
    folder = tmp_path / "yolo"
    text = (folder / "labels/train/a/1 é.txt").read_text()
    assert all(len(line.split()) == 5 for line in text.splitlines()), "CVAT refuses a sixth column"
    content = yaml.safe_load((folder / "data.yaml").read_text())
    assert content["names"] == {0: CLASSES[0], 1: CLASSES[1]}
    found = [(content["names"][int(box.category)], box.corners) for box in parse_label(text)]
    assert found == expected_boxes((HEIGHT, WIDTH))
    assert (folder / "labels/train/b/2.txt").read_text() == ""


def test_voc(images, tmp_path) -> None:
    write_preannotations("voc", str(tmp_path), images, CLASSES)
    photos = tmp_path / "voc" / "JPEGImages" / "a"
    photos.mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(photos / "1 é.jpg")
    path = tmp_path / "voc" / "Annotations" / "a" / "1 é.xml"
    entry = VocEntry("a/1 é", 0, str(path), str(photos.parent))
    image = parse_annotation(path.read_bytes(), entry)
    assert image.problem is None
    assert (image.path, image.size) == (str(photos / "1 é.jpg"), (HEIGHT, WIDTH))
    assert [(box.category, box.corners) for box in image.boxes] == expected_boxes()
    # Most tools convert these texts with int().
    assert {text.text.isdecimal() for text in ElementTree.parse(path).getroot().iterfind("object/bndbox/*")} == {True}


def test_coco_annotations_are_read_by_pycocotools(images, tmp_path) -> None:
    from pycocotools.coco import COCO

    write_preannotations("coco", str(tmp_path), images, CLASSES)
    coco = COCO(str(tmp_path / "coco.json"))
    assert [image["file_name"] for image in coco.loadImgs([1, 2])] == ["a/1 é.jpg", "b/2.png"]
    rows = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert [(coco.cats[row["category_id"]]["name"], row["bbox"]) for row in rows] == [
        (CLASSES[0], [8, 12, 16, 24]), (CLASSES[1], [0, 0, 64, 48]),
    ]  # fmt: skip
    assert [row["score"] for row in rows] == [0.9, 0.5]
    assert coco.getAnnIds(imgIds=[2]) == []


def test_characters_that_xml_cannot_represent_do_not_break_the_file(tmp_path) -> None:
    for kind in ("cvat", "voc", "label_studio"):
        write_preannotations(kind, str(tmp_path), [annotate("a\x01\udce9.jpg")], ("c\x00at", "d"))
    files = [path for path in tmp_path.rglob("*.xml") if ElementTree.parse(path)]
    assert len(files) == 3


def test_two_images_with_one_label_file_are_refused() -> None:
    check_stems(["coco", "cvat"], ["a/1.jpg", "a/1.png"])
    check_stems(["yolo"], ["a/1.jpg", "b/1.jpg"])
    for kind in ("yolo", "voc"):
        with pytest.raises(UsageError, match=rf"--format={kind}: 1\.jpg and 1\.png"):
            check_stems([kind], ["a/1.jpg", "a/1.png"])


def test_no_images_give_valid_files(tmp_path: Path) -> None:
    for kind in FORMATS:
        write_preannotations(kind, str(tmp_path), [], CLASSES)
