"""VOC reader: layouts, valid annotations, and annotations that are wrong, broken or malicious."""

from dataclasses import replace

import pytest
from raw_sets import jpeg, make_voc, voc_xml

from pipelines.annotations import Category, Image, Listing
from pipelines.readers.sources import Source
from pipelines.readers.voc import list_annotations, read_annotation
from pipelines.readers.voc_layout import find_layouts
from pipelines.readers.voc_xml import VocEntry, parse_annotation
from ssd_dist.core.errors import DataError

ENTRY = VocEntry("a", 4, "/d/Annotations/a.xml", "/d/JPEGImages")


def parse(text):
    return parse_annotation(text.encode() if isinstance(text, str) else text, ENTRY)


def test_an_annotation_is_parsed_without_changes():
    xml = voc_xml("a.jpg", [("cat", 1, 2, 30, 40), ("dog", 5.5, 6, 7, 8)]).replace("<difficult>0", "<difficult>1", 1)
    image = parse(xml)
    assert (image.image_id, image.row, image.filename, image.size) == ("a", 4, "a.jpg", (48, 64))
    assert image.path == "/d/JPEGImages/a.jpg"
    assert [(b.category, b.corners, b.difficult, b.where) for b in image.boxes] == [
        ("cat", (1, 2, 30, 40), True, "object 0"), ("dog", (5.5, 6, 7, 8), False, "object 1"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["../JPEGImages/a.jpg", "..\\JPEGImages\\a.jpg", "../../d/JPEGImages/a.jpg"])
def test_a_name_relative_to_the_annotation_is_found_in_the_image_folder(name):
    image = parse(voc_xml(name, []))
    assert (image.problem, image.path) == (None, "/d/JPEGImages/a.jpg")
    beside = parse(voc_xml(name.replace("JPEGImages", "JPEGImages2"), []))
    assert beside.problem.reason == "path_traversal"


@pytest.mark.parametrize("name", ["", ":v"])
def test_namespaces_are_ignored(name):
    plain = voc_xml("a.jpg", [("cat", 1, 2, 30, 40)])
    prefix = f"{name[1:]}:" if name else ""
    spaced = plain.replace("</", "\0").replace("<", f"<{prefix}").replace("\0", f"</{prefix}")
    spaced = spaced.replace(f"<{prefix}annotation>", f'<{prefix}annotation xmlns{name}="http://x"><!-- by a tool -->')
    assert parse(spaced) == parse(plain)


def test_the_image_with_the_name_of_the_annotation_precedes_the_one_that_it_names():
    own = replace(ENTRY, image="/d/JPEGImages/a.png")
    assert parse_annotation(voc_xml("scan_17.bmp", []).encode(), own).path == "/d/JPEGImages/a.png"
    # The same name with another suffix is no other image.
    assert parse_annotation(voc_xml("A.bmp", []).encode(), own).path == "/d/JPEGImages/A.bmp"
    image = parse(voc_xml("scan_17.bmp", []))
    assert (image.path, image.stems) == ("/d/JPEGImages/scan_17.bmp", ("/d/JPEGImages/scan_17", "/d/JPEGImages/a"))


def test_renamed_images_are_found_by_the_name_of_the_annotation(tmp_path):
    make_voc(tmp_path, {"1": [("cat", 1, 2, 30, 40)], "2": [], "3": []})
    # 1 and 2 name the same file; 3 names one of two files with another suffix, and its own image is missing.
    for name, given in (("1", "2.jpg"), ("2", "2.jpg"), ("3", "scan.png")):
        (tmp_path / f"Annotations/{name}.xml").write_text(voc_xml(given, []))
    (tmp_path / "JPEGImages/3.jpg").rename(tmp_path / "JPEGImages/scan.jpg")
    (tmp_path / "JPEGImages/scan.png").write_bytes(jpeg(9))
    source = Source((str(tmp_path),), output_split="train")
    entries = [entry for entry in list_annotations(find_layouts(source), source) if isinstance(entry, VocEntry)]
    images = [element for entry in entries if not entry.problem for _, element in read_annotation(entry)]
    found = {image.image_id: image.path for image in images if isinstance(image, Image)}
    assert found == {
        name: f"{tmp_path}/JPEGImages/{file}" for name, file in (("1", "1.jpg"), ("2", "2.jpg"), ("3", "scan.png"))
    }


def test_polygons_of_labelme_of_mit_are_read_and_its_deleted_objects_are_rejected():
    def write_object(deleted):
        points = "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in ((10, 20), (30, 20), (30, 60)))
        return f"<object><name>car</name><deleted>{deleted}</deleted><polygon>{points}</polygon></object>"

    image = parse(f"<annotation><filename>a.jpg</filename>{write_object(0)}{write_object(1)}</annotation>")
    first, second = image.boxes
    assert (first.category, first.corners, first.is_reduced, first.problem) == ("car", (20, 10, 60, 30), True, None)
    assert second.problem.reason == "marked_invalid"


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints/1-checkpoint.xml", "._1.xml"])
def test_hidden_files_are_no_annotations(tmp_path, hidden):
    make_voc(tmp_path, {"1": [("cat", 1, 2, 30, 40)]})
    path = tmp_path / "Annotations" / hidden
    path.parent.mkdir(exist_ok=True)
    path.write_text(voc_xml("1.jpg", [("dog", 1, 2, 30, 40)]))
    source = Source((str(tmp_path),), output_split="train")
    entries = [entry for entry in list_annotations(find_layouts(source), source) if isinstance(entry, VocEntry)]
    assert [entry.image_id for entry in entries] == ["1"]


BILLION_LAUGHS = (
    '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><annotation><filename>&b;</filename></annotation>'
)
EXTERNAL = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation><filename>&a;</filename></annotation>'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "broken_annotation"),
        ("<annotation>", "broken_annotation"),
        (b"\xff\xfe\x00", "broken_annotation"),
        (b'<?xml version="1.0" encoding="no-such"?><a/>', "broken_annotation"),
        (voc_xml("a.jpg", [])[:-5], "broken_annotation"),
        (f"<annotations>{voc_xml('a.jpg', [])}</annotations>", "broken_annotation"),
        ("<html><body/></html>", "broken_annotation"),
        (BILLION_LAUGHS, "unsafe_annotation"),
        (EXTERNAL, "unsafe_annotation"),
        (voc_xml("../../etc/passwd", []), "path_traversal"),
        (voc_xml("..\\..\\secret.jpg", []), "path_traversal"),
    ],
)
def test_bad_annotations_give_images_with_a_problem(text, reason):
    image = parse(text)
    assert image.problem.reason == reason
    assert (image.image_id, image.row, image.source) == ("a", 4, ENTRY.annotation)


@pytest.mark.parametrize(
    "fault",
    [
        ("<xmin>2</xmin>", ""),
        ("<xmin>2</xmin>", "<xmin>two</xmin>"),
        ("<name>cat</name>", ""),
        ("<name>cat", "<name> "),
    ],
)
def test_broken_objects_give_boxes_with_a_problem(fault):
    image = parse(voc_xml("a.jpg", [("cat", 1, 2, 3, 4), ("dog", 1, 9, 3, 14)]).replace(*fault))
    assert image.problem is None
    assert [box.problem and box.problem.reason for box in image.boxes] == ["broken_box", None]


@pytest.mark.parametrize("size", [None, (0, 0)])
def test_a_missing_or_zero_size_is_ignored(size):
    assert parse(voc_xml("a.jpg", [], size)).size is None


def test_an_entry_yields_its_image_and_classes(tmp_path):
    folder = make_voc(tmp_path, {"a": [("cat", 1, 2, 3, 4), ("cat", 1, 2, 5, 6), ("dog", 1, 2, 3, 4)]})
    entry = VocEntry("a", 0, str(folder / "Annotations/a.xml"), str(folder / "JPEGImages"))
    values = [value for _, value in read_annotation(entry)]
    assert isinstance(values[0], Image)
    assert values[1:] == [Category("cat", 0, "cat"), Category("dog", 0, "dog")]
    missing = VocEntry("b", 0, str(folder / "Annotations/b.xml"), str(folder / "JPEGImages"))
    ((_, image),) = read_annotation(missing)
    assert image.problem.reason == "missing_annotation"


def list_ids(folder, output_split, **rest):
    source = Source((str(folder),), output_split=output_split, **rest)
    *entries, end = list_annotations(find_layouts(source), source)
    assert isinstance(end, Listing)
    assert end.images == len(entries)
    assert [entry.row for entry in entries] == list(range(len(entries)))
    return [entry.image_id for entry in entries]


def test_the_list_file_defines_the_images_and_their_order(tmp_path):
    make_voc(
        tmp_path, {name: [] for name in "abcd"}, {"train": ["c", "a"], "val": ["b"], "cat_train": ["c  1", "a -1"]}
    )
    # The image d, which is in no list, is rejected with the first split.
    assert list_ids(tmp_path, "train") == ["c", "a", f"{tmp_path}/JPEGImages/d.jpg"]
    assert list_ids(tmp_path, "val") == ["b"]
    assert list_ids(tmp_path, "cat_train") == ["c", "a"]
    with pytest.raises(DataError, match="cat_train, train, val"):
        list_ids(tmp_path, "test")


def test_ids_in_a_list_file_may_contain_spaces_but_no_paths_outside_the_folder(tmp_path):
    ids = ["a b", "a b -1", "c  1", "../../x", "/etc/passwd", "/x/d.jpg"]
    folder = make_voc(tmp_path, {"a b": [], "c": []}, {"train": ids})
    source = Source((str(folder),), output_split="train")
    *entries, _ = list_annotations(find_layouts(source), source)
    assert [entry.image_id for entry in entries] == ["a b", "a b", "c", "x", "/etc/passwd", "d"]
    images = [next(read_annotation(entry))[1] for entry in entries]
    problems = [image.problem and image.problem.reason for image in images]
    assert problems == [None, None, None, "path_traversal", "missing_annotation", "missing_annotation"]


def test_without_list_files_all_annotations_are_listed(tmp_path):
    make_voc(tmp_path, {name: [] for name in "bca"}, {})
    assert list_ids(tmp_path, "train") == ["a", "b", "c"]


def test_an_id_that_ends_in_a_number_is_not_shortened_to_another_id(tmp_path):
    ids = ["scan 1", "scan 0", "scan"]
    make_voc(tmp_path, {name: [] for name in ids}, {"train": ids[:2], "val": ids[2:], "cat_train": ["scan 1 -1"]})
    assert list_ids(tmp_path, "train") == ids[:2]
    assert list_ids(tmp_path, "cat_train") == ["scan 1"]


def test_annotations_in_subfolders_and_with_upper_case_suffixes_are_listed(tmp_path):
    make_voc(tmp_path, {"a": [], "b": []}, {})
    (tmp_path / "Annotations" / "b.xml").rename(tmp_path / "Annotations" / "b.XML")
    for name in ("Annotations", "JPEGImages"):
        (tmp_path / name / "cam1").mkdir()
    (tmp_path / "Annotations" / "cam1" / "a.xml").write_text(voc_xml("a.jpg", []))
    (tmp_path / "JPEGImages" / "cam1" / "a.jpg").write_bytes(jpeg())
    assert list_ids(tmp_path, "train") == ["a", "b", "cam1/a"]
    source = Source((str(tmp_path),), output_split="train")
    *entries, _ = list_annotations(find_layouts(source), source)
    image = next(read_annotation(entries[2]))[1]
    # The image in the subfolder comes first; the image of the same name in the parent folder is only a fallback.
    assert (image.image_id, image.path) == ("cam1/a", str(tmp_path / "JPEGImages/cam1/a.jpg"))
    assert image.stems == (str(tmp_path / "JPEGImages/cam1/a"), str(tmp_path / "JPEGImages/a"))


def test_a_list_file_may_contain_annotations_in_subfolders(tmp_path):
    make_voc(tmp_path, {"a": []}, {"train": ["cam1/a", "a", "cam1/a 1"]})
    (tmp_path / "Annotations" / "cam1").mkdir()
    for name in ("a", "a 1"):
        (tmp_path / "Annotations" / "cam1" / f"{name}.xml").write_text(voc_xml("a.jpg", []))
    assert list_ids(tmp_path, "train") == ["cam1/a", "a", "cam1/a 1"]


def test_one_folder_per_split_replaces_list_files(tmp_path):
    make_voc(tmp_path, {}, {})
    for split, name in (("train", "a"), ("val", "b")):
        for folder in ("Annotations", "JPEGImages"):
            (tmp_path / folder / split).mkdir()
        (tmp_path / "Annotations" / split / f"{name}.xml").write_text(voc_xml(f"{name}.jpg", []))
        (tmp_path / "JPEGImages" / split / f"{name}.jpg").write_bytes(jpeg())
    assert list_ids(tmp_path, "train") == ["a"]
    assert list_ids(tmp_path, "val") == ["b"]
    (layout,) = find_layouts(Source((str(tmp_path),), output_split="val"))
    assert layout.images == str(tmp_path / "JPEGImages/val")
    with pytest.raises(DataError, match="with train, val"):
        list_ids(tmp_path, "train", split="test")


def test_one_flat_folder_per_split(tmp_path):
    for split, name in (("train", "a"), ("val", "b")):
        (tmp_path / split).mkdir()
        (tmp_path / split / f"{name}.xml").write_text(voc_xml(f"{name}.jpg", []))
    assert list_ids(tmp_path, "train") == ["a"]
    assert list_ids(tmp_path, "val") == ["b"]


def test_a_pattern_of_xml_files_is_listed(tmp_path):
    make_voc(tmp_path, {name: [] for name in ("x1", "x2", "y1")}, {})
    assert list_ids(tmp_path / "Annotations/x*.xml", "train") == ["x1", "x2"]
    with pytest.raises(DataError, match="matches no file"):
        list_ids(tmp_path / "Annotations/z*.xml", "train")


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_missing_inputs_are_rejected(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=name):
        list_ids(tmp_path / name, "train")


def test_folder_names_may_contain_pattern_characters(tmp_path):
    folder = make_voc(tmp_path / "set [1]", {"a": []}, {})
    assert list_ids(folder, "train") == ["a"]
