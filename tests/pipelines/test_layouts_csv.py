"""CSV files as annotation tools write them: columns, units, separators, splits, and where the images are."""

import codecs
import gzip

import pytest
from raw_sets import write_files

from pipelines.annotations import Image, Listing, SeparateBox
from pipelines.readers.csv import find_files, find_splits, group_files, read_csv, read_entries
from pipelines.readers.sources import Source
from ssd_dist.core.config import Config
from ssd_dist.core.errors import DataError

SMALL = Config.model_validate({"model": {"input_size": 64}})
HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
# The box of most tests, ymin, xmin, ymax, xmax in pixels of an image of 64 x 48 pixels.
BOX = (12.0, 10.0, 36.0, 50.0)


def read(path, split="train", source_split="", image_dir="", split_by=()):
    """Returns the images and boxes of a split."""
    source = Source((str(path),), image_dir, source_split, split, split_by)
    values = [value for group in group_files(find_files(source)) for value in read_entries(group, source)]
    images = [value for value in values if isinstance(value, Image)]
    listings = [value for value in values if isinstance(value, Listing)]
    assert sum(listing.images for listing in listings) == len(images)
    return images, [value for value in values if isinstance(value, SeparateBox)]


def locate(image):
    """Returns the path of the file of an image, whose name may lack the suffix."""
    return image.path if image.path.endswith(".jpg") else f"{image.stems[0]}.jpg"


def read_one(tmp_path, text, image="a.jpg"):
    """Returns the only box of a CSV file and what is announced about it."""
    write_files(tmp_path, {image: None, "train.csv": text})
    images, boxes = read(tmp_path)
    assert [item.problem for item in images] == [None]
    (box,) = boxes
    assert box.box.problem is None
    return box.box, find_splits(str(tmp_path), "").notes


@pytest.mark.parametrize(
    "text",
    [
        HEADER + "a.jpg,64,48,bolt,10,12,50,36\n",
        '"image","xmin","ymin","xmax","ymax","label"\n"a.jpg",10,12,50,36,"bolt"\n',  # VoTT
        "image_path,xmin,ymin,xmax,ymax,label\na.jpg,10,12,50,36,bolt\n",  # DeepForest
        "image_id,class_name,x_min,y_min,x_max,y_max\na,bolt,10.0,12.0,50.0,36.0\n",
        "frame,xmin,xmax,ymin,ymax,class_id\na.jpg,10,50,12,36,bolt\n",  # Udacity
        "path,x1,y1,x2,y2,ClassName\na.jpg,10,12,50,36,bolt\n",
        "img,x0,y0,x1,y1,category\na.jpg,10,12,50,36,bolt\n",
        "Image Name,Left,Top,Right,Bottom,Label\na.jpg,10,12,50,36,bolt\n",
        "Width,Height,Roi.X1,Roi.Y1,Roi.X2,Roi.Y2,ClassId,Path\n64,48,10,12,50,36,bolt,a.jpg\n",  # GTSRB
        "Filename;Annotation tag;Upper left corner X;Upper left corner Y;Lower right corner X;Lower right corner Y\n"
        "a.jpg;bolt;10;12;50;36\n",  # LISA
        "filename,x,y,w,h,label\na.jpg,10,12,40,24,bolt\n",
        "filename,label,x,y,width,height\na.jpg,bolt,10,12,40,24\n",
        "filename,xmin,ymin,width,height,name\na.jpg,10,12,40,24,bolt\n",
        "filename,left,top,width,height,image_width,image_height,class\na.jpg,10,12,40,24,64,48,bolt\n",
        "label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name,image_width,image_height\n"
        "bolt,10,12,40,24,a.jpg,64,48\n",  # makesense.ai
        "bolt,10,12,40,24,a.jpg,64,48\n",  # makesense.ai, earlier versions
        "filename,x_center,y_center,width,height,class\na.jpg,30,24,40,24,bolt\n",
        "name,class,xmin,ymin,xmax,ymax\na.jpg,bolt,10,12,50,36\n",
        "id,file_name,label,xmin,ymin,xmax,ymax\n7,a.jpg,bolt,10,12,50,36\n",
        'image_id,width,height,bbox,class\na,64,48,"[10.0, 12.0, 40.0, 24.0]",bolt\n',
        'image_id,bbox,class\na,"10 12 40 24",bolt\n',
        # The corners of a list: as a size, the box would extend beyond the image.
        'image_id,width,height,bbox,class\na,64,48,"[10, 12, 50, 36]",bolt\na,64,48,"[30, 30, 60, 40]",\n',
        "a.jpg,10,12,50,36,bolt\n",  # RetinaNet
        "#filename,xmin,ymin,xmax,ymax,class\na.jpg,10,12,50,36,bolt\n",
        # Width and height of the box beside its corners.
        "filename,class,xmin,ymin,xmax,ymax,width,height\na.jpg,bolt,10,12,50,36,40,24\n",
        "filename|class|xmin|ymin|xmax|ymax\na.jpg|bolt|10|12|50|36\n",
        "filename\tclass\txmin\tymin\txmax\tymax\na.jpg\tbolt\t10\t12\t50\t36\n",
        "filename;class;xmin;ymin;xmax;ymax\na.jpg;bolt;10,0;12,0;50,0;36,0\n",  # Excel, decimal commas
        codecs.BOM_UTF16_LE
        + "filename\tclass\txmin\tymin\txmax\tymax\r\na.jpg\tbolt\t10\t12\t50\t36\r\n".encode("utf-16-le"),
        codecs.BOM_UTF16_BE + "filename;class;xmin;ymin;xmax;ymax\na.jpg;bolt;10;12;50;36".encode("utf-16-be"),
        "\ufefffilename;class;xmin;ymin;xmax;ymax\r\na.jpg;bolt;10;12;50;36\r\n",
        "sep=;\r\nfilename;class;xmin;ymin;xmax;ymax\r\na.jpg;bolt;10;12;50;36\r\n",
        "filename,class,xmin,ymin,xmax,ymax\ra.jpg,bolt,10,12,50,36\r",
        "filename,class,xmin,ymin,xmax,ymax,remark\na.jpg,bolt,10,12,50,36,\"two\nlines, and a comma\"\n",
        "filename,class,xmin,ymin,xmax,ymax\n\n  \na.jpg, bolt ,10,12,50,36,,\n",
        ",filename,class,xmin,ymin,xmax,ymax,,\n0,a.jpg,bolt,10,12,50,36\n",  # pandas' index, a spreadsheet's columns
        # VIA 2
        "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n"
        'a.jpg,3000,"{}",1,0,"{""name"":""rect"",""x"":10,""y"":12,""width"":40,""height"":24}","{""type"":""bolt""}"\n',
    ],
)  # fmt: skip
def test_the_columns_and_separators_of_tools_are_recognised(tmp_path, text):
    write_files(tmp_path, {"a.jpg": None, "train.csv": text})
    images, boxes = read(tmp_path)
    assert [(image.problem, image.filename) for image in images] == [(None, "a.jpg")] or images[0].stems
    first = boxes[0].box
    assert (first.problem, first.category, first.corners, first.normalized) == (None, "bolt", BOX, False)


@pytest.mark.parametrize(
    ("text", "corners"),
    [
        (HEADER + "a.jpg,64,48,bolt,0.1,0.2,0.5,0.75\n", (0.2, 0.1, 0.75, 0.5)),
        # Datature, with the size of the box.
        ("filename,x,y,width,height,label\na.jpg,0.25,0.5,0.5,0.25,bolt\n", (0.5, 0.25, 0.75, 0.75)),
        ("filename,x_center,y_center,w,h,label\na.jpg,0.5,0.5,0.5,0.25,bolt\n", (0.375, 0.25, 0.625, 0.75)),
        ("filename;class;xmin;ymin;xmax;ymax\na.jpg;bolt;0,1;0,2;0,5;1\n", (0.2, 0.1, 1, 0.5)),
    ],
)
def test_fractions_in_every_line_are_read_as_such_and_announced(tmp_path, text, corners):
    box, notes = read_one(tmp_path, text)
    assert box.corners == pytest.approx(corners)
    assert box.normalized
    assert "train.csv: all boxes lie between 0 and 1, so the coordinates are read as fractions of the image" in notes


def test_a_file_with_pixels_in_some_lines_is_not_read_as_fractions(tmp_path, prepare):
    lines = "a.jpg,64,48,bolt,0.1,0.2,0.5,0.75\na.jpg,64,48,bolt,10,12,50,36\n"
    write_files(tmp_path, {"train/a.jpg": None, "train.csv": HEADER + lines})
    split = prepare("csv", tmp_path, tmp_path / "out", config=SMALL).splits["train"]
    assert (split.boxes, split.rejected_boxes) == (1, {"fractions": 1})


def test_boxes_of_zeros_and_ones_are_not_read_as_fractions(tmp_path):
    box, notes = read_one(tmp_path, HEADER + "a.jpg,64,48,bolt,0,0,1,1\n")
    assert (box.normalized, notes) == (False, ())


def test_a_file_without_classes_has_one_class(tmp_path):
    box, notes = read_one(tmp_path, 'image_id,width,height,bbox,source\na,64,48,"[10.0, 12.0, 40.0, 24.0]",usask_1\n')
    assert (box.category, box.corners) == ("object", BOX)
    assert notes == (
        "train.csv: the column bbox is read as x, y, width, height",
        "train.csv: it has no class column; all boxes get the class object",
    )


def test_a_file_without_header_is_announced(tmp_path):
    _, notes = read_one(tmp_path, "a.jpg,10,12,50,36,bolt\n")
    assert notes == ("train.csv: it has no header; the columns are read as path,x1,y1,x2,y2,class",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg,64,48,bolt,10,12,50,36\n", r"train\.csv: headerless CSV: the first line \(a\.jpg, .* filename,class"),
        ("bolt,0\nnut,1\n", r"train\.csv: the header has no columns for an image and a box, only bolt, 0; rename"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_recognised_is_reported_with_the_header_to_add(tmp_path, text, message):
    write_files(tmp_path, {"a.jpg": None, "classes.csv": "bolt,0\n", "train.csv": text})
    for path in (tmp_path / "train.csv", tmp_path):
        with pytest.raises(DataError, match=message if path.is_file() or "jpg" in text else "no CSV file of boxes"):
            read_csv(Source((str(path),), output_split="train"))
    assert find_splits(str(tmp_path), "") is None


@pytest.mark.parametrize(
    ("header", "background"),
    [
        ("filename,class,xmin,ymin,xmax,ymax", "b.jpg,,,,,"),
        ("filename,class,xmin,ymin,xmax,ymax", "b.jpg,nan,NaN,NaN,NaN,NaN"),
        ("filename,class,xmin,ymin,xmax,ymax", "b.jpg,No finding,,,,"),
        ("filename,class,bbox", "b.jpg,,[]"),
        ("", "b.jpg,,,,,"),
    ],
)
def test_an_image_may_have_no_objects(tmp_path, header, background):
    line = {"": "a.jpg,10,12,50,36,bolt", "bbox": 'a.jpg,bolt,"[10,12,40,24]"'}.get(
        header[-4:], "a.jpg,bolt,10,12,50,36"
    )
    write_files(
        tmp_path, {"a.jpg": None, "b.jpg": None, "train.csv": "\n".join(filter(None, [header, line, background]))}
    )
    images, boxes = read(tmp_path)
    assert [(image.filename, image.problem) for image in images] == [("a.jpg", None), ("b.jpg", None)]
    assert [(box.image_id, box.box.corners) for box in boxes] == [("a.jpg", BOX)]


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ("bolt,10,x,50,36", "ymin: expected a number, got 'x'"),
        ("bolt,10,,50,36", "ymin: expected a number, got ''"),
        ("bolt,,,,", "the line has the class 'bolt' but no box"),
        (",10,12,50,36", "the line has no class"),
    ],
)
def test_a_box_that_cannot_be_read_is_rejected_with_the_column(tmp_path, fields, detail):
    text = f"filename,class,xmin,ymin,xmax,ymax\na.jpg,bolt,10,12,50,36\na.jpg,{fields}\n"
    write_files(tmp_path, {"a.jpg": None, "train.csv": text})
    _, (good, bad) = read(tmp_path)
    assert good.box.corners == BOX
    assert (bad.box.where, *bad.box.problem) == ("line 3", "broken_box", detail)


def test_lines_that_cannot_be_read_are_counted_as_boxes(tmp_path, prepare):
    lines = 'a.jpg,64,48,bolt,10,12,50,36\n"a.jpg,64,48,bolt,1,2,30,40\na.jpg,64\n'
    lines += "a.jpg,64,48,a,b,1,2,3,4\n,,,bolt,1,2,3,4\n"
    write_files(tmp_path, {"train/a.jpg": None, "train.csv": HEADER + lines})
    split = prepare("csv", tmp_path, tmp_path / "out", config=SMALL).splits["train"]
    assert (split.images_read, split.images, split.rejected_images) == (1, 1, {})
    assert (split.boxes_read, split.boxes, split.rejected_boxes) == (5, 1, {"broken_annotation": 4})
    rejected = (tmp_path / "out/train/rejected.jsonl").read_text()
    for text in (
        "line 3",
        "line 4",
        "line 5",
        "line 6",
        "the quotes of the line do not match",
        "has 2 fields, expected 8",
    ):
        assert text in rejected
    assert str(tmp_path / "train.csv") in rejected


def test_an_open_quote_does_not_swallow_the_lines_below(tmp_path):
    text = 'filename,class,xmin,ymin,xmax,ymax\na.jpg,"bolt,10,12,50,36\na.jpg,bolt,10,12,50,36\na.jpg,"nut,1,2,3,4\n'
    write_files(tmp_path, {"a.jpg": None, "train.csv": text})
    _, boxes = read(tmp_path)
    assert [(box.box.where, box.box.problem is None) for box in boxes] == [
        ("line 2", False), ("line 3", True), ("line 4", False),
    ]  # fmt: skip


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


def test_the_command_recognises_a_roboflow_export(tmp_path, command, prepare):
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


@pytest.mark.parametrize("arguments", [(), ("--input_format=csv",), ("--input_format=csv", "--split=train")])
def test_the_command_explains_a_file_without_a_header(tmp_path, command, arguments):
    write_files(
        tmp_path / "in", {"a.jpg": None, "classes.csv": "bolt,0\n", "train.csv": "a.jpg,64,48,bolt,10,12,50,36\n"}
    )
    code, _, errors = command(f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", *arguments)
    assert code == 3
    assert "train.csv: headerless CSV: the first line (a.jpg, 64, 48, bolt, 10, 12, 50, 36) is no header" in errors


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


def test_files_whose_names_contain_no_split_are_announced(tmp_path):
    text = HEADER + "a.jpg,64,48,x,1,2,3,4\n"
    write_files(tmp_path, {"a.jpg": None, "train.csv": text, "test.csv": text, "backup.csv": text})
    found = find_splits(str(tmp_path), "")
    assert sorted(found.splits) == ["test", "train"]
    assert found.notes == ("not read: backup.csv; pass a file as --input to read it",)


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


def test_a_turned_quadrilateral_of_automl_is_reduced(tmp_path):
    box, _ = read_one(tmp_path, "TRAIN,a.jpg,bolt,0.3,0.1,0.5,0.3,0.3,0.5,0.1,0.3\n")
    assert (box.corners, box.is_reduced) == ((0.1, 0.1, 0.5, 0.5), True)


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


def test_files_of_other_contents_are_not_recognised(tmp_path):
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
