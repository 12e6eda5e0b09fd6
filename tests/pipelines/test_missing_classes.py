"""If no annotation can be used, there are no classes: the message gives the cause, and nothing is lost silently."""

import json

import pytest
from raw_sets import jpeg

VOC = (
    "<annotation><filename>{0}.jpg</filename><object><name>{1}</name><bndbox><xmin>1</xmin><ymin>1</ymin>"
    "<xmax>30</xmax><ymax>30</ymax></bndbox></object></annotation>"
)
HEADER = "filename;class;xmin;ymin;xmax;ymax\n"


def write_images(tmp_path):
    (tmp_path / "raw").mkdir()
    for number, name in enumerate("abcd"):
        (tmp_path / "raw" / f"{name}.jpg").write_bytes(jpeg(number))
    return tmp_path / "raw"


def write_latin_voc(folder):
    for name in "abcd":
        (folder / f"{name}.xml").write_bytes(VOC.format(name, "Käse").encode("cp1252"))


def write_malformed_voc(folder):
    for name in "abcd":
        (folder / f"{name}.xml").write_text(VOC.format(name, "nut & bolt"))


def write_latin_csv(folder):
    (folder / "labels.csv").write_bytes(
        (HEADER + "".join(f"{n}.jpg;Käse;1;1;30;30\n" for n in "abcd")).encode("cp1252")
    )


def write_csv_with_units(folder):
    (folder / "labels.csv").write_text(HEADER + "".join(f"{n}.jpg;cat;1px;1px;30px;30px\n" for n in "abcd"))


@pytest.mark.parametrize(
    ("write", "cause", "boxes"),
    [
        (write_latin_voc, "broken_annotation (4), for example a: not a text file in UTF-8", 0),
        (write_malformed_voc, "broken_annotation (4), for example a: not well-formed", 0),
        (write_latin_csv, "broken_annotation (4), for example {0}/labels.csv: the line is not UTF-8 text", 4),
        (write_csv_with_units, "broken_box (4), for example a.jpg: xmin: expected a number, got '1px'", 4),
    ],
)
def test_the_cause_is_reported(tmp_path, command, write, cause, boxes):
    folder = write_images(tmp_path)
    write(folder)
    message = f"no classes: no annotation can be used; most frequent reason: {cause.format(folder)}"
    code, _, err = command(f"--input={folder}", f"--output={tmp_path / 'out'}", "--split_by=none")
    assert code == 3
    assert message in err
    # A cause that contains advice gets no general one.
    assert ("check --input_format" in err) == (write is write_malformed_voc)
    assert f"all reasons are in {tmp_path / 'out/train/rejected.jsonl'}" in err
    assert not (tmp_path / "out/dataset.json").exists()
    # Every image and box is in the list.
    lines = [json.loads(line) for line in (tmp_path / "out/train/rejected.jsonl").read_text().splitlines()]
    assert sorted(line["image"] for line in lines if not line["where"]) == sorted(
        f"{name}.jpg" if boxes else name for name in "abcd"
    )
    assert sum(bool(line["where"]) for line in lines) == boxes

    # The survey of ssd-fit writes no list.
    code, _, err = command(f"--input={folder}", "--output=unused", f"--survey={tmp_path / 'survey.json'}")
    assert code == 3
    assert message in err
    assert not (tmp_path / "survey.json").exists()


def test_annotations_without_objects_have_no_other_cause(tmp_path, command):
    folder = write_images(tmp_path)
    for name in "abcd":
        (folder / f"{name}.xml").write_text(f"<annotation><filename>{name}.jpg</filename></annotation>")
    code, _, err = command(f"--input={folder}", f"--output={tmp_path / 'out'}", "--split_by=none")
    assert code == 3
    assert "no classes: the annotations contain none; check --input, --input_format" in err
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "out/train/rejected.jsonl").read_text().splitlines()]
    assert reasons == ["no_classes"] * 4


def test_a_corrected_dataset_replaces_the_rejections(tmp_path, command):
    folder = write_images(tmp_path)
    write_latin_voc(folder)
    flags = [f"--input={folder}", f"--output={tmp_path / 'out'}", "--split_by=none", "--resume"]
    assert command(*flags, "--set=model.input_size=64")[0] == 3
    for name in "abcd":
        (folder / f"{name}.xml").write_text(VOC.format(name, "Käse"))
    assert command(*flags, "--set=model.input_size=64")[0] == 0
    assert (tmp_path / "out/train/rejected.jsonl").read_text() == ""
    split = json.loads((tmp_path / "out/dataset.json").read_text())["splits"]["train"]
    assert (split["images"], split["boxes"], split["rejected_images"]) == (4, 4, {})
