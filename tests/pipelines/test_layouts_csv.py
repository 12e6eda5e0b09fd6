"""CSV files where annotation tools put them: splits, and where the images are."""

import gzip

import pytest
from csv_sets import BOX, HEADER, SMALL, read
from raw_sets import write_files

from pipelines.annotations import Image
from pipelines.readers.csv import find_files, find_splits, group_files, read_csv, read_entries
from pipelines.readers.sources import Source
from ssd_dist.core.errors import DataError


def locate(image):
    """Returns the path of the file of an image, whose name may lack the suffix."""
    return image.path if image.path.endswith(".jpg") else f"{image.stems[0]}.jpg"


def layout(kind, splits=("train", "valid", "test")):
    """Returns the files of a dataset of one image per split, and the folder of the images of `train`."""
    line = {split: HEADER + f"{split}.jpg,64,48,bolt,10,12,50,36\n" for split in splits}
    if kind == "roboflow":
        return {f"{s}/_annotations.csv": line[s] for s in splits} | {f"{s}/{s}.jpg": None for s in splits}
    if kind == "tf":
        return {f"{s}_labels.csv": line[s] for s in splits} | {f"images/{s}.jpg": None for s in splits}
    if kind == "playing cards":
        return {f"images/{s}_labels.csv": line[s] for s in splits} | {f"images/{s}/{s}.jpg": None for s in splits}
    if kind == "data":
        return {f"data/{s}_labels.csv": line[s] for s in splits} | {f"images/{s}/{s}.jpg": None for s in splits}
    if kind == "annotations":
        return {f"annotations/{s}.csv": line[s] for s in splits} | {f"{s}/{s}.jpg": None for s in splits}
    if kind == "kaggle":
        return {f"{s}.csv": line[s] for s in splits} | {f"{s}_images/{s}.jpg": None for s in splits}
    if kind == "gzip":
        return {f"{s}.csv.gz": gzip.compress(line[s].encode()) for s in splits} | {f"{s}/{s}.jpg": None for s in splits}
    if kind == "kaggle cars":
        names = {"train": "training", "valid": "validation", "test": "testing"}
        files = {f"data/{s}_solution_bounding_boxes (1).csv": line[s] for s in splits}
        return files | {f"data/{names[s]}_images/{s}.jpg": None for s in splits}
    assert kind == "images of another name"
    return {f"boxes_{s}.csv": line[s] for s in splits} | {f"photos/{s} set/{s}.jpg": None for s in splits}


LAYOUTS = (
    "roboflow",
    "tf",
    "playing cards",
    "data",
    "annotations",
    "kaggle",
    "kaggle cars",
    "gzip",
    "images of another name",
)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_the_splits_of_a_folder_are_found_with_their_images(tmp_path, kind):
    write_files(tmp_path, layout(kind) | {"sample_submission.csv": HEADER, "classes.csv": "bolt,0\n"})
    found = find_splits(str(tmp_path), "")
    assert sorted(found.splits) == ["test", "train", "valid"]
    for split, source_split in (("train", "train"), ("val", "valid"), ("test", "test")):
        for wanted in ("", source_split):
            (image,), (box,) = read(tmp_path, split, wanted)
            assert (tmp_path / image.path).is_file()
            assert (image.image_id, image.problem, box.box.corners) == (f"{source_split}.jpg", None, BOX)
    # The images of a folder that several splits share are not counted.
    assert found.images == ({} if kind == "tf" else {"train": 1, "valid": 1, "test": 1})


def test_the_command_recognizes_a_roboflow_export(tmp_path, command, prepare):
    write_files(tmp_path / "in", layout("roboflow"))
    code, output, errors = command(
        f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", "--set=model.input_size=64"
    )
    assert (code, errors) == (0, "")
    assert "Roboflow export (CSV annotations)" in output
    for split in ("train", "val", "test"):
        assert (tmp_path / "out" / split).is_dir()
    arguments = (f"--input={tmp_path / 'in'}", "--input_format=csv", f"--output={tmp_path / 'two'}", "--split=train")
    assert command(*arguments, "--set=model.input_size=64")[0] == 0


def test_a_roboflow_retinanet_export_is_read(tmp_path):
    files = {}
    for split in ("train", "valid"):
        files |= {f"{split}/_annotations.csv": f"{split}.jpg,10,12,50,36,bolt\n", f"{split}/_classes.csv": "bolt,0\n"}
        files[f"{split}/{split}.jpg"] = None
    write_files(tmp_path, files)
    assert find_splits(str(tmp_path), "").tool == "Roboflow export (RetinaNet CSV)"
    (image,), (box,) = read(tmp_path, "val")
    assert (image.image_id, box.box.category, box.box.corners) == ("valid.jpg", "bolt", BOX)


@pytest.mark.parametrize(("name", "splits"), [("annotations.csv", ["train", "val"]), ("all.csv", ["val"])])
def test_a_file_beside_that_of_validation_is_the_training_split(tmp_path, name, splits):
    files = {f"images/{number}.jpg": None for number in range(3)}
    files |= {name: "images/0.jpg,10,12,50,36,bolt\nimages/1.jpg,,,,,\n", "classes.csv": "bolt,0\n"}
    write_files(tmp_path, files | {"val_annotations.csv": "images/2.jpg,10,12,50,36,bolt\n"})
    found = find_splits(str(tmp_path), "")
    assert list(found.splits) == splits
    if len(splits) == 2:
        assert [image.image_id for image in read(tmp_path)[0]] == ["images/0.jpg", "images/1.jpg"]
    else:
        assert "not read: all.csv; pass a file as --input to read it" in found.notes
    assert "images/2.jpg" in [image.image_id for image in read(tmp_path, "val")[0]]


def test_a_single_file_contains_the_whole_dataset(tmp_path):
    for name in ("annotations.csv", "my_project-export.csv", "labels/all.csv"):
        folder = write_files(
            tmp_path / name.replace("/", "_"), {name: HEADER + "a.jpg,64,48,x,1,2,3,4\n", "images/a.jpg": None}
        )
        assert list(find_splits(str(folder), "").splits) == [""]
        images, _ = read(folder, "anything")
        assert [image.path for image in images] == [str(folder / "images/a.jpg")]


def test_files_that_differ_in_a_number_are_read_together(tmp_path):
    header = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
    for number in range(3):
        line = f"0.ppm;64;48;10;12;50;36;{number}\n"
        write_files(tmp_path, {f"0000{number}/GT-0000{number}.csv": header + line, f"0000{number}/0.ppm": None})
    found = find_splits(str(tmp_path), "")
    assert (list(found.splits), found.images) == ([""], {"": 3})
    images, boxes = read(tmp_path)
    assert [image.path for image in images] == [str(tmp_path / f"0000{number}/0.ppm") for number in range(3)]
    assert [(box.box.category, box.box.corners) for box in boxes] == [(f"{number}", BOX) for number in range(3)]


def test_copies_of_files_that_differ_in_a_number_are_not_read(tmp_path):
    line = "a.jpg,64,48,bolt,10,12,50,36\n"
    write_files(tmp_path, {"part1.csv": HEADER + line, "part2.csv": HEADER + line, "backup/part1.csv": HEADER + line})
    write_files(tmp_path, {"images/a.jpg": None})
    (note,) = find_splits(str(tmp_path), "").notes
    assert "backup/part1.csv is not read" in note
    images, boxes = read(tmp_path)
    assert ([image.filename for image in images], len(boxes)) == (["a.jpg"], 2)


def test_files_whose_names_contain_no_split_are_announced(tmp_path):
    text = HEADER + "a.jpg,64,48,x,1,2,3,4\n"
    write_files(tmp_path, {"a.jpg": None, "train.csv": text, "test.csv": text, "backup.csv": text})
    found = find_splits(str(tmp_path), "")
    assert sorted(found.splits) == ["test", "train"]
    assert found.notes == ("not read: backup.csv; pass a file as --input to read it",)


@pytest.mark.parametrize(
    ("files", "read_files", "note"),
    [
        ({"annotations.csv": "abc", "annotations_extra.csv": "de"}, "abcde", "read together"),
        ({"day.csv": "abc", "night.csv": "de"}, "abcde", "read together"),
        # A copy, and an older file with fewer images.
        ({"labels.csv": "abc", "labels - Copy.csv": "abc"}, "abc", "labels - Copy.csv is not read"),
        ({"labels.csv": "abc", "labels_old.csv": "ab"}, "abc", "0 of its 2 images are in no file that is read"),
        ({"old.csv": "abd", "new.csv": "abce"}, "abce", "1 of its 3 images are in no file that is read"),
    ],
)
def test_files_of_different_images_are_read_together(tmp_path, files, read_files, note):
    texts = {
        name: HEADER + "".join(f"{stem}.jpg,64,48,bolt,10,12,50,36\n" for stem in stems)
        for name, stems in files.items()
    }
    write_files(tmp_path, texts | {f"images/{stem}.jpg": None for stem in "abcde"})
    found = find_splits(str(tmp_path), "")
    assert any(note in line for line in found.notes)
    images, boxes = read(tmp_path)
    assert sorted(image.filename for image in images if image.problem is None) == [f"{stem}.jpg" for stem in read_files]
    assert len(boxes) == len(read_files)
    # A single file can still be selected by its name.
    for name in [name for name in files if name.startswith(("day", "night"))]:
        images, _ = read(tmp_path, source_split=name.removesuffix(".csv"))
        assert [image.filename for image in images if image.problem is None] == [f"{stem}.jpg" for stem in files[name]]


def test_images_that_no_line_lists_are_reported(tmp_path, prepare):
    files = layout("kaggle", ("train",)) | {"train_images/unlisted.jpg": None, "test_images/other.jpg": None}
    write_files(tmp_path, files)
    images, _ = read(tmp_path)
    assert [(image.filename, image.problem and image.problem.reason) for image in images] == [
        ("train.jpg", None), ("unlisted.jpg", "not_annotated"),
    ]  # fmt: skip
    split = prepare("csv", tmp_path, tmp_path / "out", config=SMALL).splits["train"]
    assert (split.images_read, split.images, split.rejected_images) == (2, 1, {"not_annotated": 1})


def test_images_of_a_shared_folder_are_not_reported(tmp_path):
    write_files(tmp_path, layout("tf"))
    assert [image.image_id for image in read(tmp_path)[0]] == ["train.jpg"]
    assert [image.image_id for image in read(tmp_path / "train_labels.csv")[0]] == ["train.jpg"]


def test_a_listed_image_without_a_file_is_missing(tmp_path, prepare):
    text = HEADER + "a.jpg,64,48,bolt,10,12,50,36\nb.jpg,64,48,bolt,10,12,50,36\n"
    write_files(tmp_path, {"train/a.jpg": None, "train.csv": text})
    split = prepare("csv", tmp_path, tmp_path / "out", config=SMALL).splits["train"]
    assert split.rejected_images == {"missing_image": 1}


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("/content/data/train/cat/1.jpg", "photos/train/cat/1.jpg"),
        ("C:\\Users\\me\\train\\cat\\1.jpg", "photos/train/cat/1.jpg"),
        ("gs://bucket/set/1.jpg", "photos/train/cat/1.jpg"),
        ("../images/1.jpg", "photos/train/cat/1.jpg"),
        ("1", "photos/train/cat/1.jpg"),
        ("cat/1.png", "photos/train/cat/1.jpg"),
    ],
)
def test_images_are_found_by_names_of_another_machine(tmp_path, name, path):
    write_files(
        tmp_path, {path: None, "photos/train/dog/2.jpg": None, "train.csv": f"{HEADER}{name},64,48,bolt,10,12,50,36\n"}
    )
    images, _ = read(tmp_path)
    listed = [image for image in images if image.problem is None]
    assert [image.path for image in listed] == [str(tmp_path / path)]
    for image_dir in (tmp_path / "photos", tmp_path / "photos/train/cat"):
        (image, *_), _ = read(tmp_path / "train.csv", image_dir=str(image_dir))
        assert (locate(image), image.problem) == (str(tmp_path / path), None)


def test_folders_of_classes_that_the_first_lines_do_not_contain_are_found(tmp_path):
    files = {f"photos/cat/{number}.jpg": b"" for number in range(300)} | {"photos/dog/d.jpg": None}
    lines = [f"{number}.jpg,bolt,1,2,3,4\n" for number in range(300)] + ["d.jpg,bolt,1,2,3,4\n"]
    write_files(tmp_path, files | {"train.csv": "filename,class,xmin,ymin,xmax,ymax\n" + "".join(lines)})
    images, _ = read(tmp_path)
    assert (len(images), images[-1].path, images[-1].problem) == (301, str(tmp_path / "photos/dog/d.jpg"), None)


def test_a_name_that_fits_two_files_is_rejected(tmp_path):
    text = "filename,class,xmin,ymin,xmax,ymax\n1.jpg,bolt,1,2,3,4\n2.jpg,bolt,1,2,3,4\n"
    write_files(tmp_path, {"x/cat/1.jpg": None, "x/dog/1.jpg": None, "x/dog/2.jpg": None, "all.csv": text})
    images, _ = read(tmp_path)
    assert [(image.image_id, image.problem and image.problem.reason) for image in images[:2]] == [
        ("1.jpg", "ambiguous_image"), ("2.jpg", None),
    ]  # fmt: skip


AUTOML = (
    "TRAIN,gs://b/a.jpg,bolt,0.1,0.2,,,0.5,0.75,,\n"
    "TRAIN,gs://b/a.jpg,nut,0.1,0.2,0.5,0.2,0.5,0.75,0.1,0.75\n"
    "VALIDATION,gs://b/v.jpg,bolt,0.1,0.2,,,0.5,0.75,,\n"
    "TEST,gs://b/t.jpg\n"
)


@pytest.mark.parametrize("validation", ["VALIDATE", "VALIDATION"])
@pytest.mark.parametrize("header", ["", "set,path,label,x_min,y_min,x_max,y_min,x_max,y_max,x_min,y_max\n"])
def test_the_splits_of_automl_are_those_of_its_first_column(tmp_path, header, validation):
    text = header + AUTOML.replace("VALIDATION", validation)
    write_files(tmp_path, {"data.csv": text, "images/a.jpg": None, "images/v.jpg": None, "images/t.jpg": None})
    for path in (tmp_path, tmp_path / "data.csv"):
        found = find_splits(str(path), "")
        assert list(found.splits) == ["TRAIN", validation, "TEST", ""]
        assert {name: found.images[name] for name in found.names} == {"TRAIN": 1, validation: 1, "TEST": 1}
        (image,), boxes = read(path)
        assert (image.image_id, image.path) == ("gs://b/a.jpg", str(tmp_path / "images/a.jpg"))
        assert [(box.box.category, box.box.normalized, box.box.is_reduced) for box in boxes] == [
            ("bolt", True, False), ("nut", True, False),
        ]  # fmt: skip
        assert [box.box.corners for box in boxes] == [pytest.approx((0.2, 0.1, 0.75, 0.5))] * 2
        assert [image.filename for image in read(path, "val")[0]] == ["gs://b/v.jpg"]
        images, boxes = read(path, "test")
        assert ([image.filename for image in images], boxes) == (["gs://b/t.jpg"], [])


def test_automl_files_without_splits_are_divided(tmp_path):
    lines = [f"UNASSIGNED,{number}.jpg,bolt,0.1,0.2,,,0.5,0.75,,\n" for number in range(8)]
    write_files(tmp_path, {f"{number}.jpg": None for number in range(8)} | {"data.csv": "".join(lines)})
    assert list(find_splits(str(tmp_path), "").splits) == [""]
    shares = (("train", 0.5), ("val", 0.5))
    train, val = ({image.image_id for image in read(tmp_path, split, split_by=shares)[0]} for split in ("train", "val"))
    assert train
    assert len(train | val) == len(train) + len(val) == 8


@pytest.mark.parametrize("column", ["split", "set", "subset", "usage", "Usage"])
def test_a_column_may_contain_the_split(tmp_path, column):
    lines = "a.jpg,bolt,10,12,50,36,train\nb.jpg,bolt,10,12,50,36,Valid\n,,,,,,train\n"
    text = f"filename,class,xmin,ymin,xmax,ymax,{column}\n{lines}"
    write_files(tmp_path, {"boxes.csv": text, "images/a.jpg": None, "images/b.jpg": None, "images/c.jpg": None})
    assert list(find_splits(str(tmp_path), "").splits) == ["train", "Valid", ""]
    images, boxes = read(tmp_path)
    # What belongs to no split is reported once, with the first split.
    assert [(image.filename, image.problem is None) for image in images] == [("a.jpg", True), ("c.jpg", False)]
    assert [box.box.problem and box.box.problem.reason for box in boxes] == [None, "broken_annotation"]
    images, boxes = read(tmp_path, "val")
    assert [(image.filename, image.problem) for image in images] == [("b.jpg", None)]
    assert len(boxes) == 1


def test_files_of_different_images_may_have_a_column_of_splits(tmp_path):
    for name, images in (("day", "ab"), ("night", "cd")):
        lines = [
            f"{image}.jpg,bolt,10,12,50,36,{split}\n" for image, split in zip(images, ("train", "val"), strict=True)
        ]
        text = f"filename,class,xmin,ymin,xmax,ymax,split\n{''.join(lines)}"
        write_files(tmp_path, {f"{name}.csv": text, **{f"images/{image}.jpg": None for image in images}})
    for split, names in (("train", ["a.jpg", "c.jpg"]), ("val", ["b.jpg", "d.jpg"])):
        images, boxes = read(tmp_path, split)
        assert [image.filename for image in images if image.problem is None] == names
        assert len(boxes) == 2


def test_a_column_with_other_values_is_no_split(tmp_path):
    text = "filename,class,xmin,ymin,xmax,ymax,set\na.jpg,bolt,10,12,50,36,winter\n"
    write_files(tmp_path, {"boxes.csv": text, "images/a.jpg": None})
    assert list(find_splits(str(tmp_path), "").splits) == [""]


OPEN_IMAGES = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
    "000a1249af2bc5f0,xclick,/m/01g317,1,0.25,0.75,0.5,1,0,1,1,0,0\n"
    "000a1249af2bc5f0,xclick,/m/0k4j,1,0,1,0,1,0,1,0,0,0\n"
)


@pytest.mark.parametrize(
    "files",
    [
        ("train-annotations-bbox.csv", "class-descriptions-boxable.csv", "train/000a1249af2bc5f0.jpg"),
        ("oidv6-train-annotations-bbox.csv", "oidv7-class-descriptions-boxable.csv",
         "images/train/000a1249af2bc5f0.jpg"),
        ("csv_folder/train-annotations-bbox.csv", "csv_folder/class-descriptions-boxable.csv",
         "Dataset/train/Person_Car/000a1249af2bc5f0.jpg"),
        ("labels/train_boxes.csv", "metadata/classes.csv", "data/000a1249af2bc5f0.jpg"),
    ],
)  # fmt: skip
def test_open_images_are_read_with_their_class_names(tmp_path, files):
    annotations, classes, image = files
    names = "/m/01g317,Person\n/m/0k4j,Car\n"
    labels = "ImageID,Source,LabelName,Confidence\n000a1249af2bc5f0,verification,/m/01g317,1\n"
    write_files(tmp_path, {annotations: OPEN_IMAGES, classes: names, image: None, "train-imagelabels.csv": labels})
    found = find_splits(str(tmp_path), "")
    assert (found.tool, list(found.splits), found.notes) == ("Open Images annotations", ["train"], ())
    (item,), (person, car) = read(tmp_path)
    assert locate(item) == str(tmp_path / image)
    assert (person.box.category, person.box.corners, person.box.is_crowd) == ("Person", (0.5, 0.25, 1, 0.75), True)
    assert (car.box.category, car.box.corners, car.box.is_crowd) == ("Car", (0, 0, 1, 1), False)
    assert person.box.normalized
    assert car.box.normalized


def test_open_images_without_class_names_keep_the_identifiers(tmp_path):
    write_files(tmp_path, {"train-annotations-bbox.csv": OPEN_IMAGES, "train/000a1249af2bc5f0.jpg": None})
    (note,) = find_splits(str(tmp_path), "").notes
    assert "class-descriptions-boxable.csv is not in the folder" in note
    assert read(tmp_path)[1][0].box.category == "/m/01g317"


def test_two_folders_may_use_the_same_file_names(tmp_path):
    for name in ("x", "y"):
        write_files(tmp_path / name, {"train/a.jpg": None, "train.csv": HEADER + "a.jpg,64,48,bolt,10,12,50,36\n"})
    source = Source((str(tmp_path / "x"), str(tmp_path / "y")), output_split="train")
    groups = group_files(find_files(source))
    values = [list(read_entries(group, source)) for group in groups]
    images = [value for own in values for value in own if isinstance(value, Image)]
    assert [(image.file, image.row) for image in images] == [(0, 0), (1, 0)]
    assert images[0].path != images[1].path


def test_files_of_other_contents_are_not_recognized(tmp_path):
    others = {
        "sample_submission.csv": "image_id,PredictionString\na,1.0 0 0 50 50\n",
        "predictions.csv": HEADER + "a.jpg,64,48,bolt,1,2,3,4\n",
        "classes.csv": "bolt,0\nnut,1\n",
        "results.csv": "epoch,train/box_loss,x,y\n0,1,2,3\n",
        "train_masks.csv": "MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax\nx.png,a,/m/1,b,0,1,0,1\n",
        "labels.csv": "filename,label\na.jpg,bolt\n",
    }
    write_files(tmp_path, others | {"a.jpg": None})
    assert find_splits(str(tmp_path), "") is None


def test_csv_files_without_images_are_left_to_the_records_beside_them(tmp_path):
    write_files(tmp_path, {"train_labels.csv": HEADER + "a.jpg,64,48,bolt,1,2,3,4\n", "train.record": b""})
    assert find_splits(str(tmp_path), "") is None
    with pytest.raises(DataError, match=r"train_labels\.csv: its folder contains no image files; pass .* --image_dir"):
        read_csv(Source((str(tmp_path),), output_split="train"))


def test_the_csv_files_of_the_playing_cards_are_found(shared_data):
    found = find_splits(str(shared_data / "battery/playing_cards"), "")
    assert (sorted(found.splits), found.images) == (["test", "train"], {"test": 67, "train": 296})
    for split, image_count, box_count in (("test", 67, 143), ("train", 296, 527)):
        images, boxes = read(shared_data / "battery/playing_cards", split)
        assert len([image for image in images if image.problem is None]) == image_count
        assert len([box for box in boxes if box.box.problem is None]) == len(boxes) == box_count
