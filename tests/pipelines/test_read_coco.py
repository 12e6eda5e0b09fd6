"""COCO reader: ids with gaps, flags, broken entries and broken files."""

import errno
import gzip
import json
import math
from pathlib import Path

import pytest
from raw_sets import FailingFile, digests, jpeg, make_coco

from pipelines import beam_storage
from pipelines.annotations import Category, Image, Listing, SeparateBox
from pipelines.image_reading import read_image
from pipelines.readers.coco import parse_box, parse_image, read_entries
from pipelines.readers.coco_layout import CocoFile, find_files, find_images
from pipelines.readers.coco_parts import ImageLocator, read_listed
from pipelines.readers.sources import Source
from ssd_dist.core.config import Config
from ssd_dist.core.errors import DataError

FILE = CocoFile(2, "/d/a.json", "/d/images")
INSIDE = CocoFile(2, "/d/a.json", "/d/images", dataset="/d")
SOURCE = Source(("x",), output_split="train")
SMALL = Config.model_validate({"model": {"input_size": 64}})


def find_all(given):
    return find_files(Source((str(given),), output_split="train"))


def values_of(path, source=SOURCE):
    return list(read_entries(CocoFile(0, str(path), "/d"), source))


def test_a_file_yields_categories_images_boxes_and_its_length(tmp_path):
    make_coco(tmp_path, {"a.jpg": [(90, 1, 2, 3, 4)], "b.jpg": []}, {90: "toothbrush", 1: "person"})
    values = values_of(tmp_path / "annotations/instances_train.json")
    assert [v for v in values if isinstance(v, Category)] == [
        Category("0/90", 90, "toothbrush"), Category("0/1", 1, "person"),
    ]  # fmt: skip
    assert [(v.image_id, v.row, v.filename, v.size) for v in values if isinstance(v, Image)] == [
        ("1", 0, "a.jpg", (48, 64)), ("2", 1, "b.jpg", (48, 64)),
    ]  # fmt: skip
    (box,) = [v for v in values if isinstance(v, SeparateBox)]
    assert (box.image_id, box.box.category, box.box.corners, box.box.area) == ("1", "0/90", (1, 2, 3, 4), 4.0)
    assert values[-1] == Listing(0, 2, str(tmp_path / "annotations/instances_train.json"))


@pytest.mark.parametrize("order", [("categories", "images", "annotations"), ("images", "annotations", "categories")])
@pytest.mark.parametrize("used", [True, False])
def test_a_category_0_with_boxes_is_kept_wherever_it_is_in_the_file(tmp_path, order, used):
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 48, "width": 64}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 0 if used else 1, "bbox": [1, 2, 3, 4]}],
        # As obss/sahi writes them: the supercategory is the name.
        "categories": [{"id": number, "name": name, "supercategory": name} for number, name in ((0, "a"), (1, "b"))],
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps({key: content[key] for key in order}))
    found = {value.name for value in values_of(path) if isinstance(value, Category)}
    assert found == ({"a", "b"} if used else {"b"})


def test_a_class_without_a_name_is_named_by_its_id(tmp_path):
    make_coco(tmp_path, {"a.jpg": [(3, 1, 2, 3, 4)]}, {3: " "})
    found = values_of(tmp_path / "annotations/instances_train.json")
    assert [value.name for value in found if isinstance(value, Category)] == ["class 3"]


@pytest.mark.parametrize("segmentation", [7, "abc", {"counts": "x"}, [7], [[1, 2]]])
def test_a_segmentation_that_is_no_polygon_gives_no_box(segmentation):
    box = parse_box({"image_id": 7, "category_id": 3, "segmentation": segmentation}, 0, FILE).box
    assert box.problem.reason == "broken_box"


@pytest.mark.parametrize(("value", "expected"), [(1, True), ("1", True), (True, True), (0, False), (None, False)])
def test_the_crowd_flag_may_be_a_text(value, expected):
    entry = {"image_id": 7, "category_id": 3, "bbox": [1, 2, 10, 20], "iscrowd": value}
    assert parse_box(entry, 0, FILE).box.is_crowd == expected


# `--input` may be the current folder, or one above it.
@pytest.mark.parametrize("dataset", ["/d", ".", "..", "d", "./d"])
def test_a_name_may_be_relative_to_the_annotation_file(dataset):
    file = CocoFile(0, f"{dataset}/annotations/train.json", f"{dataset}/images", dataset=dataset)
    image = parse_image({"id": 1, "file_name": "../images/a.jpg"}, 0, 0, file, ImageLocator(file))
    # As text, because paths are compared with those in the listing of the folder.
    assert (image.path, image.problem) == (f"{dataset}/images/a.jpg", None)
    given = CocoFile(0, "/d/annotations/train.json", "/other/images")
    image = parse_image({"id": 1, "file_name": "../images/a.jpg"}, 0, 0, given, ImageLocator(given))
    assert (image.problem, "/other/images/a" in image.stems) == (None, True)
    for outside in ("../../images/a.jpg", "../../d2/a.jpg"):
        assert (
            parse_image({"id": 1, "file_name": outside}, 0, 0, file, ImageLocator(file)).problem.reason
            == "path_traversal"
        )


def test_files_of_one_split_are_compared_by_names_relative_to_themselves(tmp_path):
    """Two files that were located at one path would be taken for the same images, and one of them would be skipped."""
    listed = []
    for name in "ab":
        path = tmp_path / "annotations" / f"train_{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"images": [{"id": 1, "file_name": f"../images/{name}.jpg"}]}))
        listed.append(read_listed(CocoFile(0, str(path), str(tmp_path / "images"), dataset=str(tmp_path))))
    assert listed == [{f"{tmp_path}/images/{name}.jpg": "1"} for name in "ab"]


def test_gzip_files_are_read(tmp_path):
    make_coco(tmp_path, {"a.jpg": []}, {1: "x"})
    plain = tmp_path / "annotations/instances_train.json"
    compressed = tmp_path / "a.json.gz"
    compressed.write_bytes(gzip.compress(plain.read_bytes()))
    assert values_of(compressed)[:-1] == [
        v if not isinstance(v, Image) else v._replace(source=str(compressed)) for v in values_of(plain)[:-1]
    ]


def test_crowd_flag_and_area_are_parsed():
    entry = {"image_id": 7, "category_id": 3, "bbox": [1, 2, 10, 20], "area": 55.5, "iscrowd": 1}
    box = parse_box(entry, 0, FILE).box
    assert (box.category, box.corners, box.area, box.is_crowd) == ("2/3", (2, 1, 22, 11), 55.5, True)
    for area in (0, -1, None, "big", math.nan):
        assert parse_box({**entry, "area": area}, 0, FILE).box.area is None


@pytest.mark.parametrize(
    "bbox", [None, [], [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, None], ["one", 2, 3, 4], [True, 2, 3, 4], {"x": 1}, "1234"]
)
def test_an_invalid_bbox_gives_a_box_with_a_problem(bbox):
    loose = parse_box({"image_id": 7, "category_id": 1, "bbox": bbox}, 5, FILE)
    assert (loose.image_id, loose.box.problem.reason, loose.box.where) == ("7", "broken_box", "annotations[5]")


def test_nan_and_huge_numbers_are_left_to_validation():
    box = parse_box({"image_id": 7, "category_id": 1, "bbox": [math.nan, 10**400, 1, 1]}, 0, FILE).box
    assert box.problem is None
    assert math.isinf(box.corners[0])


@pytest.mark.parametrize("item", [None, 3, [], {}, {"id": 3}, {"file_name": "a.jpg"}, {"id": 1, "file_name": ""}])
def test_an_invalid_image_entry_gives_an_image_with_a_problem(item):
    assert parse_image(item, 4, 2, FILE, ImageLocator(FILE)).problem.reason == "broken_annotation"


def test_a_file_name_outside_the_folder_is_rejected():
    assert (
        parse_image({"id": 1, "file_name": "../x.jpg"}, 0, 0, INSIDE, ImageLocator(INSIDE)).problem.reason
        == "path_traversal"
    )
    inside = parse_image({"id": 1, "file_name": "sub/./x.jpg"}, 0, 0, FILE, ImageLocator(FILE))
    assert (inside.problem, inside.path) == (None, "/d/images/sub/x.jpg")


def test_a_file_name_relative_to_the_annotation_file_is_found(tmp_path):
    # Label Studio writes result.json next to images/ and uses file names such as images/a.jpg.
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(jpeg())
    path = tmp_path / "result.json"
    entries = {"images": [{"id": 1, "file_name": "images/a.jpg"}], "annotations": [], "categories": []}
    path.write_text(json.dumps(entries))
    (file,) = find_all(path)
    (image,) = (value for value in read_entries(file, SOURCE) if isinstance(value, Image))
    assert read_image(image) == jpeg()
    # With --image_dir, only that folder is searched.
    (tmp_path / "clean").mkdir()
    (file,) = find_files(Source((str(path),), image_dir=str(tmp_path / "clean"), output_split="train"))
    (image,) = (value for value in read_entries(file, SOURCE) if isinstance(value, Image))
    assert read_image(image).reason == "missing_image"


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.9])
def test_a_truncated_file_gives_a_listing_with_a_problem(tmp_path, cut):
    make_coco(tmp_path, {f"{n}.jpg": [(1, 1, 2, 3, 4)] for n in range(9)}, {1: "x"})
    path = tmp_path / "annotations/instances_train.json"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * cut)])
    values = values_of(path)
    assert values[-1].problem.reason == "broken_annotation"
    assert values[-1].images == sum(isinstance(value, Image) for value in values)


@pytest.mark.parametrize(
    "category",
    [{"id": "x", "name": "a"}, {"name": "a"}, 3, {"id": math.inf, "name": "a"}, {"id": "9" * 5000, "name": "a"}],
)
def test_an_invalid_category_gives_a_listing_with_a_problem(tmp_path, category):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": [category]}))
    assert "categories[0]" in values_of(path)[-1].problem.detail


def test_annotation_files_are_found_from_folder_file_and_pattern(tmp_path):
    make_coco(tmp_path, {"a.jpg": []}, {1: "x"})
    path = str(tmp_path / "annotations/instances_train.json")
    for given in (tmp_path, path, tmp_path / "annotations/*.json"):
        assert find_all(given) == [CocoFile(0, path, str(tmp_path / "train"), str(tmp_path), is_only_owner=True)]
    for wrong in (tmp_path / "none.json", tmp_path / "train", tmp_path / "*.nothing"):
        with pytest.raises(DataError, match=wrong.name.replace("*", r"\*")):
            find_all(wrong)
    with pytest.raises(DataError, match="--image_dir"):
        find_images(path, "train", str(tmp_path / "nowhere"))


def test_output_inside_the_dataset_is_not_used_as_image_folder(tmp_path, prepare):
    make_coco(tmp_path, {f"{n}.jpg": [(1, 1, 2, 30, 40)] for n in range(3)}, {1: "x"})
    (tmp_path / "train").rename(tmp_path / "images")
    prepare("coco", tmp_path, tmp_path, config=SMALL)
    before = digests(tmp_path)
    prepare("coco", tmp_path, tmp_path, config=SMALL)
    assert digests(tmp_path) == before
    # If the output folder also contains the images, they are found among the shards.
    (tmp_path / "images").rename(tmp_path / "photos")
    for path in (tmp_path / "photos").iterdir():
        path.rename(tmp_path / "train" / path.name)
    prepare("coco", tmp_path, tmp_path, config=SMALL)
    after = digests(tmp_path)
    assert [name for name in before if name.endswith(".tfrecord") and after[name] != before[name]] == []


@pytest.mark.parametrize("error", [ConnectionResetError(), OSError(errno.EIO, "Input/output error")])
def test_a_storage_error_stops_the_job_instead_of_losing_data(tmp_path, monkeypatch, error):
    make_coco(tmp_path, {f"{n}.jpg": [] for n in range(9)}, {1: "x"})
    path = tmp_path / "annotations/instances_train.json"
    monkeypatch.setattr(beam_storage, "open_input", lambda path: FailingFile(Path(path).read_bytes()[:-50], error))
    with pytest.raises(DataError, match=r"instances_train\.json could not be read to its end .* again"):
        values_of(path)


def test_whole_float_ids_equal_integer_ids(tmp_path, prepare):
    source = make_coco(tmp_path, {"a.jpg": [(1, 1, 2, 30, 40)], "b.jpg": [(2, 1, 2, 30, 40)]}, {1: "x", 2: "y"})
    path = source / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    for entry in content["annotations"]:
        entry.update(image_id=float(entry["image_id"]), category_id=float(entry["category_id"]))
    path.write_text(json.dumps(content))
    split = prepare("coco", source, tmp_path / "out", config=SMALL).splits["train"]
    assert (split.boxes_read, split.boxes) == (2, 2)
    assert parse_image({"id": 3.0, "file_name": "a.jpg"}, 0, 0, FILE, ImageLocator(FILE)).image_id == "3"
    assert (
        parse_image({"id": 3.5, "file_name": "a.jpg"}, 0, 0, FILE, ImageLocator(FILE)).problem.reason
        == "broken_annotation"
    )


def test_a_split_whose_boxes_are_all_rejected_fails(tmp_path, prepare):
    source = make_coco(tmp_path, {"a.jpg": [(1, 1, 2, 30, 40)]}, {1: "x"})
    path = source / "annotations/instances_train.json"
    path.write_text(path.read_text().replace('"image_id": 1', '"image_id": "one"'))
    cause = r"most frequent reason: unknown_image \(1\), .*train/rejected\.jsonl"
    with pytest.raises(DataError, match=f"all 1 boxes were rejected; {cause}"):
        prepare("coco", source, tmp_path / "out", config=SMALL)


@pytest.mark.parametrize("name", ["instances_train.json", "annotations/instances_train.json"])
def test_images_are_found_with_a_relative_path_from_the_dataset_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for folder in ("annotations", "images"):
        (tmp_path / folder).mkdir()
    (tmp_path / "images/a.jpg").write_bytes(jpeg())
    assert find_images(name, "train", "").images == "./images"
