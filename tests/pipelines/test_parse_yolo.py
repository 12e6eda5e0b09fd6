"""Label files of YOLO: the kinds of lines, numbers and encodings, and the reasons why lines are rejected."""

import numpy as np
import pytest
from raw_sets import write_files
from yolo_sets import CORNERS, DATA, LINE, images_of, pairs

from pipelines.readers.yolo import find_splits
from pipelines.readers.yolo_labels import are_labels, parse_label
from pipelines.text_encoding import decode_text


@pytest.mark.parametrize(
    "text",
    [
        "0 0.3 0.5 0.2 0.2",
        "0.0 0.3 0.5 0.2 0.2",
        "0.000000e+00 3e-1 5e-1 2e-1 2e-1 ",
        "0\t0.3\t0.5\t0.2\t0.2\r\n\r\n",
        "0,0.3,0.5,0.2,0.2",
        "0, 0.3, 0.5, 0.2, 0.2",
        "0;0.3;0.5;0.2;0.2",
        "0 0,3 0,5 0,2 0,2",
        "0 0.3 0.5 0.2 0.2 0.91",
        "0 0.3 0.5 0.2 0.2 17",
        "0 0.2 0.4 0.4 0.4 0.4 0.6 0.2 0.6",
        "0 0.2 0.4 0.4 0.6 0.3 0.5",
    ],
)
def test_all_kinds_of_lines_become_the_same_box(text):
    (box,) = parse_label(text)
    assert (box.category, box.problem, box.normalized) == ("0", None, True)
    assert box.corners == pytest.approx(CORNERS)
    assert box.is_reduced == (len(text.split()) > 6)
    assert are_labels(text)


def test_boxes_and_polygons_in_one_file_are_read_each_by_its_own_kind():
    box, polygon = parse_label("0 0.5 0.5 0.25 0.25\n1 0.2 0.1 0.6 0.1 0.6 0.7 0.4 0.7 0.2 0.5\n")
    assert box.corners == pytest.approx((0.375, 0.375, 0.625, 0.625))
    assert polygon.corners == pytest.approx((0.1, 0.2, 0.7, 0.6))
    assert (box.is_reduced, polygon.is_reduced) == (False, True)


def test_keypoints_are_ignored_if_the_yaml_file_defines_them(tmp_path):
    pose = "1 0.3 0.5 0.2 0.2 0.9 0.9 2 0.1 0.1 0\n"
    write_files(tmp_path, {"data.yaml": DATA + "kpt_shape: [2, 3]\n"})
    write_files(tmp_path, pairs("a", images="images/train/", labels="labels/train/", line=pose + LINE))
    (image,) = images_of(tmp_path)
    assert [box.corners for box in image.boxes] == [pytest.approx(CORNERS)] * 2
    assert not any(box.is_reduced for box in image.boxes)
    # Without kpt_shape, a visibility of 2 shows that eleven numbers are no polygon; eight are neither.
    assert next(parse_label(pose)).problem.reason == "broken_box"
    assert next(parse_label(pose.replace(" 2 ", " 1 "))).is_reduced
    assert "kpt_shape" in next(parse_label("1 0.3 0.5 0.2 0.2 0.9 0.9 2")).problem.detail


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 0.5 0.5 0.1", "4 numbers; expected 5"),
        ("bolt 0.5 0.5 0.1 0.1", "'bolt' is not a number"),
        ("0.5 0.5 0.5 0.1 0.1", "class '0.5' is not a whole number"),
        ("1e300 0.5 0.5 0.1 0.1", "class '1e300'"),
        ("0 0.1 0.2 0.3 0.4 0.5 0.6 0.7", "8 numbers are neither a box"),
    ],
)
def test_the_reason_for_an_invalid_line_names_what_is_expected(line, words):
    (box,) = parse_label(line)
    assert box.problem.reason == "broken_box"
    assert words in box.problem.detail


def test_a_polygon_with_a_number_that_is_not_finite_is_left_to_validation():
    (box,) = parse_label("0 0.1 0.1 nan 0.2 0.3 0.3")
    assert box.problem is None
    assert np.isnan(box.corners).all()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_label_files_in_several_encodings_are_read(encoding):
    assert decode_text(LINE.encode(encoding)) == LINE


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"\xff\xfe\xff", "save it as UTF-8"), (b"version https://git-lfs.github.com/spec/v1", "git lfs")],
)
def test_other_label_files_are_rejected_with_a_reason(data, words):
    with pytest.raises(ValueError, match=words):
        decode_text(data)


def test_a_sixth_number_is_announced(tmp_path):
    write_files(tmp_path, {"data.yaml": DATA})
    write_files(tmp_path, pairs("a", images="images/train/", labels="labels/train/", line="0 0.3 0.5 0.2 0.2 0.9\n"))
    assert any("sixth number" in note for note in find_splits(str(tmp_path), "").notes)
