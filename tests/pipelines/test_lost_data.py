"""Images and boxes that were once lost without a report, and files that once stopped the command."""

import json
import os

import pytest
from raw_sets import jpeg, make_voc, voc_xml, write_files

from pipelines import manifest_writer
from pipelines.readers.sources import assign_split

SHARES = (("train", 0.8), ("val", 0.2))
BOX = ("car", 12, 8, 36, 24)


@pytest.fixture
def run(tmp_path, command):
    """Prepares tmp_path/raw without further flags: run(...) -> (output, manifest)."""

    def call(*arguments):
        code, out, err = command(
            f"--input={tmp_path / 'raw'}", f"--output={tmp_path / 'out'}", "--set=model.input_size=64", *arguments
        )
        assert (code, err) == (0, "")
        return out, json.loads((tmp_path / "out/dataset.json").read_text())

    return call


def write_flat_voc(folder, names, images=()):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.xml").write_text(voc_xml(f"{name}.jpg", [BOX]))
        (folder / f"{name}.jpg").write_bytes(jpeg(len(name)))
    for number, name in enumerate(images, start=50):
        (folder / name).write_bytes(jpeg(number))


def test_a_second_image_with_the_stem_of_an_annotation_is_reported(tmp_path, run):
    write_flat_voc(tmp_path / "raw", ["a", "bb"], ["a.png"])
    _, manifest = run("--split_by=none")
    split = manifest["splits"]["train"]
    assert (split["images_read"], split["images"], split["rejected_images"]) == (3, 2, {"not_annotated": 1})
    (line,) = (tmp_path / "out/train/rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["image"].endswith("a.png")


def test_names_with_backslashes_are_listed(tmp_path, run):
    write_flat_voc(tmp_path / "raw", ["a", "k\\back"])
    (tmp_path / "raw/k\\back.xml").write_text(voc_xml("back.jpg", [BOX]))
    _, manifest = run("--split_by=none")
    assert manifest["splits"]["train"]["boxes"] == 2


@pytest.mark.parametrize("name", ["notes.csv", "aaa.json", "zzz.xml", "classes.txt"])
def test_pipes_do_not_stop_the_command(tmp_path, run, name):
    write_flat_voc(tmp_path / "raw", ["a", "bb"])
    os.mkfifo(tmp_path / "raw" / name)
    _, manifest = run("--split_by=none")
    assert manifest["splits"]["train"]["images"] == 2


def test_cvats_lists_of_tags_are_no_splits(tmp_path, run):
    images = {name: [BOX] for name in ("a", "b", "c")}
    make_voc(tmp_path / "raw", images, {"default": list(images), "blurry_default": ["a"], "dark_default": ["a", "b"]})
    out, manifest = run("--split_by=none")
    assert {name: split["images"] for name, split in manifest["splits"].items()} == {"train": 3}
    assert "3 images" in out


def test_images_outside_the_splits_are_counted_in_a_note(tmp_path, run):
    for split in ("train", "valid"):
        write_flat_voc(tmp_path / "raw" / split, [f"{split}1", f"{split}22"])
    (tmp_path / "raw/extra").mkdir()
    (tmp_path / "raw/extra/x.jpg").write_bytes(jpeg(70))
    out, _ = run()
    assert "note: 1 of 5 image files" in out
    assert "are in none of these splits" in out


def test_images_in_no_list_of_a_yolo_dataset_are_counted_in_a_note(tmp_path, run):
    files = {f"{name}.txt": "0 0.5 0.5 0.2 0.2\n" for name in "abc"} | {f"{name}.jpg": None for name in "abc"}
    # A missing file and a repeated line do not stand for the image that no list contains.
    lists = {"train.txt": "a.jpg\nzz.jpg\na.jpg\n", "val.txt": "b.jpg\n"}
    write_files(tmp_path / "raw", files | lists | {"data.yaml": "train: train.txt\nval: val.txt\nnames: [cat]\n"})
    out, _ = run()
    assert "note: 1 of 3 image files" in out
    assert "are in none of these splits" in out


def test_a_split_of_an_earlier_job_is_announced(tmp_path, run):
    for split in ("train", "val", "test"):
        write_flat_voc(tmp_path / "raw" / split, [f"{split}1", f"{split}22"])
    assert "earlier job" not in run()[0]
    for path in (tmp_path / "raw/test").iterdir():
        path.unlink()
    out, _ = run()
    assert f"note: split test in {tmp_path / 'out'} is of an earlier job" in out
    assert "earlier job" not in run("--split=train")[0]


def test_explicit_shares_are_not_explained_with_missing_splits(tmp_path, run):
    make_voc(tmp_path / "raw", {f"i{number}": [BOX] for number in range(30)})
    out, _ = run("--split_by=train:0.6,val:0.4")
    assert "whatever splits it has" in out
    assert "because the dataset has no" not in out


def test_a_note_on_other_files_does_not_hide_the_images_outside_the_splits(tmp_path, run):
    for split in ("train", "test"):
        (tmp_path / "raw" / split).mkdir(parents=True)
        (tmp_path / f"raw/{split}/{split}.jpg").write_bytes(jpeg(len(split)))
        line = f"{split}.jpg,64,48,car,8,12,24,36\n"
        (tmp_path / f"raw/{split}.csv").write_text(f"filename,width,height,class,xmin,ymin,xmax,ymax\n{line}")
    header = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
    (tmp_path / "raw/mine.csv").write_text(f"{header}extra/x.jpg,64,48,car,8,12,24,36\n")
    (tmp_path / "raw/extra").mkdir()
    (tmp_path / "raw/extra/x.jpg").write_bytes(jpeg(70))
    out, _ = run("--split_by=none")
    assert "note: not read: mine.csv" in out
    assert "note: 1 of 3 image files" in out


def find_names(split: str, count: int, prefix: str = "i", image_id: str = "{}") -> list[str]:
    """Returns names of images in one split of the automatic division."""
    names = (f"{prefix}{number}" for number in range(100))
    return [name for name in names if assign_split(image_id.format(name), SHARES) == split][:count]


def test_a_validation_share_without_a_usable_image_is_omitted_with_its_rejections(tmp_path, run, command):
    labeled, others = find_names("train", 3), find_names("val", 2, "u", f"{tmp_path}/raw/{{}}.jpg")
    write_flat_voc(tmp_path / "raw", labeled, images=[f"{name}.jpg" for name in others])
    out, manifest = run()
    assert {name: split["images"] for name, split in manifest["splits"].items()} == {"train": 3}
    assert f"split val: omitted, because its share of the source contains no usable image; {tmp_path}" in out
    lines = [json.loads(line) for line in (tmp_path / "out/val/rejected.jsonl").read_text().splitlines()]
    assert {(line["image"], line["reason"]) for line in lines} == {
        (f"{tmp_path}/raw/{name}.jpg", "not_annotated") for name in others
    }
    assert "add it with" not in out
    # The limit applies to what was omitted, too.
    flags = [f"--input={tmp_path / 'raw'}", f"--output={tmp_path / 'strict'}", "--set=model.input_size=64"]
    code, _, err = command(*flags, "--max_rejected_fraction=0.5")
    assert (code, "split 'val': 2 of 2 images were rejected, more than" in err) == (3, True), err


def test_an_omitted_split_is_cleared_after_the_manifest_is_written(tmp_path, run, monkeypatch):
    """Runners repeat a step that failed: the reports that it reads must still exist."""
    write_flat_voc(tmp_path / "raw", find_names("train", 3))
    write, reports = manifest_writer.beam_storage.write_bytes, []

    def note_reports(path, data):
        if path.endswith("dataset.json"):
            reports.extend((tmp_path / "out/val/.parts").glob("*-of-*.json"))
        write(path, data)

    monkeypatch.setattr(manifest_writer.beam_storage, "write_bytes", note_reports)
    assert {*run()[1]["splits"]} == {"train"}
    assert reports
    assert not any(path.exists() for path in reports)


@pytest.mark.parametrize("pattern", ["*.json", "./*.json"])
def test_a_pattern_in_the_current_folder_finds_all_images(tmp_path, command, monkeypatch, pattern):
    monkeypatch.chdir(tmp_path)
    for name in ("a1", "b1", "c1"):
        category = {"id": 1, "name": "car"}
        box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20]}
        image = {"id": 1, "file_name": f"{name}.jpg", "width": 64, "height": 48}
        content = {"images": [image], "annotations": [box], "categories": [category]}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        (tmp_path / f"{name}.jpg").write_bytes(jpeg(ord(name[0])))
    code, _, err = command(f"--input={pattern}", "--output=out", "--set=model.input_size=64", "--split_by=none")
    assert (code, err) == (0, "")
    split = json.loads((tmp_path / "out/dataset.json").read_text())["splits"]["train"]
    assert (split["images"], split["rejected_images"], split["boxes"]) == (3, {}, 3)


def test_a_dataset_may_lose_its_validation_share_and_a_class(tmp_path, run):
    train, val = find_names("train", 3), find_names("val", 1)
    write_flat_voc(tmp_path / "raw", [*train, *val])
    (tmp_path / f"raw/{val[0]}.xml").write_text(voc_xml(f"{val[0]}.jpg", [("tram", *BOX[1:])]))
    assert {*run()[1]["splits"]} == {"train", "val"}
    for suffix in (".jpg", ".xml"):
        (tmp_path / f"raw/{val[0]}{suffix}").unlink()
    _, manifest = run()
    assert (manifest["classes"], {*manifest["splits"]}) == (["car"], {"train"})
    assert not list((tmp_path / "out/val").glob("*.tfrecord"))
    assert not (tmp_path / "out/val/image_hashes.npy").exists()


def test_a_limit_of_rejections_is_not_rounded(tmp_path, run):
    names = [f"i{number:03}" for number in range(100)]
    write_flat_voc(tmp_path / "raw", names)
    for name in names[:29]:
        (tmp_path / f"raw/{name}.jpg").write_bytes(b"damaged")
    _, manifest = run("--split_by=none", "--max_rejected_fraction=0.29")
    assert manifest["splits"]["train"]["rejected_images"] == {"unreadable": 29}
