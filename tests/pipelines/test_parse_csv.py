"""CSV files as annotation tools write them: columns, units, separators, and lines that cannot be read."""

import codecs

import pytest
from csv_sets import BOX, HEADER, SMALL, read
from raw_sets import write_files

from pipelines.readers.csv import find_splits, read_csv
from pipelines.readers.csv_layout import find_layout
from pipelines.readers.sources import Source
from ssd_dist.core.errors import DataError
from ssd_dist.core.spreadsheet_text import protect_name


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
def test_the_columns_and_separators_of_tools_are_recognized(tmp_path, text):
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
    assert "train.csv: all coordinates are about 0 to 1, so they are read as fractions of the image" in notes


def test_fractions_may_be_slightly_outside_of_the_image(tmp_path):
    box, _ = read_one(tmp_path, HEADER + "a.jpg,64,48,bolt,-0.001,0.2,0.5,1.0000001\n")
    assert box.normalized
    assert box.corners == pytest.approx((0.2, -0.001, 1.0, 0.5), abs=1e-3)


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
def test_a_file_that_is_not_recognized_is_reported_with_the_header_to_add(tmp_path, text, message):
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


@pytest.mark.parametrize("arguments", [(), ("--input_format=csv",), ("--input_format=csv", "--split=train")])
def test_the_command_explains_a_file_without_a_header(tmp_path, command, arguments):
    write_files(
        tmp_path / "in", {"a.jpg": None, "classes.csv": "bolt,0\n", "train.csv": "a.jpg,64,48,bolt,10,12,50,36\n"}
    )
    code, _, errors = command(f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", *arguments)
    assert code == 3
    assert "train.csv: headerless CSV: the first line (a.jpg, 64, 48, bolt, 10, 12, 50, 36) is no header" in errors


def test_a_turned_quadrilateral_of_automl_is_reduced(tmp_path):
    box, _ = read_one(tmp_path, "TRAIN,a.jpg,bolt,0.3,0.1,0.5,0.3,0.3,0.5,0.1,0.3\n")
    assert (box.corners, box.is_reduced) == ((0.1, 0.1, 0.5, 0.5), True)


LABEL_MAP = "item { id: 1 name: 'bolt' }\nitem { id: 2 name: 'nut' }\n"


@pytest.mark.parametrize(
    ("name", "content", "numbers", "classes", "note"),
    [
        ("classes.txt", "bolt\nnut\n", "01", ["bolt", "nut"], "names are read from"),
        ("obj.names", "bolt\nnut\n", "12", ["bolt", "nut"], "names are read from"),
        ("label_map.pbtxt", LABEL_MAP, "21", ["nut", "bolt"], "names are read from"),
        ("label_map.pbtxt", LABEL_MAP, ["2.0"], ["nut"], "names are read from"),
        # The first of three names may have the number 0 or 1.
        ("classes.txt", "bolt\nnut\ngear\n", "12", ["1", "2"], "keep their numbers"),
        ("classes.txt", "bolt\nnut\n", "05", ["0", "5"], "keep their numbers"),
        ("label_map.pbtxt", LABEL_MAP, "13", ["1", "3"], "keep their numbers"),
        ("classes.txt", "bolt\nnut\n", ["1", "nut"], ["1", "nut"], ""),
    ],
)
def test_numbers_of_classes_get_the_names_in_a_file_beside_them(tmp_path, name, content, numbers, classes, note):
    lines = "".join(f"a.jpg,64,48,{number},10,12,50,36\n" for number in numbers)
    write_files(tmp_path, {"a.jpg": None, "train.csv": HEADER + lines, name: content})
    _, boxes = read(tmp_path)
    assert [box.box.category for box in boxes] == classes
    notes = " ".join(find_splits(str(tmp_path), "").notes)
    assert note in notes
    assert ("classes" in notes) == bool(note)


def test_our_detections_are_read_with_the_names_of_their_classes(tmp_path):
    names = ["=1+1", "'=1", "-", "'quoted'", "car"]
    header = "filename,width,height,class,xmin,ymin,xmax,ymax,score\n"
    text = header + "".join(f"a.jpg,64,48,{protect_name(name)},10,12,50,36,0.9\n" for name in names)
    write_files(tmp_path, {"a.jpg": None, "detections.csv": text})
    _, boxes = read(tmp_path)
    assert [box.box.category for box in boxes] == names
    # In other files, an apostrophe is part of the name.
    write_files(tmp_path, {"detections.csv": HEADER + "a.jpg,64,48,'=1,10,12,50,36\n"})
    _, boxes = read(tmp_path)
    assert [box.box.category for box in boxes] == ["'=1"]


@pytest.mark.parametrize(("train", "val", "names"), [("012", "1", ["bolt", "nut", "gear"]), ("05", "1", None)])
def test_all_files_of_a_dataset_show_which_number_the_first_name_has(tmp_path, train, val, names):
    files = {f"{split}/a.jpg": None for split in ("train", "val")} | {"classes.txt": "bolt\nnut\ngear\n"}
    for split, numbers in (("train", train), ("val", val)):
        files[f"{split}.csv"] = HEADER + "".join(f"a.jpg,64,48,{number},10,12,50,36\n" for number in numbers)
    write_files(tmp_path, files)
    splits = find_layout(str(tmp_path), "").splits
    for split, numbers in (("train", train), ("val", val)):
        (file,) = splits[split]
        assert file.class_names == ({number: names[int(number)] for number in numbers} if names else {})
