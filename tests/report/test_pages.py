"""The reports are single files that open in Chromium without requests, messages or overflow, and escape all names."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from browser import check_page
from support import synthetic
from support.small_network import small_command

from ssd_dist.cli.inspect import check_is_no_run
from ssd_dist.core.config import Config
from ssd_dist.core.config_files import dump_config
from ssd_dist.core.errors import UsageError
from ssd_dist.core.manifest import Leakage, Manifest
from ssd_dist.report.data_page import build_data_page, count_in_columns
from ssd_dist.report.run_charts import METRIC_NAMES
from ssd_dist.report.run_page import build_run_page, compare_metrics, have_same_ground_truth

SMALL = {
    "model": {"input_size": 64, "width": 0.1},
    "backbone": {"weights": "none"},
    "train": {"global_batch_size": 8, "steps": 8, "log_every": 2},
    "eval": {"every_steps": 4},
    "schedule": {"warmup_steps": 2},
}
HOSTILE_NAMES = (
    "<script>alert(1)</script>",
    'green" onmouseover="alert(2)',
    "blü&e\x07\n</style></svg>" + "x" * 10_000,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes a dataset with leakage and rejections in which every name contains markup."""
    folder = tmp_path_factory.mktemp("pages") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "CLASSES", HOSTILE_NAMES)
        manifest = synthetic.write_dataset(folder, Config.model_validate(SMALL), {"train": 24, "val": 6}, shards=4)
    split = manifest.splits["train"]
    splits = {
        **manifest.splits,
        "train": split.model_copy(
            update={
                "images_read": split.images + 1,
                "rejected_images": {"<img src=x>": 1},
                "clipped_boxes": 3,
                "warnings": ("9 of 9 boxes are <s>suspicious</s>",),
            }
        ),
    }
    leakage = (Leakage(splits=("train", "val"), images=2, examples=("<b>a</b>.jpg", "c.jpg")),)
    whole = manifest.model_copy(update={"splits": splits, "leakage": leakage})
    (folder / "dataset.json").write_text(whole.to_json())
    line = {"reason": "<img src=x>", "image": "<i>q</i>.jpg", "detail": "</td><script>alert(3)</script>", "where": ""}
    (folder / "train" / "rejected.jsonl").write_text(json.dumps(line) + "\n")
    (folder / "train" / "copies.jsonl").write_text(json.dumps({"images": ["<u>r</u>.jpg", "s.jpg"]}) + "\n")
    return folder


def check_hostile_names(text: str, html: str) -> None:
    assert HOSTILE_NAMES[0] in text, "the name is shown as text"
    assert "blü&e\\x07" in text, "control characters are escaped"
    assert "x" * 500 not in html, "long names are shortened"
    attributes: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag not in ("script", "b", "img")
            attributes.extend(name for name, _ in attrs)

    Reader().feed(html)
    assert "<script" not in html
    assert not [name for name in attributes if name.startswith("on")]


def test_the_report_of_a_dataset(data: Path, tmp_path: Path) -> None:
    page = tmp_path / "data.html"
    build_data_page(str(data), str(page), limit=100)
    html = page.read_text()
    assert "<img src=x>" not in html
    assert "Leakage" in html
    assert "&lt;b&gt;a&lt;/b&gt;.jpg" in html
    text = check_page(page, tmp_path)
    check_hostile_names(text, html)
    for word in (
        "Best IoU of each object",
        "Objects without a positive anchor, by matching rule",
        "<i>q</i>.jpg",
        "<u>r</u>.jpg, s.jpg",
        "Boxes of train. 9 of 9 boxes are <s>suspicious</s>.",
    ):
        assert word in text, word
    view = json.loads((data / "dataset.json").read_text())["splits"]["train"]["views"][0]
    shares = [f"{count / 24:.1%}" for count in view["images_per_class"].values()]
    # In the class table, after the objects of both splits and before the median size.
    rows = re.findall(r"<tr><td><span class=\"swatch\".*?</tr>", html, re.DOTALL)
    assert sorted(re.findall(r"meter-text\">([^<]*)<", row)[2] for row in rows) == sorted(shares)


def start_run(data: Path, folder: Path) -> Path:
    folder.mkdir()
    config = Config.model_validate(SMALL | {"data": {"dir": str(data), "allow_leakage": True}})
    (folder / "config.yaml").write_text(dump_config(config))
    shutil.copy(data / "dataset.json", folder / "dataset.json")
    return folder


def test_the_report_of_a_run_that_was_interrupted_early(data: Path, tmp_path: Path) -> None:
    """Without a checkpoint or an evaluation, and with an incomplete row, the report notes what is missing."""
    run = start_run(data, tmp_path / "run")
    row = {"kind": "train", "step": 2, "loss": 3.0, "loss/cls": 2.0, "loss/loc": 1.0, "lr": 1e-3, "positives": 9.0,
           "negatives": 27.0, "images_per_second": 5.0, "data_wait": 0.1, "loss_scale": 1.0}  # fmt: skip
    (run / "metrics.jsonl").write_text(json.dumps(row) + '\n{"kind": "train", "st')
    build_run_page([str(run)], str(run / "report.html"), "auto", "auto", [])
    text = check_page(run / "report.html", tmp_path)
    for word in (
        "Damaged or incomplete lines in metrics.jsonl: 1.",
        "No evaluation yet",
        "No best model yet",
        "Evaluation: not available",
        "step 2 of 8",
    ):
        assert word in text, word
    assert "First training batch" in text


def test_the_report_of_a_run_without_its_data(data: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    run = start_run(moved, tmp_path / "run")
    shutil.rmtree(moved)
    build_run_page([str(run)], str(run / "report.html"), "auto", "auto", [])
    html = (run / "report.html").read_text()
    assert "First training batch: not available" in html


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_reports_of_trained_runs(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = tmp_path / "small.yaml"
    config.write_text(dump_config(Config.model_validate(SMALL | {"data": {"dir": str(data), "allow_leakage": True}})))
    call_small("train", f"--config={config}", f"--model_dir={run}")
    assert json.loads((run / "environment.json").read_text())["replicas"] == 1
    printed = call_small("inspect", f"--model_dir={run}")
    assert str(run / "report.html") in printed
    text = check_page(run / "report.html", tmp_path)
    check_hostile_names(text, (run / "report.html").read_text())
    for word in ("Metrics by step", "best 0.", "Confusion matrix", "Calibration of the scores", "Most confident errors",
                 "Mined negatives", "First training batch", "Environment", "tensorflow"):  # fmt: skip
        assert word in text, word
    other = tmp_path / "other"
    shutil.copytree(run, other)
    # A run without checkpoints is compared by its training reports.
    shutil.rmtree(other / "best")
    shutil.rmtree(other / "checkpoints")
    page = tmp_path / "both.html"
    call_small("inspect", f"--model_dir={run}", f"--model_dir={other}", f"--output={page}")
    text = check_page(page, tmp_path)
    for word in ("2 runs", "other: Evaluation: not available", "COCO AP50", "Config differences"):
        assert word in text, word
    # A split requested by name is an error, not a note.
    assert "no split 'tset'" in call_small("inspect", f"--model_dir={run}", "--split=tset", expect=3)
    broken = tmp_path / "broken.jpg"
    broken.write_text("not an image")
    flags = (f"--model_dir={run}", f"--images={broken}", f"--output={tmp_path / 'found'}")
    assert "none of the 1 files could be read" in call_small("predict", *flags, expect=3)


@pytest.mark.parametrize(
    ("module", "flags", "code", "word"),
    [
        ("inspect", [], 2, "--data=OUT"),
        ("inspect", ["--data=a", "--model_dir=b"], 2, "give either --data=OUT, for a dataset, or --model_dir=RUN"),
        ("inspect", ["--data=/nowhere"], 3, "dataset.json"),
        ("inspect", ["--model_dir=/nowhere"], 4, "not a run"),
        ("inspect", ["--data=a", "--max_images=0"], 2, "max_images"),
        ("inspect", ["--data=a", "--output=gs://b/c.html"], 2, "--output=gs://b/c.html: cannot write to remote"),
        ("inspect", ["--data=a", "--set", "eval.nms_iou=0.3"], 2, "--set has no effect together with --data"),
        ("inspect", ["--model_dir=a", "--fit_anchors=b"], 2, "--fit_anchors has no effect together with --model_dir"),
        ("predict", ["--images=a", "--output=b", "--saved_model=c", "--checkpoint=last"], 2, "--checkpoint has no"),
        ("predict", ["--images=a", "--output=b"], 2, "no model: exactly one model source is required; give --model"),
        ("predict", ["--images=a", "--output=b", "--model_dir=c", "--export=d"], 2, "--model_dir, --export: exactly"),
        # Output files are checked before the evaluation.
        ("evaluate", ["--model_dir=/nowhere", "--split=test", "--output=/dev/null/a.json"], 2, "--output"),
        ("evaluate", ["--model_dir=/nowhere", "--split=test", "--pictures=/dev"], 2, "--pictures"),
    ],
)
def test_user_errors_are_reported(module: str, flags: list[str], code: int, word: str) -> None:
    assert word in call(module, *flags, expect=code)


def test_a_run_given_as_prepared_data_is_refused_with_the_right_flag(tmp_path: Path) -> None:
    # A run folder has a dataset.json too, so without this check the missing shards would be reported.
    (tmp_path / "dataset.json").touch()
    check_is_no_run(str(tmp_path))
    (tmp_path / "config.yaml").touch()
    with pytest.raises(
        UsageError, match=rf"--data={tmp_path}: the folder holds a training run.*--model_dir={tmp_path}"
    ):
        check_is_no_run(str(tmp_path))


def describe_evaluation(images: dict[str, list[int]], value: float, split: str = "val") -> SimpleNamespace:
    """Returns the parts of an evaluation that a comparison table shows; `images` maps ids to labels."""
    keys = [*METRIC_NAMES, *(f"coco/AP_{size}" for size in ("small", "medium", "large"))]
    return SimpleNamespace(
        checkpoint="best",
        split_name=split,
        classes=("cat",),
        ground_truths=[
            SimpleNamespace(source_id=name, objects=SimpleNamespace(labels=np.array(labels)))
            for name, labels in images.items()
        ],
        metrics=SimpleNamespace(scalars=dict.fromkeys(keys, value)),
        analysis=SimpleNamespace(calibration=SimpleNamespace(error=None)),
    )


def test_a_comparison_names_the_best_run_only_if_all_runs_were_evaluated_on_the_same_images() -> None:
    runs = [SimpleNamespace(last_step=1, total_steps=1, best=None, train=SimpleNamespace(rows=[]))] * 2
    first = describe_evaluation({"a": [1, 1], "b": []}, 0.5)
    same = describe_evaluation({"b": [], "a": [1, 1]}, 0.75)
    for other, comparable in (
        (same, True),
        (describe_evaluation({"a": [1, 1], "c": []}, 0.75), False),  # other images
        (describe_evaluation({"a": [1], "b": []}, 0.75), False),  # other annotations
        (None, True),
    ):
        assert have_same_ground_truth([first, other]) == comparable
        rows = {name: best for name, _, best in compare_metrics(runs, [first, other])}
        assert rows["COCO AP50"] == ([1] if other is same else [])
    (cells,) = [row for name, row, _ in compare_metrics(runs[:1], [describe_evaluation({}, 0.5, "train")])
                if name == "evaluated"]  # fmt: skip
    assert "the training split" in cells[0]


def call(module: str, *flags: str, expect: int = 0) -> str:
    return run_program([sys.executable, "-m", f"ssd_dist.cli.{module}", *flags], expect)


def call_small(module: str, *flags: str, expect: int = 0) -> str:
    return run_program(small_command(f"ssd_dist.cli.{module}", *flags), expect)


def run_program(command: list[str], expect: int) -> str:
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == expect, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_a_manifest_without_splits_has_a_report(tmp_path: Path) -> None:
    manifest = synthetic.write_dataset(tmp_path / "data", Config.model_validate(SMALL), {"train": 1}, shards=1)
    empty = Manifest.model_validate(manifest.model_dump() | {"splits": {}})
    (tmp_path / "data" / "dataset.json").write_text(empty.to_json())
    build_data_page(str(tmp_path / "data"), str(tmp_path / "page.html"), limit=10)
    assert "none yet" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("numbers", "step"),
    [
        ([], 1),
        ([0, 0, 3, 9], 1),
        # One image with many objects does not widen the columns.
        ([*[4] * 99, 500], 1),
        ([13] * 50, 2),
        ([45, 46], 5),
        ([1000] * 3, 200),
    ],
)
def test_columns_are_as_wide_as_95_percent_of_the_numbers_need(numbers, step):
    found, names, counts = count_in_columns(np.array(numbers, np.int64))
    assert found == step
    assert names == [*(str(step * column) for column in range(10)), f"{10 * step}+"]
    bounds = [*(step * column for column in range(11)), float("inf")]
    expected = [sum(low <= n < high for n in numbers) for low, high in pairwise(bounds)]
    assert counts.tolist() == expected
