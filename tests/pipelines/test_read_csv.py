"""CSV reader: images in the order of their first line, and invalid lines. See test_parse_csv.py for dialects."""

import errno
import gzip
import zlib

import pytest
from raw_sets import FailingFile, jpeg

from pipelines import beam_storage
from pipelines.annotations import Category, Image, Listing, SeparateBox
from pipelines.readers.csv import find_files, group_files, read_entries
from pipelines.readers.sources import Source
from ssd_dist.core.config import Config
from ssd_dist.core.errors import DataError

SMALL = Config.model_validate({"model": {"input_size": 64}})
SOURCE = Source(("x",), output_split="train")
HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax\n"


def write_source(folder, *texts, **rest):
    """Writes CSV files with these texts and an image to a folder; returns their source."""
    folder.mkdir(exist_ok=True)
    (folder / "a.jpg").write_bytes(jpeg())
    for number, text in enumerate(texts):
        data = text if isinstance(text, bytes) else text.encode()
        (folder / f"{number}.csv").write_bytes(data)
    return Source((str(folder / "*.csv"),), output_split="train", **rest)


def values_of(folder, *texts, **rest):
    source = write_source(folder, *texts, **rest)
    (group,) = group_files(find_files(source))
    return list(read_entries(group, source))


def of_type(values, kind):
    return [value for value in values if isinstance(value, kind)]


def test_lines_of_one_image_need_not_be_adjacent(tmp_path):
    text = HEADER + "b.jpg,64,48,dog,1,2,3,4\na.jpg,64,48,cat,5,6,7,8\nb.jpg,64,48,cat,9,10,11,12\n\nc.jpg,,,,,,,\n"
    values = values_of(tmp_path, text)
    images = of_type(values, Image)
    assert [(i.image_id, i.row, i.size) for i in images] == [
        ("b.jpg", 0, (48, 64)),
        ("a.jpg", 1, (48, 64)),
        ("c.jpg", 2, None),
    ]
    assert [(b.image_id, b.box.category, b.box.corners, b.box.where) for b in of_type(values, SeparateBox)] == [
        ("b.jpg", "dog", (2, 1, 4, 3), "line 2"),
        ("a.jpg", "cat", (6, 5, 8, 7), "line 3"),
        ("b.jpg", "cat", (10, 9, 12, 11), "line 4"),
    ]
    assert of_type(values, Category) == [Category("dog", 0, "dog"), Category("cat", 0, "cat")]
    assert of_type(values, Listing)[0].images == 3


def test_an_image_may_have_lines_in_several_files(tmp_path):
    line = "a.jpg,64,48,cat,1,2,3,4\n"
    values = values_of(tmp_path, HEADER + line, HEADER + "z.jpg,64,48,cat,1,2,3,4\n" + line)
    assert [(image.image_id, image.row) for image in of_type(values, Image)] == [("a.jpg", 0), ("z.jpg", 1)]
    boxes = of_type(values, SeparateBox)
    assert [box.image_id for box in boxes] == ["a.jpg", "z.jpg", "a.jpg"]
    assert len({(box.file, box.row) for box in boxes}) == 3


def test_columns_are_found_by_name_in_any_order(tmp_path):
    text = "\ufeffxmax, ymax ,Class,split,filename,xmin,ymin\r\n7,8,cat,train,a.jpg,5,6\r\n"
    (box,) = of_type(values_of(tmp_path, text), SeparateBox)
    assert (box.image_id, box.box.category, box.box.corners) == ("a.jpg", "cat", (6, 5, 8, 7))


def test_quoted_names_may_contain_commas(tmp_path):
    (box,) = of_type(values_of(tmp_path, HEADER + '"a,b.jpg",64,48,"cat, ""big""",1,2,3,4\n'), SeparateBox)
    assert (box.image_id, box.box.category) == ("a,b.jpg", 'cat, "big"')


@pytest.mark.parametrize(
    "line",
    [
        b"a.jpg,64,48,cat,1,2,3",
        b"\xff\xfe,64,48,cat,1,2,3,4",
        b'"a.jpg,64,48,cat,1,2,3,4',
        b",64,48,cat,1,2,3,4",
        b"x" * 70000,
    ],
)
def test_an_unreadable_line_gives_a_box_without_an_image(tmp_path, line):
    lines = b"a.jpg,64,48,cat,1,2,3,4\n" + line + b"\na.jpg,64,48,dog,1,2,3,4\n"
    values = values_of(tmp_path, HEADER.encode() + lines)
    (image,) = of_type(values, Image)
    assert (image.problem, of_type(values, Listing)[0].images) == (None, 1)
    first, *bad, last = of_type(values, SeparateBox)
    assert [(box.image_id, box.box.problem, box.box.category) for box in (first, last)] == [
        ("a.jpg", None, "cat"), ("a.jpg", None, "dog"),
    ]  # fmt: skip
    assert {box.box.problem.reason for box in bad} == {"broken_annotation"}
    assert {box.image_id for box in bad} == {str(tmp_path / "0.csv")}
    assert bad[0].box.where == "line 3"


@pytest.mark.parametrize("fields", ["cat,1,two,3,4", "cat,1,2,3,", ",1,2,3,4"])
def test_an_invalid_box_gives_a_box_with_a_problem(tmp_path, fields):
    (box,) = of_type(values_of(tmp_path, f"{HEADER}a.jpg,64,48,{fields}\n"), SeparateBox)
    assert box.box.problem.reason == "broken_box"


def test_a_file_name_outside_the_folder_is_rejected(tmp_path):
    text = HEADER + "a.jpg,64,48,cat,1,2,3,4\n../a.jpg,64,48,cat,1,2,3,4\n"
    inside, outside = of_type(values_of(tmp_path, text), Image)
    assert (inside.problem, outside.problem.reason) == (None, "path_traversal")


def test_a_line_with_another_image_size_is_rejected(tmp_path):
    lines = ["a.jpg,,,x,1,2,3,4", "a.jpg,64,48,x,1,2,3,4", "a.jpg,640,480,x,1,2,3,4", "a.jpg,,,x,1,2,3,4"]
    values = values_of(tmp_path, HEADER + "\n".join(lines), "".join([HEADER, "a.jpg,64,47,x,1,2,3,4\n"]))
    assert len(of_type(values, Image)) == 1
    boxes = [box.box for box in of_type(values, SeparateBox)]
    assert [box.problem and box.problem.reason for box in boxes] == [
        None, None, "size_mismatch", None, "size_mismatch",
    ]  # fmt: skip
    assert "(480, 640)" in boxes[2].problem.detail


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("", r"x\.csv: the file is empty .* expected filename,class,xmin,ymin,xmax,ymax"),
        (
            "filename,class,xmin,ymin,xmax\n",
            r"x\.csv: the header has no columns for an image and a box, only filename, c",
        ),
        ("a;b;c\n", r"x\.csv: the header has no columns for an image and a box, only a, b, c; rename"),
    ],
)
def test_a_header_without_a_required_column_is_rejected(tmp_path, header, message):
    path = tmp_path / "x.csv"
    path.write_text(header)
    with pytest.raises(DataError, match=message):
        find_files(Source((str(path),), output_split="train"))


def test_files_are_found_by_split_name(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(jpeg())
    (tmp_path / "train_labels.csv").write_text(HEADER)
    (tmp_path / "val.csv.gz").write_bytes(gzip.compress(HEADER.encode()))
    for given, split in ((tmp_path, "train"), (tmp_path / "val.csv.gz", "val")):
        (file,) = find_files(Source((str(given),), output_split=split))
        assert file.images == str(tmp_path / "images")
    with pytest.raises(DataError, match=r"no split 'test'; CSV annotations with train, val"):
        find_files(Source((str(tmp_path),), output_split="test"))


def test_images_are_found_next_to_a_file_given_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jpg").write_bytes(jpeg())
    (tmp_path / "train.csv").write_text(HEADER)
    (file,) = find_files(Source(("train.csv",), output_split="train"))
    assert file.images == "."


def test_output_inside_the_dataset_is_not_used_as_image_folder(tmp_path, prepare):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(jpeg())
    (tmp_path / "train.csv").write_text(HEADER + "a.jpg,64,48,cat,1,2,30,40\n")
    for _ in range(2):
        manifest = prepare("csv", tmp_path, tmp_path, config=SMALL)
        assert manifest.splits["train"].images == 1


@pytest.mark.parametrize("error", [ConnectionResetError(), OSError(errno.EIO, "Input/output error")])
def test_a_storage_error_stops_the_job_instead_of_losing_data(tmp_path, monkeypatch, error):
    text = HEADER + "a.jpg,64,48,cat,1,2,3,4\n" * 3
    (file,) = find_files(write_source(tmp_path, text))
    monkeypatch.setattr(beam_storage, "open_input", lambda _: FailingFile(text.encode()[:-5], error))
    with pytest.raises(DataError, match=r"0\.csv could not be read to its end .* again"):
        list(read_entries(*group_files([file]), SOURCE))


@pytest.mark.parametrize("error", [EOFError(), zlib.error("-3"), OSError("Invalid data stream")])
def test_lines_before_the_damage_of_a_file_are_read(tmp_path, monkeypatch, error):
    text = HEADER + "a.jpg,64,48,cat,1,2,3,4\n" * 3
    (file,) = find_files(write_source(tmp_path, text))
    monkeypatch.setattr(beam_storage, "open_input", lambda _: FailingFile(text.encode()[:-5], error))
    values = list(read_entries(*group_files([file]), SOURCE))
    assert [image.problem is None for image in of_type(values, Image)] == [True, False]
