"""Tests that the generated dataset depends only on its seed, is valid COCO, and has tight boxes and enough variety."""

import io
import json
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from PIL import Image
from pycocotools.coco import COCO

from ssd_dist.core.errors import UsageError
from ssd_dist.core.manifest import Manifest
from toyset import sample
from toyset.clutter import CLUTTER
from toyset.placing import Place, Spot, choose_spots
from toyset.rendering import Camera, Light, Sprite
from toyset.scene import PlacedToy, describe_objects, draw_scene, stack_toys
from toyset.toys import TOYS

ROOT = Path(__file__).parents[2]
MANY = 80
GRAY = np.full(3, 0.4, np.float32)
UP = np.array([0, 0, 1], np.float32)
PLACE = Place(np.full((3, 300, 400), 0.4, np.float32), 0, GRAY, Camera(30.0), Light(UP, GRAY, GRAY, GRAY))


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def load_coco(path):
    with redirect_stdout(io.StringIO()):
        return COCO(str(path))


@pytest.fixture(scope="module")
def scenes():
    """Draws the first scenes of a training split, with their masks."""
    drafts = [sample.Draft(0, "train", number, "") for number in range(1, MANY + 1)]
    return [draw_scene(draft.generator(), draft.kind) for draft in drafts]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Writes a small dataset in several processes; returns its folder."""
    folder = tmp_path_factory.mktemp("sample")
    sample.write_split(folder, "train", sample.FEW_IMAGES + 4, seed=0)
    sample.write_split(folder, "val", 3, seed=0)
    return folder


def test_the_seed_determines_every_byte(written, tmp_path):
    sample.write_split(tmp_path, "val", 3, seed=0)
    again = files_of(tmp_path)
    assert again == {name: data for name, data in files_of(written).items() if "val" in name}
    sample.write_split(tmp_path / "other", "val", 3, seed=1)
    assert not set(again.values()) & set(files_of(tmp_path / "other").values())


def test_more_images_do_not_change_the_first_ones(written, tmp_path):
    # Few images are drawn in one process and many in several; the result must be the same.
    few = sample.write_split(tmp_path, "train", 5, seed=0)
    many = json.loads((written / "annotations/instances_train.json").read_text())
    assert few["images"] == many["images"][:5]
    boxes = [entry for entry in many["annotations"] if entry["image_id"] <= 5]
    assert few["annotations"] == boxes
    assert len(boxes) > 0
    for name, data in files_of(tmp_path / "images").items():
        assert data == (written / "images" / name).read_bytes()


def test_splits_share_no_image(written):
    images = [data for name, data in files_of(written).items() if name.endswith(".jpg")]
    assert len(set(images)) == len(images) == sample.FEW_IMAGES + 7


def test_coco_tools_read_the_annotations_and_sizes_match(written):
    for split, count in (("train", sample.FEW_IMAGES + 4), ("val", 3)):
        coco = load_coco(written / f"annotations/instances_{split}.json")
        assert len(coco.imgs) == count
        ids = sorted(coco.cats)
        assert len(ids) >= 5
        assert ids != list(range(ids[0], ids[0] + len(ids))), "ids without gaps would not test their mapping"
        assert sorted(category["name"] for category in coco.cats.values()) == sorted(TOYS)
        for image in coco.imgs.values():
            with Image.open(written / "images" / split / image["file_name"]) as image_file:
                assert (image_file.format, image_file.mode, image_file.size) == (
                    "JPEG",
                    "RGB",
                    (image["width"], image["height"]),
                )
        for entry in coco.anns.values():
            image = coco.imgs[entry["image_id"]]
            x, y, width, height = entry["bbox"]
            assert 0 <= x < x + width <= image["width"]
            assert 0 <= y < y + height <= image["height"]
            assert 0 < entry["area"] <= width * height
            assert entry["category_id"] in coco.cats


def test_boxes_are_tight_around_the_masks(scenes):
    for scene in scenes:
        for found in scene.objects:
            x, y, width, height = found.box
            inside = found.mask[y : y + height, x : x + width]
            assert inside.sum() == found.mask.sum() == found.area, "nothing lies outside"
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()


def test_box_encloses_the_drawn_pixels():
    """The mask covers the drawn pixels: the box of a disc follows from its radius."""
    y, x = np.mgrid[0:41, 0:41] - 20.0
    alpha = (np.hypot(x, y) <= 15.2).astype(np.float32)
    disc = Sprite(np.zeros((3, 41, 41), np.float32), alpha, left=-20, top=-40)
    toy = PlacedToy(Spot("ball", 60.0, 70.0, 30.0), disc, disc, in_pile=False)
    _, cover, kept = stack_toys([toy], 120, 90)
    (found,) = describe_objects(kept, 120, 90)
    assert found.box == (60 - 15, 70 - 40 + 20 - 15, 31, 31)
    np.testing.assert_array_equal(cover > 0.5, found.mask)


def test_boxes_include_hidden_parts_and_hidden_toys_are_dropped():
    def place_toy(name, x, side):
        square = Sprite(np.zeros((3, side, side), np.float32), np.ones((side, side), np.float32), 0, -side)
        return PlacedToy(Spot(name, float(x), 80.0, float(side)), square, square, in_pile=False)

    near, half_hidden, hidden = place_toy("clock", 30, 40), place_toy("book", 55, 40), place_toy("star", 35, 20)
    cut_off = place_toy("fish", 105, 40)
    _, _, kept = stack_toys([near, half_hidden, hidden, cut_off], 120, 100)
    found = {one.name: one.box for one in describe_objects(kept, 120, 100)}
    assert found == {"clock": (30, 40, 40, 40), "book": (55, 40, 40, 40)}


def test_toys_are_mostly_visible(scenes):
    """A large part of every object is visible in front of or beside nearer ones."""
    for scene in scenes:
        singles = [found for found in scene.objects if not found.is_crowd]
        nearer = np.zeros(scene.image.shape[:2], bool)
        # Objects are sorted nearest first.
        for found in singles:
            assert (found.mask & ~nearer).sum() > 0.4 * found.area
            nearer |= found.mask


def test_sizes_span_three_octaves(scenes):
    sides = np.array([max(found.box[2:]) for scene in scenes for found in scene.objects if not found.is_crowd])
    assert np.log2(sides.max() / sides.min()) >= 3
    # Each range occurs often: below 60 pixels, around 100, above 200.
    shares = np.histogram(sides, [25, 60, 200, 320])[0] / len(sides)
    assert shares.sum() == pytest.approx(1)
    assert shares.min() > 0.03


def test_every_twenty_images_contain_one_of_each_special_kind(scenes):
    """Shares of 5 % each, even in a small split."""
    for start in range(0, MANY, 20):
        counts = [sum(not found.is_crowd for found in scene.objects) for scene in scenes[start : start + 20]]
        assert counts.count(0) == 1
        assert sum(count >= 15 for count in counts) == 1
        piles = [found for scene in scenes[start : start + 20] for found in scene.objects if found.is_crowd]
        assert len(piles) == 1


def test_clutter_is_unlabeled():
    """Scenes without toys contain only clutter, and some of them do contain clutter."""
    spots = [spot for seed in range(40) for spot in choose_all_spots(seed, "empty")]
    assert {spot.name for spot in spots} <= set(CLUTTER)
    assert len(spots) >= 3


def choose_all_spots(seed, kind):
    rng = np.random.default_rng(seed)
    spots, pile = choose_spots(rng, PLACE, kind)
    return [*spots, *pile]


def test_classes_are_balanced(scenes):
    names = [found.name for scene in scenes for found in scene.objects]
    shares = {name: names.count(name) / len(names) for name in TOYS}
    assert min(shares.values()) > 0.5 / len(TOYS)
    assert max(shares.values()) < 2 / len(TOYS)


def test_images_look_like_photographs(scenes):
    """No image is uniform, black or overexposed; sizes and shapes differ."""
    for scene in scenes:
        gray = scene.image.mean(axis=2)
        assert scene.image.dtype == np.uint8
        assert 20 < gray.mean() < 235
        assert gray.std() > 4
        # Noise and texture: hardly any pixel equals its neighbor.
        assert (np.diff(gray, axis=1) == 0).mean() < 0.5
    assert len({scene.image.shape for scene in scenes}) >= 4
    assert {scene.image.shape[0] > scene.image.shape[1] for scene in scenes} == {True, False}


def test_color_alone_does_not_decide_the_class(scenes):
    """A nearest-mean classifier by color makes errors even on the toys that it was fitted to."""
    colors = {name: [] for name in TOYS}
    for scene in scenes:
        for found in scene.objects:
            colors[found.name].append(scene.image[found.mask].mean(axis=0))
    means = np.array([np.mean(values, axis=0) for values in colors.values()])
    toys = [(index, color) for index, values in enumerate(colors.values()) for color in values]
    right = [np.linalg.norm(means - color, axis=1).argmin() == index for index, color in toys]
    assert np.mean(right) < 0.8


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the console script in this process: command("--train=2", ...) -> (exit code, output, errors)."""
    before = set(flags.FLAGS)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ssd-sample", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            sample.run_main()
        flags.FLAGS.remove_flag_values(set(flags.FLAGS) - before)
        return end.value.code or 0, *capsys.readouterr()

    return run


def test_the_command_writes_both_splits_and_refuses_to_mix(command, tmp_path):
    arguments = (f"--output={tmp_path / 'new'}", "--train=2", "--val=1", "--seed=3")
    code, output, errors = command(*arguments)
    assert (code, errors) == (0, "")
    assert output.startswith("train: 2 images")
    assert len(load_coco(tmp_path / "new/annotations/instances_val.json").imgs) == 1
    code, _, errors = command(*arguments)
    assert code == 2
    assert errors.count("\n") == 1
    assert "already contains split 'train'" in errors


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "--output is missing"),
        (("--output=X", "--train=0"), "train"),
        (("--output=X", "--seed=-1"), "seed"),
        (("--output=/proc/nowhere",), "cannot be written"),
        (("--output=X", "--vall=3"), "did you mean --val"),
    ],
)
def test_mistakes_are_reported_in_one_line(command, arguments, word):
    code, _, errors = command(*arguments)
    assert code == 2
    assert errors.count("\n") == 1
    assert word in errors


def test_an_incomplete_split_is_refused(tmp_path):
    (tmp_path / "images/val").mkdir(parents=True)
    (tmp_path / "images/val/000001.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match="already contains split 'val'"):
        sample.write_split(tmp_path, "val", 1, seed=0)


def test_drawing_needs_neither_beam_nor_tensorflow():
    code = "import toyset.sample, sys; print({'tensorflow', 'apache_beam'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_prepare_reads_the_dataset(written, tmp_path):
    command = [sys.executable, "-m", "pipelines.prepare", "--input_format=coco", f"--input={written}", "--split=val"]
    command += [f"--output={tmp_path}", f"--config={ROOT / 'configs/base.yaml'}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    path = tmp_path / "dataset.json"
    manifest = Manifest.from_json(path.read_text(), str(path))
    assert [*manifest.classes] == [name for name, _ in sorted(TOYS.items(), key=lambda item: item[1].category_id)]
    assert manifest.splits["val"].views[0].examples == 3


def test_draw_scene_depends_only_on_its_generator():
    first, second = (draw_scene(np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    assert [found.box for found in first.objects] == [found.box for found in second.objects]
