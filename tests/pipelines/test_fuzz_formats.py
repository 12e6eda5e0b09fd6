"""Damaged datasets in every format: only errors with a message, and no image file is lost.

`SSD_DIST_FUZZ` is the number of inputs per format; `make fuzz` runs 2,000 of them. `SSD_DIST_FUZZ_SEED` selects the
first one, to repeat a failing input alone.
"""

import json
import os
import posixpath
import random
import re
import unicodedata
from collections import defaultdict

import numpy as np
import pytest
from raw_sets import jpeg, list_places, make_coco, make_voc, make_yolo
from test_parse_mutations import VALUES, mutate_bytes
from tool_exports import BOX, PER_FOLDER, PER_IMAGE, write, write_per_folder, write_per_image

from pipelines.classes import ClassRules
from pipelines.detection import FORMATS
from pipelines.readers.folder import cached_listings, is_image
from pipelines.readers.read_annotations import read_splits
from pipelines.readers.sources import Source
from pipelines.shard_plan import Member, ShardPlan, assemble_group, number_images
from pipelines.split_plans import plan_splits
from pipelines.validate import check_boxes
from ssd_dist.core.errors import DataError, UsageError
from ssd_dist.core.example_proto import encode_example
from ssd_dist.core.tfrecord_io import frame_record

INPUTS = int(os.environ.get("SSD_DIST_FUZZ", "40"))
FIRST_SEED = int(os.environ.get("SSD_DIST_FUZZ_SEED", "0"))
BOXES = {"a": [BOX], "b": [BOX, (30, 6, 60, 42)], "c": []}
# Python refuses to convert an integer of more than 4,300 digits.
LONG_NUMBER = "9" * 5000
TEXT_SUFFIXES = (".json", ".xml", ".txt", ".csv", ".yaml", ".pbtxt")
TOKENS = [
    "", "nan", "-inf", "1e999", "1e-320", "9" * 400, LONG_NUMBER, "-0", "0x10", "1_000", "\u0663", "True", "null", "[]",
    "\0", "\x1b[31m", "\u202e", "\u2028", "a\nb", "../../etc/passwd", "/", "C:\\a.jpg", "\ud800", "e\u0301", "x" * 5000,
]  # fmt: skip
IMAGE = jpeg()


def make_csv(root):
    lines = [f"{stem}.jpg,64,48,car,{','.join(map(str, box))}" for stem, own in BOXES.items() for box in own]
    write(root, "labels.csv", "\n".join(["filename,width,height,class,xmin,ymin,xmax,ymax", *lines, ""]))
    for stem in BOXES:
        write(root, f"{stem}.jpg")


def make_tfrecord(root):
    data = b""
    for stem, own in BOXES.items():
        corners = np.array(own, np.float32).reshape(-1, 4) / np.array([64, 48, 64, 48], np.float32)
        features = {
            "image/encoded": [jpeg()],
            "image/source_id": [stem.encode()],
            "image/filename": [f"{stem}.jpg".encode()],
            "image/height": np.array([48]),
            "image/width": np.array([64]),
            "image/object/class/label": np.ones(len(own), np.int64),
            "image/object/class/text": [b"car"] * len(own),
        }
        features |= {f"image/object/bbox/{s}": corners[:, i] for i, s in enumerate(("xmin", "ymin", "xmax", "ymax"))}
        data += frame_record(encode_example(features))
    write(root, "train.tfrecord", data)
    write(root, "label_map.pbtxt", "item {\n  id: 1\n  name: 'car'\n}\n")


def make_tool(input_format):
    def make(root):
        if input_format in PER_IMAGE:
            suffix = {"labelme": ".json", "supervisely": ".jpg.json"}.get(input_format, ".txt")
            write_per_image(root, input_format, f"labels/{{}}{suffix}", "images/{}.jpg", BOXES)
        else:
            suffix = {"cvat": "xml", "wider": "txt", "keras_yolo": "txt"}.get(input_format, "json")
            write_per_folder(root, input_format, f"list.{suffix}", "images/{}.jpg", BOXES)

    return make


VOC_BOXES = {stem: [("car", y1, x1, y2, x2) for x1, y1, x2, y2 in own] for stem, own in BOXES.items()}
MAKERS = {
    **{name: make_tool(name) for name in (*PER_IMAGE, *PER_FOLDER)},
    "coco": lambda root: make_coco(
        root, {f"{stem}.jpg": [(1, *box[1:]) for box in own] for stem, own in VOC_BOXES.items()}, {1: "car"}
    ),
    "yolo": lambda root: make_yolo(root, {s: ["0 0.25 0.5 0.25 0.5"] * len(own) for s, own in BOXES.items()}, ["car"]),
    "voc": lambda root: make_voc(root, VOC_BOXES, {"train": ["a", "b"], "val": ["c"]}),
    "csv": make_csv,
    "tfrecord": make_tfrecord,
}


def mutate_json(text, rng):
    """Replaces, renames, repeats or removes one value of a JSON text, or nests it."""
    root = json.loads(text)
    places = list_places(root)
    node, key = rng.choice(places)
    match rng.randrange(6):
        case 0:
            node[key] = rng.choice(VALUES)
        case 1:
            node[key] = rng.choice(TOKENS)
        case 2 if isinstance(node, dict):
            node[rng.choice([f"{key}s", key.upper(), "", "\0", "filename", "bbox", "label"])] = node.pop(key)
        case 3:
            other, other_key = rng.choice(places)
            node[key] = (
                json.loads(json.dumps(other[other_key]))
                if other_key in dict(enumerate(other)) or (isinstance(other, dict) and other_key in other)
                else None
            )
        case 4:
            for _ in range(rng.choice([1, 3, 50])):
                node[key] = [node[key]] if rng.random() < 0.5 else {"x": node[key]}
        case _:
            del node[key]
    return json.dumps(root)


def mutate_lines(text, rng):
    """Repeats, removes, swaps or joins lines, or replaces one word."""
    lines = text.split("\n")
    place, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(5):
        case 0:
            lines.insert(place, lines[other])
        case 1:
            del lines[place]
        case 2:
            lines[place], lines[other] = lines[other], lines[place]
        case 3:
            lines[place : place + 2] = ["".join(lines[place : place + 2])]
        case _:
            separator = rng.choice(' ,<>"')
            words = lines[place].split(separator)
            words[rng.randrange(len(words))] = rng.choice(TOKENS)
            lines[place] = separator.join(words)
    return "\n".join(lines)


def mutate(data, rng):
    """Returns a damaged copy of the content of an annotation file."""
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        kind = rng.randrange(5)
        try:
            if kind == 0:
                data = data[: rng.randrange(len(data) + 1)]
            elif kind == 1:
                data = mutate_bytes(data, rng) if data else data
            elif kind == 2 and data[:1] in (b"{", b"["):
                data = mutate_json(data.decode(), rng).encode("utf-8", "surrogatepass")
            elif kind == 3 and rng.random() < 0.2:
                encoding = rng.choice(["utf-16", "utf-8-sig", "latin-1", "utf-32"])
                data = data.decode().encode(encoding, "replace")
            else:
                data = mutate_lines(data.decode(), rng).encode("utf-8", "surrogatepass")
        except (ValueError, IndexError):
            data = data[::-1] if rng.random() < 0.1 else data
    return data


def read_all(input_format, root):
    """Returns the images of all splits as the shards receive them, and the notes; does not use a runner of Beam."""
    with cached_listings():
        found = FORMATS[input_format].find(str(root), "")
    if found is None:
        raise DataError("not recognized")
    sources = [Source((str(root),), "", p.source_split, p.name, p.shares) for p in plan_splits(found, is_divided=False)]
    reader = read_splits([FORMATS[input_format].read(source) for source in sources])
    groups = defaultdict(list)
    for item in reader.list_files():
        for key, value in reader.parse(item):
            groups[key].append(value)
    buckets, shards = defaultdict(list), defaultdict(list)
    for group in groups.items():
        for key, value in assemble_group(group, 1, ClassRules()):
            buckets[key].append(value)
    for group in buckets.items():
        for key, value in number_images(group):
            shards[key].append(value)
    plans = {key: value for key, values in shards.items() for value in values if isinstance(value, ShardPlan)}
    images, is_empty = [], True
    for key, values in shards.items():
        for member in values:
            if isinstance(member, Member):
                assert member.orphan or key in plans, f"{member.image.image_id!r} is in no shard"
                check_boxes(member.image, 48, 64, plans[key].classes)
                images.append(member.image)
                is_empty &= member.orphan
    if is_empty:
        # As `check_split` does in the job.
        raise DataError("the source lists no images")
    return images, found.notes


def fold(path):
    return unicodedata.normalize("NFC", path).casefold()


def assert_nothing_lost(images, notes, files):
    """Asserts that each image file is one of the images, by its path or by a stem of an image without a file.

    Images outside of the folders of a dataset are announced in a note instead. If a COCO file is damaged, all
    its images are rejected, and one entry represents those that were not read.
    """
    if any("not read" in note for note in notes):
        return
    if any(image.image_id.startswith("the rest of ") for image in images):
        return
    # The id of an image file that no annotation describes may be its path.
    named = {fold(name) for image in images for name in (image.path, image.image_id)}
    stems = {
        fold(stem) for image in images for stem in (*image.stems, posixpath.splitext(image.path)[0], image.image_id)
    }
    lost = [file for file in files if fold(file) not in named and fold(posixpath.splitext(file)[0]) not in stems]
    # A rejected annotation of VOC and of other formats with a file per image has no path; its id is that of its image.
    ids = {fold(posixpath.basename(image.image_id)) for image in images if not image.path}
    lost = [file for file in lost if fold(posixpath.splitext(posixpath.basename(file))[0]) not in ids]
    assert not lost, f"neither kept nor reported: {lost}"


@pytest.mark.timeout(0 if INPUTS > 100 else 300)
@pytest.mark.parametrize("input_format", MAKERS)
def test_damaged_datasets(tmp_path, input_format):
    MAKERS[input_format](tmp_path)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    image_files = [str(path) for path in files if is_image(path.name)]
    originals = {path: path.read_bytes() for path in files if not is_image(path.name)}
    assert_nothing_lost(*read_all(input_format, tmp_path), image_files)
    counts = defaultdict(int)
    for seed in range(FIRST_SEED, FIRST_SEED + INPUTS):
        rng = random.Random(f"{input_format} {seed}")
        path = rng.choice(list(originals))
        path.write_bytes(mutate(originals[path], rng))
        try:
            images, notes = read_all(input_format, tmp_path)
            assert_nothing_lost(images, notes, [] if input_format == "tfrecord" else image_files)
            counts["rejected" if any(image.problem for image in images) else "read"] += 1
        except (DataError, UsageError) as error:
            message = str(error)
            assert "\n" not in message, f"seed {seed}: {message}"
            counts["refused"] += 1
        except Exception as error:
            content = path.read_bytes()[:2000]
            pytest.fail(f"SSD_DIST_FUZZ_SEED={seed} {path.name}: {type(error).__name__}: {error}\n{content!r}")
        path.write_bytes(originals[path])
    print(f"{input_format}: {dict(counts)}")
    assert counts["read"] + counts["rejected"] > 0


@pytest.mark.parametrize("input_format", MAKERS)
def test_long_numbers(tmp_path, input_format):
    MAKERS[input_format](tmp_path)
    for path in (path for path in sorted(tmp_path.rglob("*")) if path.suffix in TEXT_SUFFIXES):
        text = path.read_text()
        for match in re.finditer(r"(?<![\w.])\d+(?![\w.])", text):
            path.write_text(text[: match.start()] + LONG_NUMBER + text[match.end() :])
            try:
                images, _ = read_all(input_format, tmp_path)
                found = [image.problem for image in images] + [box.problem for image in images for box in image.boxes]
                details = [problem.detail for problem in found if problem]
            except DataError as error:
                details = [str(error)]
            # The text of Python's ValueError does not help a user.
            assert not any("Exceeds the limit" in detail for detail in details), details
        path.write_text(text)


def test_the_formats_are_complete():
    assert {*MAKERS} == {*FORMATS}
