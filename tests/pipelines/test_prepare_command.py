"""Tests what prepare prints, and that it reports every mistake in one line with the right exit code."""

import errno
import json
import os
import subprocess
import sys

import pytest
from PIL import Image
from raw_sets import ROOT, FailingFile, digests, make_coco, make_voc

from pipelines import options
from pipelines.summary import nearest_prime
from ssd_dist.core.images import DRAWN_BOXES
from ssd_dist.core.spreadsheet_text import DETECTION_COLUMNS

IMAGES = {f"i{number}": [("cat", 5, 5, 30, 40), ("dog", 1, 2, 3, 9)] for number in range(6)}


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """Makes a dataset `voc`, a dataset `empty` without images and a config `x.yaml`; returns their folder, the cwd."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("model: {input_size: 96}\n")
    make_voc(tmp_path / "voc", IMAGES)
    (tmp_path / "empty/Annotations").mkdir(parents=True)
    (tmp_path / "empty/JPEGImages").mkdir()
    (tmp_path / "empty/Annotations/README").write_text("none yet")
    (tmp_path / "empty/JPEGImages/README").write_text("none yet")
    return tmp_path


@pytest.fixture
def run(workspace, command):
    """Runs the command with the required flags, except those in `without`, and with the given arguments."""
    required = {"--input_format": "voc", "--input": "voc", "--split": "train", "--output": "out", "--config": "x.yaml"}

    def call(*arguments, without=()):
        return command(*(f"{flag}={value}" for flag, value in required.items() if flag not in without), *arguments)

    return call


def test_all_counts_are_printed_at_the_end(workspace, run):
    (workspace / "voc/JPEGImages/i3.jpg").write_bytes(b"broken")
    code, out, err = run()
    assert (code, err) == (0, "")
    lines = [line.strip() for line in out.splitlines()]
    for line in (
        "images read: 6", "images in shards: 5", "images rejected, unreadable: 1",
        "boxes read: 12", "boxes in shards: 10", "boxes rejected, image_rejected: 2", "boxes clipped: 0",
        "objects of cat: 5", "objects of dog: 5",
    ):  # fmt: skip
        assert line in lines
    assert any(line.startswith("positives per object: ") for line in lines)


@pytest.mark.parametrize("terminal", ["1", ""])
def test_class_names_are_printed_literally(workspace, run, monkeypatch, terminal):
    names = ["bottle [glass]", "[/x]", ":smile:"]
    make_voc(workspace / "voc", {"i0": [(name, 5, 5, 30, 40) for name in names]})
    monkeypatch.setenv("FORCE_COLOR", terminal)
    monkeypatch.setenv("TERM", "dumb")
    code, out, err = run("--output=[/out]", without=["--output"])
    assert (code, err) == (0, "")
    assert all(f"objects of {name}" in out for name in names)
    assert "[/out], split train" in out


@pytest.mark.parametrize(
    ("arguments", "without", "code", "words"),
    [
        ([], ["--input"], 2, ["--input is missing"]),
        ([], ["--output"], 2, ["--output is missing"]),
        (["--input_format=vco"], ["--input_format"], 2, ["vco", "voc"]),
        (["--inptu=voc"], ["--input"], 2, ["--inptu", "--input"]),
        (["--runnr=DirectRunner"], [], 2, ["--runnr", "--runner"]),
        (["--job_nam=x"], [], 2, ["--job_nam", "--job_name"]),
        (["--runner=NoSuchRunner"], [], 2, ["NoSuchRunner", "DataflowRunner"]),
        (["--direct_num_workers=many"], [], 2, ["direct_num_workers", "many"]),
        (["--shards=-1"], [], 2, ["shards"]),
        (["--shards=few"], [], 2, ["shards", "few"]),
        (["stray"], [], 2, ["stray"]),
        (["--split=a/b"], ["--split"], 2, ["a/b", "plain name"]),
        (["--set", "model.input_siz=5"], [], 2, ["model.input_siz", "model.input_size"]),
        (["--split_by=train:0.5"], [], 2, ["add up"]),
        (["--split_by=train-1"], [], 2, ["train-1"]),
        (["--split_by=train:0.5,train:0.5"], [], 2, ["twice"]),
        (["--split=dataset.json"], ["--split"], 2, ["plain name"]),
        (["--split=-x"], ["--split"], 2, ["plain name"]),
        (["--split=x*"], ["--split"], 2, ["plain name"]),
        (["--survey=s3://b/x.json"], [], 2, ["s3://b/x.json", "gs://"]),
        (["--survey=voc"], [], 2, ["--survey=voc", "folder"]),
        (["--survey=x.json", "--dry_run=True"], [], 2, ["--survey", "dry run"]),
        (["--runner=PortableRunner"], [], 2, ["--job_endpoint"]),
        (["--runner=DataflowRunner", "--dry_run=True"], [], 2, ["project", "region", "temp_location"]),
        (["--max_rejected_fraction=nan"], [], 2, ["max_rejected_fraction", "nan"]),
        (["--output=gs:/bucket"], ["--output"], 2, ["gs:/bucket", "gs://"]),
        (["--output=gs://bucket/"], ["--output"], 2, ["gs://bucket/folder"]),
        (["--input=nosuch://bucket"], ["--input"], 2, ["nosuch://bucket", "gs://"]),
        (["--output=x.yaml"], ["--output"], 3, ["x.yaml is a file", "give a folder"]),
        (["--output=x.yaml/new/out"], ["--output"], 3, ["x.yaml is a file", "give a folder"]),
        (["--output=/proc/none"], ["--output"], 3, ["/proc/none", "cannot be written"]),
        (["--classes=voc"], [], 3, ["voc", "Is a directory"]),
        (["--split_by=a:0.5,b:0.5"], [], 2, ["train"]),
        (["--input=nowhere"], ["--input"], 3, ["nowhere", "does not exist"]),
        (["--input=empty"], ["--input"], 3, ["no class"]),
        (["--input=empty", "--classes=x.yaml"], ["--input"], 3, ["no images"]),
        (["--source_split=val"], [], 3, ["'val'", "train"]),
        (["--image_dir=nowhere"], [], 3, ["nowhere"]),
        (["--classes=nowhere.txt"], [], 3, ["nowhere.txt"]),
        (["--exclude_classes=cats"], [], 3, ["cats", "did you mean 'cat'"]),
        (["--exclude_classes=cat", "--max_rejected_fraction=0.4"], [], 3, ["6 of 12 boxes", "rejected.jsonl"]),
    ],
)
def test_mistakes_are_reported_in_one_line(workspace, run, arguments, without, code, words):
    found, out, err = run(*arguments, without=without)
    assert (found, out) == (code, ""), err
    assert len(err.splitlines()) == 1, err
    assert all(word in err for word in words), err
    assert "[while" not in err
    assert not (workspace / "out/dataset.json").exists()


def test_a_second_split_must_match_the_config_and_classes_of_the_first(workspace, run):
    assert run()[0] == 0
    before = (workspace / "out/dataset.json").read_bytes()
    (workspace / "names.txt").write_text("dog\ncat\n")
    for arguments, words in (
        (["--set", "anchors.sizes=[0.1,0.2,0.3,0.5,0.7,0.9,1.0]"], ["anchors", "--output"]),
        (["--set", "matching.policy=one_to_one"], ["matching", "--output"]),
        (["--set", "model.input_size=64"], ["image_size", "--output"]),
        (["--classes=names.txt"], ["names.txt", "cat, dog"]),
    ):
        code, _, err = run("--split=val", "--source_split=train", *arguments, without=["--split"])
        assert code == 3
        assert len(err.splitlines()) == 1
        assert all(word in err for word in words), err
    assert (workspace / "out/dataset.json").read_bytes() == before


def test_a_second_split_takes_the_classes_of_the_first(workspace, run):
    make_voc(workspace / "more", {"a": [("dog", 5, 5, 30, 40), ("cow", 1, 2, 3, 9)]})
    assert run()[0] == 0
    assert run("--input=more", "--split=val", "--source_split=train", without=["--input", "--split"])[0] == 0
    manifest = json.loads((workspace / "out/dataset.json").read_text())
    assert manifest["classes"] == ["cat", "dog"]
    assert manifest["splits"]["val"]["views"][0]["objects_per_class"] == {"cat": 0, "dog": 1}
    assert manifest["splits"]["val"]["rejected_boxes"] == {"unknown_class": 1}


def test_unknown_classes_are_reported_at_the_end(workspace, run):
    make_voc(workspace / "more", {"a": [("dog", 5, 5, 30, 40), ("cow", 1, 2, 3, 9)], "b": [("ant", 1, 2, 3, 9)]})
    val = ["--input=more", "--split=val", "--source_split=train"]
    assert "warning" not in run()[1]
    _, out, _ = run(*val, without=["--input", "--split"])
    (line,) = [line for line in out.splitlines() if line.startswith("warning: boxes of ")]
    assert all(words in line for words in ("ant, cow were", "most classes first", "--classes"))
    # Classes excluded by a flag are excluded on purpose, so they cause no warning.
    _, out, _ = run(*val, "--output=other", "--exclude_classes=ant,cow", without=["--input", "--split", "--output"])
    assert "warning: boxes of" not in out


def test_an_image_under_two_ids_is_reported(workspace, run):
    make_voc(workspace / "voc", {name: [("cat", 5, 5, 30, 40)] for name in "abc"})
    (workspace / "voc/JPEGImages/c.jpg").write_bytes((workspace / "voc/JPEGImages/a.jpg").read_bytes())
    code, out, _ = run()
    (warning,) = [line for line in out.splitlines() if line.startswith("warning:")]
    assert (code, "warning: 1 images are byte for byte" in warning) == (0, True)


@pytest.mark.parametrize(("broken", "shards"), [(range(0, 40, 2), 3), (range(0, 20), 0), ((), 0)])
def test_rejections_at_regular_intervals_are_reported(workspace, run, broken, shards):
    make_voc(workspace / "voc", {f"i{number:02d}": [("cat", 5, 5, 30, 40)] for number in range(40)})
    for number in broken:
        (workspace / f"voc/JPEGImages/i{number:02d}.jpg").write_bytes(b"broken")
    code, out, _ = run("--shards=4")
    warnings = [line for line in out.splitlines() if line.startswith("warning: the smallest")]
    assert (code, len(warnings)) == (0, 1 if shards else 0)
    if shards:
        assert all(words in warnings[0] for words in ("of 4 shards holds 0", "0 of 20", f"--shards={shards}"))
        _, out, _ = run(f"--shards={shards}", "--output=other", without=["--output"])
        assert "warning: the smallest" not in out


@pytest.mark.parametrize(("shards", "prime"), [(2, 3), (3, 5), (4, 3), (8, 7), (16, 17), (32, 31), (64, 61), (7, 5)])
def test_the_recommended_number_of_shards_is_a_prime(shards, prime):
    assert nearest_prime(shards) == prime


@pytest.mark.parametrize(
    "mistake", ["--input=nowhere", "--exclude_classes=cats", "--source_split=vla", "--input_format=coco"]
)
def test_a_failed_command_leaves_the_output_folder_usable(workspace, run, mistake):
    code, _, _ = run(mistake, without=[mistake.partition("=")[0]])
    assert code == 3
    code, _, err = run()
    assert (code, err) == (0, "")


def test_splits_prepared_at_the_same_time_do_not_mix_their_classes(workspace, run, monkeypatch):
    make_voc(workspace / "more", {"a": [("dog", 5, 5, 30, 40)]})
    # The job of split train writes the manifest while the job of split val is running.
    others = []
    record = options.record_job

    def record_late(job):
        if not others:
            others.append(job)
            assert run()[0] == 0
        record(job)

    monkeypatch.setattr("pipelines.job.record_job", record_late)
    flags = ["--input=more", "--split=val", "--source_split=train"]
    code, _, err = run(*flags, without=["--input", "--split"])
    assert (code, len(err.splitlines()), "run this one again" in err) == (3, 1, True), err
    assert json.loads((workspace / "out/dataset.json").read_text())["classes"] == ["cat", "dog"]
    assert run(*flags, without=["--input", "--split"])[0] == 0
    manifest = json.loads((workspace / "out/dataset.json").read_text())
    assert manifest["splits"]["val"]["views"][0]["objects_per_class"] == {"cat": 0, "dog": 1}


def test_preparing_a_larger_dataset_removes_the_old_shards(workspace, run):
    assert run()[0] == 0
    # The class changes as well: the only split of a dataset determines its classes.
    make_voc(workspace / "voc", {f"i{number}": [("cow", 5, 5, 30, 40)] for number in range(40)})
    assert run()[0] == 0
    assert json.loads((workspace / "out/dataset.json").read_text())["classes"] == ["cow"]
    grown = digests(workspace / "out")
    shards = json.loads((workspace / "out/dataset.json").read_text())["splits"]["train"]["views"][0]["shards"]
    assert sorted(name for name in grown if name.endswith(".tfrecord")) == [shard["file"] for shard in shards]
    assert run("--output=fresh", without=["--output"])[0] == 0
    assert grown == digests(workspace / "fresh")


def test_a_local_dry_run_prints_the_steps_and_writes_nothing(workspace, run):
    code, out, _ = run("--dry_run=True")
    assert (code, out.splitlines()[0]) == (0, "dry run, nothing was executed; the steps of the job:")
    assert "  Write shards" in out.splitlines()
    assert not (workspace / "out").exists()


def test_help_lists_the_flags():
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.prepare", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for flag in ("input_format", "input", "split_by", "resume", "config", "set"):
        assert f"  --{flag}: " in done.stdout


def test_only_the_changed_flag_is_reported(workspace, run):
    assert run()[0] == 0
    code, _, err = run("--set", "data.views=3")
    assert (code, "data.views was 1, is 3" in err) == (3, True), err


def test_a_signal_before_the_job_exits_with_the_restart_code(run, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.options.read_manifest", interrupt)
    code, _, err = run()
    assert (code, len(err.splitlines())) == (75, 1), err


def test_an_input_given_twice_is_refused(run):
    code, _, err = run("--input=./voc/")
    assert (code, "--input=./voc/ is given twice" in err) == (2, True), err


def test_inputs_that_are_the_same_dataset_are_refused(workspace, run):
    (workspace / "link").symlink_to("voc")
    code, _, err = run("--input=link")
    assert (code, "--input=voc and --input=link are the same dataset" in err) == (2, True), err


def test_a_refused_job_changes_no_split(workspace, run):
    assert run("--split_by=train:0.5,val:0.5", without=["--split"])[0] == 0
    # The settings of the first split fit, those of the second do not.
    (workspace / "out/val/.parts/job.json").write_text('{"shards": 7}')
    before = digests(workspace / "out")
    code, _, err = run("--split_by=train:0.5,val:0.5", without=["--split"])
    assert (code, "out/val: the shards were prepared with other settings" in err) == (3, True), err
    assert digests(workspace / "out") == before


@pytest.mark.parametrize("text", [b"{", b"[1]", b"\xff"])
def test_a_damaged_job_file_is_reported(workspace, run, text):
    assert run()[0] == 0
    (workspace / "out/train/.parts/job.json").write_bytes(text)
    code, _, err = run()
    assert (code, len(err.splitlines()), "out/train/.parts/job.json" in err) == (3, 1, True), err


def test_a_trailing_slash_is_not_a_changed_flag(workspace, run):
    assert run("--image_dir=voc/JPEGImages")[0] == 0
    before = digests(workspace / "out")
    code, _, err = run("--input=voc/", "--image_dir=voc/JPEGImages/", "--resume", without=["--input"])
    assert (code, err) == (0, "")
    assert digests(workspace / "out") == before


def test_the_manifest_does_not_depend_on_the_order_of_the_splits(workspace, run):
    ids = list(IMAGES)
    for split, members in (("test", ids[:3]), ("train", ids[2:5]), ("val", ids[1:3])):
        (workspace / f"voc/ImageSets/Main/{split}.txt").write_text("".join(f"{name}\n" for name in members))
    # Copies of the same image under other names.
    make_voc(workspace / "voc", {f"o{number}": IMAGES["i0"] for number in range(3)}, {"other": ["o0", "o1", "o2"]})
    manifests = []
    for order in (("test", "train", "val", "other"), ("other", "val", "train", "test")):
        (workspace / "names.txt").write_text("cat\ndog\n")
        output = f"--output={'-'.join(order)}"
        for split in order:
            flags = [f"--split={split}", output, "--classes=names.txt"]
            assert run(*flags, without=["--split", "--output"])[0] == 0
        manifests.append((workspace / output.removeprefix("--output=") / "dataset.json").read_bytes())
    assert manifests[0] == manifests[1]
    leakage = {tuple(leak["splits"]): leak["examples"] for leak in json.loads(manifests[0])["leakage"]}
    assert leakage[("other", "test")] == ["o0.jpg", "o1.jpg", "o2.jpg"]


def test_an_output_named_like_a_temporary_file_keeps_its_shards(workspace, run):
    assert run("--output=a.tmp-1/out", without=["--output"])[0] == 0
    assert list((workspace / "a.tmp-1/out/train").glob("*.tfrecord"))


def test_coco_from_the_command_line(workspace, run):
    make_coco(workspace / "coco", {"a.jpg": [(7, 5, 5, 30, 40)], "b.jpg": []}, {7: "z", 9: "a"})
    assert run("--input_format=coco", "--input=coco", without=["--input_format", "--input"])[0] == 0
    manifest = json.loads((workspace / "out/dataset.json").read_text())
    assert manifest["classes"] == ["z", "a"]
    assert manifest["splits"]["train"]["images"] == 2


def test_a_storage_error_during_the_job_is_reported_in_one_line(workspace, run, monkeypatch):
    source = make_coco(workspace / "coco", {"a.jpg": [(7, 5, 5, 30, 40)]}, {7: "z"})
    text = (source / "annotations/instances_train.json").read_bytes()
    error = OSError(errno.EIO, "Input/output error")
    monkeypatch.setattr("pipelines.beam_storage.open_input", lambda _: FailingFile(text[:-5], error))
    code, _, err = run("--input_format=coco", "--input=coco", without=["--input_format", "--input"])
    assert (code, len(err.splitlines()), "instances_train.json could not be read" in err) == (3, 1, True), err
    assert not (workspace / "out/dataset.json").exists()


def test_a_wrong_image_dir_rejects_all_images_and_is_an_error(workspace, run):
    (workspace / "other").mkdir()
    (workspace / "other/readme.txt").write_text("no images here")
    code, _, err = run("--image_dir=other")
    assert code == 3
    assert "all 6 images were rejected" in err
    lines = [json.loads(line) for line in (workspace / "out/train/rejected.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in lines].count("missing_image") == 6


def test_the_command_prints_the_same_in_a_separate_process(workspace):
    def start(*arguments):
        command = [sys.executable, "-m", "pipelines.prepare", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    required = ["--input_format=voc", "--input=voc", "--split=train", "--output=out", "--config=x.yaml"]
    done = start(*required)
    assert (done.returncode, done.stderr) == (0, "")
    assert "images in shards: 6" in done.stdout
    done = start(*required, "--exclude_classes=cat", "--max_rejected_fraction=0.4")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (3, "", 1)


def test_images_with_drawn_boxes_are_no_training_images(workspace, command):
    """`ssd-predict` writes them beside detections.csv, under the names of the images."""
    (workspace / "photos").mkdir()
    (workspace / "out").mkdir()
    Image.new("RGB", (60, 50), "gray").save(workspace / "photos/a.jpg")
    Image.new("RGB", (60, 50), "gray").save(workspace / "out/a.jpg", comment=DRAWN_BOXES)
    (workspace / "out/detections.csv").write_text(
        ",".join(DETECTION_COLUMNS) + "\nphotos/a.jpg,60,50,cat,5,5,30,40,0.9\n"
    )
    flags = ["--input=out/detections.csv", "--split=train", "--config=x.yaml", "--max_rejected_fraction=1"]
    code, _, err = command(*flags, "--output=drawn")
    assert (code, err.count("drawn_boxes")) == (3, 1)
    code, out, _ = command(*flags, "--output=original", "--image_dir=photos")
    assert code == 0
    assert "images in shards: 1" in out
