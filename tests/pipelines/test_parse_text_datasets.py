"""Parsers of KITTI, DOTA, VisDrone, WIDER FACE and the lists of keras-yolo3."""

import pytest
from parsed import describe, reasons

from pipelines.readers.dota import parse_dota
from pipelines.readers.keras_yolo import parse_keras_yolo
from pipelines.readers.kitti import parse_kitti
from pipelines.readers.visdrone import CATEGORIES, parse_visdrone
from pipelines.readers.wider import parse_wider


def test_kitti_reads_the_box_in_the_image_and_rejects_dont_care():
    (image,) = parse_kitti(
        b"Car 0.00 0 -1.57 599.41 156.40 629.75 189.25 2.85 2.63 12.34 0.47 1.49 69.44 -1.56\r\n"
        b"DontCare -1 -1 -10 503.89 169.71 590.61 190.13 -1 -1 -1 -1000 -1000 -1000 -10\n\n"
        b"Cyclist 0.00 0 -1.57 1 2 3\n"
        b"Pedestrian 0.00 0 -0.20 712.40 143.00 810.73 307.92\n"
    )
    assert (image.filename, reasons(image)) == ("", ["dont_care", "broken_box"])
    assert describe(image)[0] == ("Car", (156.40, 599.41, 189.25, 629.75))
    assert describe(image)[3] == ("Pedestrian", (143.00, 712.40, 307.92, 810.73))
    assert [box.where for box in image.boxes] == ["line 1", "line 2", "line 4", "line 5"]


def test_dota_reduces_rotated_boxes_and_reads_the_difficulty():
    (image,) = parse_dota(
        b"imagesource:GoogleEarth\ngsd:0.146343590398\n"
        b"2753.0 2408.0 2861.0 2385.0 2888.0 2468.0 2805.0 2502.0 plane 0\n"
        b"10 20 40 20 40 60 10 60 small-vehicle 2\n"
        b"10 20 40 20 40 60 10 60 ship\n"
        b"10 20 40 20 40 60 10 ship 1\n"
        b"10 20 40 20 40 60 10 60 storage tank 1\n"
    )
    assert describe(image)[:3] == [
        ("plane", (2385, 2753, 2502, 2888)), ("small-vehicle", (20, 10, 60, 40)), ("ship", (20, 10, 60, 40)),
    ]  # fmt: skip
    assert [box.difficult for box in image.boxes[:3]] == [False, True, False]
    assert (reasons(image), image.reduced) == (["broken_box", "broken_box"], 1)


def test_visdrone_names_the_categories_and_rejects_ignored_regions():
    (image,) = parse_visdrone(
        b"684,8,273,116,0,0,0,0\n406,119,265,70,1,4,0,1,\n255,22,119,128,0,11,0,0\n1,2,3,4,1,12,0,0\n1,2,3,4,1,x,0,0\n"
    )
    assert reasons(image) == ["ignored_region", "ignored_region", "broken_box", "broken_box"]
    assert describe(image)[1] == ("car", (119, 406, 189, 671))
    assert (len(CATEGORIES), CATEGORIES[1], CATEGORIES[10]) == (12, "pedestrian", "motor")


WIDER = b"""0--Parade/0_Parade_marchingband_1_849.jpg
1
449 330 122 149 0 0 0 0 0 0
0--Parade/0_Parade_Parade_0_452.jpg
0
0 0 0 0 0 0 0 0 0 0
0--Parade/0_Parade_marchingband_1_799.jpg
3
78 221 7 8 2 0 0 0 0 0
78 238 14 17 2 0 0 1 0 0
x 238 14 17 2 0 0 0 0 0
"""


def test_wider_reads_faces_and_images_without_faces():
    first, empty, third = parse_wider(WIDER)
    assert (first.filename, describe(first)) == (
        "0--Parade/0_Parade_marchingband_1_849.jpg", [("face", (330, 449, 479, 571))],
    )  # fmt: skip
    assert (empty.boxes, empty.problem, empty.where) == ((), None, "line 4")
    assert describe(third)[0] == ("face", (221, 78, 229, 85))
    assert reasons(third) == ["marked_invalid", "broken_box"]


def test_wider_reports_a_wrong_number_of_faces_and_continues_with_the_next_image():
    broken, good = parse_wider(b"a.jpg\n2\n1 2 3 4 0 0 0 0 0 0\nb.jpg\n1\n1 2 3 4 0 0 0 0 0 0\n")
    assert (broken.problem.reason, len(broken.boxes)) == ("broken_annotation", 1)
    assert (good.problem, describe(good)) == (None, [("face", (2, 1, 6, 4))])


def test_keras_lists_give_indices_or_names():
    data = b"my images/a.b.jpg 10,12,50,60,0 30,20,44,58.5,1\nimages/b.JPG\n"
    first, second = parse_keras_yolo(data, ["bolt", "nut"])
    assert (first.filename, second.filename, second.boxes) == ("my images/a.b.jpg", "images/b.JPG", ())
    assert describe(first) == [("bolt", (12, 10, 60, 50)), ("nut", (20, 30, 58.5, 44))]
    assert [box.category for box in next(parse_keras_yolo(data)).boxes] == ["0", "1"]
    assert [box.category for box in next(parse_keras_yolo(b"a.jpg 1,2,3,4,nut", ["bolt", "nut"])).boxes] == ["nut"]


def test_keras_lists_report_broken_boxes_and_lines():
    image, broken = parse_keras_yolo(
        b"a.jpg 1,2,3,4 1,2,x,4,0 1,2,3,4,1 1,2,3,4, 1,2,3,4,0\nno image 1,2,3,4,0\n", ["bolt"]
    )
    assert reasons(image) == ["broken_box"] * 4
    assert describe(image)[4] == ("bolt", (2, 1, 4, 3))
    assert (broken.problem.reason, broken.where) == ("broken_annotation", "line 2")


@pytest.mark.parametrize("parse", [parse_kitti, parse_dota, parse_visdrone])
def test_an_empty_label_file_is_an_image_without_objects(parse):
    (image,) = parse(b"")
    assert (image.filename, image.boxes, image.problem) == ("", (), None)


@pytest.mark.parametrize("parse", [parse_kitti, parse_dota, parse_visdrone, parse_wider, parse_keras_yolo])
def test_a_binary_file_is_refused(parse):
    with pytest.raises(ValueError, match="not a text file"):
        list(parse(b"\xff\xd8\xff\xe0"))


@pytest.mark.parametrize("parse", [parse_wider, parse_keras_yolo])
def test_a_text_without_images_is_refused(parse):
    with pytest.raises(ValueError, match=r"not a (label file of WIDER FACE|list of images and boxes)"):
        list(parse(b"hello world\n"))
