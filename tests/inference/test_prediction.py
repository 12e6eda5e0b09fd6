"""Prediction on image files: finding the images, score thresholds, and the files that other programs read."""

import csv
import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from support.object_store import emulated_store

from pipelines.annotations import IMAGE_SUFFIXES
from ssd_dist.core.config import EvalConfig
from ssd_dist.core.errors import UsageError
from ssd_dist.core.images import has_drawn_boxes
from ssd_dist.evaluation.detections import Detections
from ssd_dist.evaluation.result_files import CocoIds, open_result_files, read_coco_ids
from ssd_dist.evaluation.thresholds import parse_thresholds
from ssd_dist.inference.image_files import find_images, read_image
from ssd_dist.inference.loaded_detector import LoadedDetector
from ssd_dist.inference.prediction import PredictionOutputs, name_output_images, predict_images
from ssd_dist.model.postprocessing import DetectionBatch

CLASSES = ("cat", "dog")


def save_image(path, size=(40, 20), value=200):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return str(path)


@pytest.fixture
def detector():
    """Detects on every image a cat in the left half, score 0.9, and a dog in the right half, score = brightness."""

    def detect(images):
        brightness = images.numpy().astype(np.float32).mean(axis=(1, 2, 3)) / 255
        count = len(brightness)
        boxes = np.tile(np.float32([[0, 0, 1, 0.5], [0, 0.5, 1, 1], [0, 0, 0, 0]]), (count, 1, 1))
        labels = np.tile(np.int32([1, 2, 0]), (count, 1))
        scores = np.stack([np.full(count, 0.9, np.float32), brightness, np.zeros(count, np.float32)], 1)
        return DetectionBatch(*map(tf.constant, (boxes, labels, scores)))

    return LoadedDetector(16, 2, CLASSES, detect, EvalConfig())


def make_outputs(thresholds="0.4", **options):
    return PredictionOutputs(parse_thresholds(thresholds, CLASSES), options.pop("ids", CocoIds((1, 2))), **options)


def read_table(folder):
    return list(csv.DictReader((folder / "detections.csv").read_text().splitlines()))


# --- Finding images --------------------------------------------------------------------------------------------------


def test_a_folder_has_the_images_that_prepare_reads(tmp_path):
    for suffix in IMAGE_SUFFIXES:
        (tmp_path / f"a{suffix}").touch()
    assert len(IMAGE_SUFFIXES) > 5
    assert find_images([str(tmp_path)]) == sorted(str(tmp_path / f"a{suffix}") for suffix in IMAGE_SUFFIXES)


def test_files_folders_and_patterns_are_found(tmp_path):
    a, b, c = (save_image(tmp_path / name) for name in ("a.jpg", "sub/b.PNG", "sub/deep/c.webp"))
    odd = save_image(tmp_path / "sub" / "[1].jpg")
    (tmp_path / "notes.txt").write_text("no image")
    assert find_images([a]) == [a]
    assert find_images([odd]) == [odd], "the name of an existing file is not used as a pattern"
    assert find_images([str(tmp_path)]) == [a], "only the images directly in the folder"
    assert find_images([f"{tmp_path}/**/*.[jw]*"]) == sorted([a, odd, c])
    assert find_images([a, str(tmp_path / "sub"), a]) == sorted([a, b, odd]), "without duplicates"


@pytest.mark.parametrize("source", ["nothing.jpg", "*.jpg", ".", "memory://nowhere/*.jpg", "memory://nowhere"])
def test_a_source_without_images_is_reported(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"--images=.*quoted"):
        find_images([source])


def test_an_unknown_store_is_reported():
    with pytest.raises(UsageError, match=r"nostore://a/b\.jpg: cannot list the images"):
        find_images(["nostore://a/b.jpg"])


@pytest.fixture(scope="module")
def endpoint():
    """Starts an emulated store for the tests of this file; returns its address."""
    with emulated_store("photos") as address:
        yield address


@pytest.mark.parametrize("store", ["memory", "gs"])
def test_images_on_a_store_are_found_and_read_like_local_ones(store, tmp_path, detector, request, monkeypatch):
    if store == "gs":
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", request.getfixturevalue("endpoint"))
        monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    bucket = f"{store}://photos"
    image = Path(save_image(tmp_path / "x.png", value=90)).read_bytes()
    for name in ("a.png", "b.png", "deep/c.png", "readme.txt"):
        with fsspec.open(f"{bucket}/in/{name}", "wb") as file:
            file.write(image)
    a, b, c = (f"{bucket}/in/{name}" for name in ("a.png", "b.png", "deep/c.png"))
    if store == "memory":
        a, b, c = (name.replace("memory://", "memory:///") for name in (a, b, c))
    assert find_images([f"{bucket}/in"]) == [a, b]
    assert find_images([f"{bucket}/in/*.png"]) == [a, b]
    assert find_images([f"{bucket}/in/**/c.png"]) == [c]
    assert find_images([f"{bucket}/in/a.png"]) == [f"{bucket}/in/a.png"]
    assert np.asarray(read_image(c)).tolist() == np.full((20, 40, 3), 90).tolist()
    missing = f"{bucket}/in/missing.png"
    processed, _, unreadable = predict_images(detector, [a, b, missing], str(tmp_path / "out"), make_outputs())
    assert (processed, [name for name, _ in unreadable]) == (2, [missing])


# --- Thresholds and results ------------------------------------------------------------------------------------------


def test_thresholds_apply_to_all_classes_to_one_or_come_from_an_evaluation(tmp_path):
    points = {"operating_points": {name: {"threshold": value} for name, value in (("cat", 0.25), ("dog", 0.75))}}
    evaluated, exported = tmp_path / "metrics.json", tmp_path / "export.json"
    evaluated.write_text(json.dumps({"coco/AP": 0.5, "analysis": points}))
    exported.write_text(json.dumps(points))
    for text, expected in (
        ("", [0.4, 0.4]),
        ("0.6", [0.6, 0.6]),
        ("dog:0.1", [0.4, 0.1]),
        ("dog:0.1,0.6", [0.6, 0.6]),
        ("0.6, dog:1", [0.6, 1]),
        (str(evaluated), [0.25, 0.75]),
        (f"{exported},cat:0", [0, 0.75]),
    ):
        assert parse_thresholds(text, CLASSES).tolist() == expected, text
    assert parse_thresholds("a:b:0.3", ("a:b",)).tolist() == [0.3], "a class may have a colon in its name"
    names = ("a,b", "b", "a,b,b")
    assert parse_thresholds("0.5,a,b:0.3, a,b,b:0.1,b:0.2,", names).tolist() == [0.3, 0.2, 0.1], "or commas"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("1.5", "from 0 to 1"),
        ("nan", "from 0 to 1"),
        ("high", "from 0 to 1"),
        ("cats:0.3", "did you mean 'cat'"),
        ("cat:", "from 0 to 1"),
        ("gone.json", "does not exist"),
        ("other.json", "no class 'dog'"),
        ("broken.json", "cannot read 'operating_points'; give the file that ssd-evaluate --output wrote"),
        ("folder.json", "cannot be read"),
    ],
)
def test_invalid_thresholds_are_refused(text, word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.json").write_text('{"operating_points": {"cat": {"threshold": 0.5}}}')
    (tmp_path / "broken.json").write_text("[]")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UsageError, match=word):
        parse_thresholds(text, CLASSES)


def test_the_json_file_has_all_detections_and_the_csv_file_those_above_the_threshold(tmp_path, detector):
    bright, dark = save_image(tmp_path / "b.png", value=200), save_image(tmp_path / "d.png", (100, 50), value=20)
    broken = tmp_path / "x.jpg"
    broken.write_bytes(b"no image")
    out = tmp_path / "out"
    processed, shown, unreadable = predict_images(
        detector, [bright, dark, str(broken)], str(out), make_outputs("0.95,dog:0.5")
    )
    assert (processed, shown, [name for name, _ in unreadable]) == (2, 1, [str(broken)])
    results = json.loads((out / "detections.json").read_text())
    assert [(row["image_id"], row["category"]) for row in results] == [
        (image, name) for image in (bright, dark) for name in CLASSES
    ]
    # x, y, width, height in pixels of 40 x 20: the right half.
    assert results[1] == {
        "image_id": bright, "category_id": 2, "category": "dog", "bbox": [20, 0, 20, 20],
        "score": pytest.approx(200 / 255),
    }  # fmt: skip
    table = read_table(out)
    assert [row["filename"] for row in table] == [bright, dark]
    assert {key: table[0][key] for key in ("class", "width", "height", "xmin", "ymin", "xmax", "ymax")} == {
        "class": "dog", "width": "40", "height": "20",
        "xmin": "20.00", "ymin": "0.00", "xmax": "40.00", "ymax": "20.00",
    }  # fmt: skip
    assert table[1]["class"] == "", "an image without drawn detections has a row as well"
    assert sorted(path.name for path in out.iterdir()) == ["b.jpg", "d.jpg", "detections.csv", "detections.json"]
    with Image.open(out / "d.jpg") as image:
        assert image.size == (100, 50)
    assert has_drawn_boxes((out / "d.jpg").read_bytes())
    assert not has_drawn_boxes(Path(dark).read_bytes())


def test_progress_counts_every_image_also_unreadable_ones(tmp_path, detector):
    shown = []
    stages = SimpleNamespace(show=lambda title, total: shown.append((title, total)), update=shown.append)
    files = [save_image(tmp_path / f"{number}.jpg") for number in range(4)]
    Path(files[1]).write_text("no image")
    predict_images(detector, files, str(tmp_path / "out"), make_outputs(draw_images=False), stages)
    # Files are read 2 at a time; one of the first 2 is unreadable.
    assert shown == [("detect, images", 4), 2, 4]


def test_a_threshold_file_may_have_a_comma_in_its_path(tmp_path):
    path = tmp_path / "a,b" / "metrics.json"
    path.parent.mkdir()
    points = {"cat": {"threshold": 0.25}, "dog": {"threshold": 0.75}}
    path.write_text(json.dumps({"analysis": {"operating_points": points}}))
    assert parse_thresholds(str(path), CLASSES).tolist() == [0.25, 0.75]


def test_source_images_are_never_overwritten(tmp_path, detector, monkeypatch):
    photo = save_image(tmp_path / "a.jpg")
    before = Path(photo).read_bytes()
    monkeypatch.chdir(tmp_path)
    for output in (str(tmp_path), "."):
        with pytest.raises(UsageError, match=r"--output: .*a\.jpg exists beside --images and would be overwritten"):
            predict_images(detector, [photo], output, make_outputs())
    # The name is that of another source: the output for a.png would be a.jpg.
    with pytest.raises(UsageError, match="overwritten"):
        predict_images(detector, ["other/a.png", photo], ".", make_outputs())
    # Nor is an image that is not given.
    with pytest.raises(UsageError, match="overwritten"):
        predict_images(detector, [save_image(tmp_path / "a.png")], ".", make_outputs())
    predict_images(detector, [photo], ".", make_outputs(draw_images=False))
    assert Path(photo).read_bytes() == before
    predict_images(detector, [save_image(tmp_path / "b.png")], ".", make_outputs())
    assert Path("b.jpg").exists()


def test_an_image_that_is_too_wide_for_a_jpeg_is_drawn_smaller(tmp_path, detector):
    # Longer than the 65,500 pixels that libjpeg writes.
    name = save_image(tmp_path / "wide.png", size=(66_000, 20))
    processed, _, _ = predict_images(detector, [name], str(tmp_path / "out"), make_outputs())
    assert processed == 1
    with Image.open(tmp_path / "out/wide.jpg") as drawn:
        assert drawn.width == 65_500


def test_file_names_that_are_not_utf8_are_written_unchanged(tmp_path, detector):
    name = save_image(tmp_path / os.fsdecode(b"caf\xe9.png"))
    predict_images(detector, [name], str(tmp_path / "out"), make_outputs())
    assert b"caf\xe9.png" in (tmp_path / "out" / "detections.csv").read_bytes()
    assert json.loads((tmp_path / "out" / "detections.json").read_text())[0]["image_id"] == name


def test_names_that_look_like_formulas_get_a_prefix_in_the_csv_file(tmp_path):
    names = ("=1+1", "+1", "-1", "@a", "\t=1", "a\r\n=1", "＝1", 'plain, "quoted"')
    files = ("=1.jpg", "/photos/=1.jpg", "-x\n.jpg")
    with open_result_files(str(tmp_path), names, CocoIds(tuple(range(1, 9)))) as results:
        for file, labels in zip(files, (range(1, 9), (), (1,)), strict=True):
            count = len(labels)
            found = Detections(
                file, np.zeros((count, 4), np.float32), np.array(labels, int), np.ones(count, np.float32)
            )
            results.add(found, 10, 10, np.ones(count, bool))
    rows = list(csv.DictReader((tmp_path / "detections.csv").read_text().splitlines()))
    assert [row["class"] for row in rows[:8]] == [
        "'=1+1", "'+1", "'-1", "'@a", "\\t=1", "a\\r\\n=1", "'＝1", 'plain, "quoted"',
    ]  # fmt: skip
    # The paths are still those of the files.
    assert [row["filename"] for row in rows[7:]] == ["./=1.jpg", "/photos/=1.jpg", "./-x\\n.jpg"]
    exact = json.loads((tmp_path / "detections.json").read_text())
    assert [row["category"] for row in exact[:8]] == list(names)
    assert exact[-1]["image_id"] == files[-1]


def test_a_file_name_that_occurs_twice_has_no_coco_id(tmp_path):
    entries = [{"file_name": f"{folder}/1.jpg", "id": number} for number, folder in enumerate("ab")]
    annotations = tmp_path / "instances.json"
    annotations.write_text(json.dumps({"images": entries, "categories": [{"name": "cat", "id": 1}]}))
    with pytest.raises(UsageError, match=r"two of its images have the file name '1\.jpg'"):
        read_coco_ids(str(annotations), ("cat",), ["b/1.jpg"])
    entries.append({"file_name": "c/7.jpg", "id": 7})
    annotations.write_text(json.dumps({"images": entries, "categories": [{"name": "cat", "id": 1}]}))
    assert read_coco_ids(str(annotations), ("cat",), ["x/7.jpg"]).get_image_id("x/7.jpg") == 7


def test_annotations_for_labeling_tools_contain_the_detections_above_the_threshold(tmp_path, detector):
    # The score of the dog is the brightness, 50 / 255.
    source = save_image(tmp_path / "a.png", value=50)
    predict_images(detector, [source], str(tmp_path), make_outputs("0.5", draw_images=False, formats=("yolo",)))
    assert (tmp_path / "yolo/labels/train/a.txt").read_text() == "0 0.250000 0.500000 0.500000 1.000000\n"


def test_images_are_detected_in_tiles(tmp_path, detector):
    sizes = []

    def detect(images):
        sizes.append(len(images))
        found = detector.detect(images)
        # Away from the edges of each part.
        return found._replace(boxes=0.25 + 0.5 * found.boxes)

    files = [save_image(tmp_path / f"{name}.png", size=(400, 400)) for name in "abc"]
    tiled = dataclasses.replace(detector, detect=detect)
    outputs = make_outputs(draw_images=False)
    processed, shown, _ = predict_images(tiled, files, str(tmp_path / "out"), outputs, tiles=3)
    assert (processed, sum(sizes)) == (3, 3 * 10)
    # A cat and a dog in each of ten parts; those of different parts overlap by less than half.
    assert shown == 3 * 2 * 10


def test_no_detections_give_an_empty_list(tmp_path, detector):
    def detect(images):
        count = len(images)
        return DetectionBatch(tf.zeros((count, 3, 4)), tf.zeros((count, 3), tf.int32), tf.zeros((count, 3)))

    nothing = LoadedDetector(16, 2, CLASSES, detect, EvalConfig())
    predict_images(nothing, [save_image(tmp_path / "a.png")], str(tmp_path / "out"), make_outputs(draw_images=False))
    assert json.loads((tmp_path / "out" / "detections.json").read_text()) == []
    assert not (tmp_path / "out" / "a.jpg").exists()


def test_pycocotools_loads_results_with_coco_ids(tmp_path, detector):
    from pycocotools.coco import COCO

    file = save_image(tmp_path / "val" / "000007.png")
    annotations = tmp_path / "instances.json"
    images = [{"id": 7, "file_name": "000007.png", "height": 20, "width": 40}]
    categories = [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}]
    annotations.write_text(json.dumps({"images": images, "categories": categories, "annotations": []}))
    ids = read_coco_ids(str(annotations), CLASSES, [file])
    predict_images(detector, [file], str(tmp_path / "out"), make_outputs(ids=ids))
    loaded = COCO(str(annotations)).loadRes(str(tmp_path / "out" / "detections.json"))
    assert [(row["image_id"], row["category_id"]) for row in loaded.dataset["annotations"]] == [(7, 17), (7, 18)]
    with pytest.raises(UsageError, match=r"no image 'other\.png'"):
        read_coco_ids(str(annotations), CLASSES, [file, "x/other.png"])
    with pytest.raises(UsageError, match="no category 'bird'"):
        read_coco_ids(str(annotations), ("bird",), [])
    with pytest.raises(UsageError, match="not a COCO annotation file"):
        read_coco_ids(file, CLASSES, [])


def test_outputs_of_equal_names_get_numbers():
    assert name_output_images(["a/x.jpg", "b/x.png", "b/y.jpg"]) == {
        "a/x.jpg": "x.jpg", "b/x.png": "x_2.jpg", "b/y.jpg": "y.jpg",
    }  # fmt: skip


def test_an_output_that_cannot_be_written_is_reported(tmp_path, detector):
    (tmp_path / "file").write_text("a file, not a folder")
    with pytest.raises(UsageError, match=r"--output=.*cannot be written"):
        predict_images(detector, [save_image(tmp_path / "a.png")], str(tmp_path / "file" / "out"), make_outputs())
