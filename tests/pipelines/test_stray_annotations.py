"""One annotation file of another tool in a dataset does not replace the annotations of the dataset."""

import json

import pytest
from raw_sets import voc_xml
from test_fuzz_formats import MAKERS, read_all
from tool_exports import BOX, PER_FOLDER, PER_IMAGE, write

from pipelines.detection import FORMATS, detect_format

COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "height": 48, "width": 64}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 12, 16, 24]}],
    "categories": [{"id": 1, "name": "car"}],
}
# By format: the name and the content of a file that describes only the image a.jpg.
FILES = {
    **{
        name: ("a.json" if name in ("labelme", "supervisely") else "a.txt", PER_IMAGE[name]("a.jpg", [BOX]))
        for name in PER_IMAGE
    },
    **{
        name: (
            {"cvat": "export.xml", "wider": "list.txt", "keras_yolo": "list.txt"}.get(name, "export.json"),
            PER_FOLDER[name]({"a.jpg": [BOX]}),
        )
        for name in PER_FOLDER
    },
    "coco": ("result.json", json.dumps(COCO)),
    "yolo": ("a.txt", "0 0.25 0.5 0.25 0.5\n"),
    "voc": ("a.xml", voc_xml("a.jpg", [("car", 12, 8, 36, 24)])),
    "csv": ("mine.csv", "filename,class,xmin,ymin,xmax,ymax\na.jpg,car,8,12,24,36\n"),
}


def detect(folder):
    detected = detect_format([str(folder)], "")
    return detected.input_format, detected.found.notes


def summarize(input_format, folder):
    """Returns the images that are read with their numbers of boxes."""
    images, _ = read_all(input_format, folder)
    return sorted((image.image_id, len(image.boxes)) for image in images if image.problem is None)


@pytest.mark.parametrize("input_format", MAKERS)
def test_a_single_file_of_another_format_does_not_change_what_is_read(tmp_path, input_format):
    MAKERS[input_format](tmp_path)
    before = summarize(input_format, tmp_path)
    for place in ("", "images", "labels", "images/train"):
        for stray, (name, content) in FILES.items():
            path = tmp_path / place / name
            if path.parent.is_dir() and not path.exists() and stray != input_format:
                path.write_text(content)
                assert detect(tmp_path)[0] == input_format, f"{stray}: {place}/{name}"
                assert summarize(input_format, tmp_path) == before, f"{stray}: {place}/{name}"
                path.unlink()


def test_a_note_gives_the_reason(tmp_path):
    MAKERS["yolo"](tmp_path)
    write(tmp_path, "images/train/a.json", PER_IMAGE["labelme"]("a.jpg", [BOX]))
    assert detect(tmp_path) == ("yolo", ("yolo is read because it describes 3 images, and labelme 1",))


def test_the_order_decides_between_formats_that_describe_most_images(tmp_path):
    MAKERS["yolo"](tmp_path)
    for stem in "ab":
        write(tmp_path, f"images/train/{stem}.json", PER_IMAGE["labelme"](f"{stem}.jpg", [BOX]))
    assert list(FORMATS).index("labelme") < list(FORMATS).index("yolo")
    assert detect(tmp_path) == ("labelme", ())
