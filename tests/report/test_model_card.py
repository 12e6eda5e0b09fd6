"""The model card states what the run contains, follows later evaluations, and is valid Markdown for hostile names."""

import hashlib
import json
from pathlib import Path

import pytest
from support.synthetic import write_dataset

from ssd_dist.core.config import Config
from ssd_dist.core.config_files import dump_config
from ssd_dist.evaluation.metrics_table import describe_split
from ssd_dist.report.model_card import record_evaluation, write_model_card

SETTINGS = {"model": {"input_size": 64, "width": 0.35}}
METRICS = {"coco/AP": 0.25, "coco/AP50": 0.5, "voc/mAP": 0.75}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with one evaluation; its best checkpoint is that of step 6."""
    folder = tmp_path / "parts"
    config = Config.model_validate(SETTINGS | {"data": {"dir": str(tmp_path / "shards")}, "train": {"steps": 9}})
    manifest = write_dataset(tmp_path / "shards", config, {"train": 8, "val": 4, "test": 2})
    (folder / "best").mkdir(parents=True)
    (folder / "dataset.json").write_text(manifest.to_json())
    (folder / "config.yaml").write_text(dump_config(config))
    per_class = {name: {"coco/AP": 0.1, "coco/AP50": 0.2, "objects": 7} for name in manifest.classes}
    rows = [{"kind": "eval", "step": 3, "coco/AP": 0.1}, {"kind": "eval", "step": 6, **METRICS, "per_class": per_class}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "best" / "best.json").write_text(json.dumps({"step": 6, "metric": "coco/AP", "value": 0.25}))
    return folder


def read_model_card(run: Path) -> str:
    write_model_card(str(run))
    return (run / "model_card.md").read_text()


def test_the_model_card_states_data_input_weights_and_metrics(run) -> None:
    text = read_model_card(run)
    manifest = json.loads((run / "dataset.json").read_text())
    assert text.startswith("# Model card: parts\n")
    assert hashlib.sha256((run / "dataset.json").read_bytes()).hexdigest() in text
    assert manifest["fingerprint"] in text
    for name, images in (("train", 8), ("val", 4), ("test", 2)):
        assert f"| {name} | {images} | {manifest['splits'][name]['boxes']} | 0 | 0 |" in text
    counts = [manifest["splits"][name]["views"][0]["objects_per_class"]["red"] for name in ("train", "val", "test")]
    assert f"| red | {counts[0]} | {counts[1]} | {counts[2]} |" in text
    assert "one RGB image, resized to 64 x 64 pixels" in text
    assert "-1..1" in text
    assert "MobileNetV2 of Keras (Apache License 2.0), trained on ImageNet" in text
    assert "License of the data: not stated" in text
    assert "| val | best, step 6 | 4 | 0.250 | 0.500 | 0.750 |" in text
    assert "best of 2 evaluations by coco/AP on val" in text
    assert "| red | 7 | 0.100 | 0.200 |" in text


def test_an_evaluation_on_another_split_is_added(run) -> None:
    record_evaluation(str(run), "test", 6, 2, METRICS)
    assert not (run / "model_card.md").exists(), "only a finished run has a model card"
    write_model_card(str(run))
    record_evaluation(str(run), "test", 6, 2, METRICS | {"coco/AP": 0.125})
    # That of the evaluation split is in the model card already.
    record_evaluation(str(run), "val", 6, 4, METRICS)
    record_evaluation(str(run), "train", 6, 8, METRICS)
    rows = [line for line in (run / "model_card.md").read_text().splitlines() if "| 0.500 | 0.750 |" in line]
    assert rows == [
        "| val | best, step 6 | 4 | 0.250 | 0.500 | 0.750 |",
        "| test | best, step 6 | 2 | 0.125 | 0.500 | 0.750 |",
        f"| {describe_split('train')} | best, step 6 | 8 | 0.250 | 0.500 | 0.750 |",
    ]


def test_the_results_of_an_earlier_best_model_are_not_shown(run) -> None:
    record_evaluation(str(run), "test", 6, 2, METRICS)
    assert "| test | best, step 6 |" in read_model_card(run)
    (run / "best" / "best.json").write_text(json.dumps({"step": 9, "metric": "coco/AP", "value": 0.5}))
    assert "| test | best" not in read_model_card(run)
    record_evaluation(str(run), "train", 9, 8, METRICS)
    assert [row["split"] for row in json.loads((run / "evaluations.json").read_text())] == ["train"]


def test_results_without_a_step_are_not_shown(run) -> None:
    """Earlier versions did not record which best model was evaluated."""
    row = {"split": "test", "checkpoint": "best", "images": 2} | METRICS
    (run / "evaluations.json").write_text(json.dumps([row]))
    assert "| test | best" not in read_model_card(run)
    (run / "best" / "best.json").unlink()
    assert "| test | best" not in read_model_card(run)


def test_a_run_without_evaluation_has_a_model_card(run) -> None:
    (run / "metrics.jsonl").unlink()
    (run / "best" / "best.json").unlink()
    (run / "evaluations.json").write_text("no JSON")
    assert "The run has not been evaluated." in read_model_card(run)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"backbone": {"weights": "none"}}, "Initial weights: random; nothing was pretrained"),
        ({"backbone": {"weights": "w.h5"}}, "Initial weights: w.h5; license not stated"),
        ({"model": {"input_size": 64, "init_from": "old"}}, "Initial weights: taken over from old; license not stated"),
    ],
)
def test_the_origin_of_the_weights_is_stated(run, settings, expected) -> None:
    (run / "config.yaml").write_text(dump_config(Config.model_validate(SETTINGS | settings)))
    assert expected in read_model_card(run)


def test_names_cannot_break_the_tables(run) -> None:
    manifest = (run / "dataset.json").read_text().replace('"red"', '"a|b <img>"')
    (run / "dataset.json").write_text(manifest)
    assert "| a\\|b &lt;img> |" in read_model_card(run)
