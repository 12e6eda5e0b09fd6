"""The facts of a run are read at every stage of the run, also from damaged files."""

import json

import pytest
from support.synthetic import write_dataset

from ssd_dist.core.config import Config
from ssd_dist.core.config_files import dump_config
from ssd_dist.core.errors import CheckpointError
from ssd_dist.report.run_facts import Rows, read_rows, read_run
from ssd_dist.runs.metrics_log import MetricsLog

CONFIG = Config.model_validate({"model": {"input_size": 64}, "train": {"global_batch_size": 8, "epochs": 3}})


@pytest.fixture
def run(tmp_path):
    manifest = write_dataset(tmp_path / "data", CONFIG, {"train": 32, "val": 4}, shards=4)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(CONFIG))
    (folder / "dataset.json").write_text(manifest.to_json())
    return folder


def test_notes_report_that_a_new_run_has_no_results(run):
    facts = read_run(str(run), [])
    assert (facts.train.rows, facts.evaluations.rows, facts.best, facts.last_step) == ([], [], None, 0)
    assert facts.total_steps == 12, "3 epochs of 32 records in batches of 8"
    text = " ".join(facts.notes)
    for what in ("training report", "evaluation", "best model"):
        assert f"No {what}" in text


def test_incomplete_lines_are_ignored_and_counted(run):
    rows = [{"kind": "train", "step": 2, "loss": 3.0}, {"kind": "eval", "step": 4, "coco/AP": None, "per_class": {}}]
    damaged = ['{"kind": "eval", "step": 6, "per_class": {"a": {"x": 1}', "[1]", '{"kind": "train"}', "\x00\x00"]
    (run / "metrics.jsonl").write_text("\n".join([*map(json.dumps, rows), *damaged]))
    facts = read_run(str(run), [])
    assert [row["step"] for row in facts.train.rows] == [2]
    assert [row["step"] for row in facts.evaluations.rows] == [4]
    assert any("Damaged or incomplete lines in metrics.jsonl: 4." in note for note in facts.notes)
    assert any("step 4 of 12" in note for note in facts.notes)


def test_a_damaged_best_json_is_reported_in_a_note(run):
    (run / "best").mkdir()
    for text in ("{", '{"step": 1}'):
        (run / "best" / "best.json").write_text(text)
        facts = read_run(str(run), [])
        assert any("best.json" in note for note in facts.notes)


@pytest.mark.parametrize(("patience", "best", "early"), [(0, 4, False), (1, 4, True), (1, 8, False), (2, 4, False)])
def test_a_run_that_stopped_early_is_not_called_interrupted(run, patience, best, early):
    rows = [{"kind": "eval", "step": step, "coco/AP": 0.1, "per_class": {}} for step in (4, 8)]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (run / "best").mkdir()
    (run / "best" / "best.json").write_text(json.dumps({"step": best, "metric": "coco/AP", "value": 0.1}))
    facts = read_run(str(run), [f"train.early_stopping={patience}"])
    assert any("Training ended early at step 8 of 12" in note for note in facts.notes) == early
    assert any("The run has reached step 8 of 12" in note for note in facts.notes) != early


def test_evaluations_on_data_that_was_replaced_do_not_end_a_run(run):
    rows = [{"kind": "eval", "step": step, "coco/AP": 0.1, "per_class": {}} for step in (4, 8)]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert any("ended early" in note for note in read_run(str(run), ["train.early_stopping=2"]).notes)
    (run / "best_on_earlier_data").mkdir()
    assert not any("ended early" in note for note in read_run(str(run), ["train.early_stopping=2"]).notes)


def test_missing_numbers_are_nan():
    column = Rows([{"step": 1, "a": None}, {"step": 2}, {"step": 3, "a": 2}]).column("a")
    assert column.tolist() == pytest.approx([float("nan"), float("nan"), 2.0], nan_ok=True)


def test_a_folder_that_is_not_a_run_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="not a run"):
        read_run(str(tmp_path), [])


def test_a_resumed_run_drops_an_incomplete_row_that_ends_in_a_brace(tmp_path):
    """An evaluation row holds nested objects, so an incomplete row may end in a brace without being valid JSON."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 2}\n{"kind": "eval", "step": 4, "per_class": {"a": {"x": 1}')
    MetricsLog(str(tmp_path), 4, 4).write("train", 6, {"loss": 1.0})
    rows, damaged = read_rows(path)
    assert [row["step"] for row in rows] == [2, 6]
    assert damaged == 0
