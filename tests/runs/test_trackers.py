"""TensorBoard gets the values of metrics.jsonl; other services are used only if the config lists them."""

import errno
import itertools
import json
import os
import shutil
import socket
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from PIL import Image

from ssd_dist.core import storage
from ssd_dist.core.config import Config
from ssd_dist.core.config_files import flatten_config
from ssd_dist.core.errors import RestartError, UsageError
from ssd_dist.core.records import Objects
from ssd_dist.evaluation.detection_matching import match_detections
from ssd_dist.evaluation.detections import Detections, GroundTruth
from ssd_dist.evaluation.voc_metrics import trace_curve
from ssd_dist.runs import metrics_log
from ssd_dist.runs.metrics_log import MetricsLog
from ssd_dist.runs.trackers import TensorBoardTracker, create_trackers, tabulate_curve


def read_events(folder: Path) -> dict[str, tuple[int, tf.Tensor]]:
    found = {}
    for path in (folder / "tensorboard").iterdir():
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                found[value.tag] = event.step, tf.make_ndarray(value.tensor)
    return found


def test_tensorboard_has_the_numbers_of_metrics_jsonl(tmp_path):
    log = MetricsLog(str(tmp_path), 0, 0, create_trackers(Config(), str(tmp_path)))
    log.write("train", 4, {"loss": 2.5, "skipped_steps": 1})
    log.write("eval", 8, {"coco/AP": 0.25, "coco/AP75": None, "per_class": {"cat": {}}})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [4, 8]
    events = read_events(tmp_path)
    assert "anchors" in str(events.pop("config")[1])
    assert {tag: (step, float(value)) for tag, (step, value) in events.items()} == {
        "train/loss": (4, 2.5),
        "train/skipped_steps": (4, 1.0),
        "eval/coco/AP": (8, 0.25),
    }


def read_resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's memory statistics")
def test_reports_of_new_numbers_keep_no_memory(tmp_path):
    """TensorFlow keeps every Python number that it converts: values and steps of reports must not be among them."""
    tracker = TensorBoardTracker(str(tmp_path))
    steps = itertools.count()

    def measure_growth(log_number) -> int:
        before = read_resident_bytes()
        for _ in range(400):
            log_number()
        return read_resident_bytes() - before

    def log_report():
        step = next(steps)
        tracker.log_scalars("train", step, {"loss": step + 0.1, "loss/cls": step + 0.2, "loss/loc": step + 0.3})

    def convert_numbers():
        step = next(steps)
        for number in (step, step + 0.1, step + 0.2, step + 0.3):
            tf.constant(number)

    measure_growth(log_report)
    kept = measure_growth(convert_numbers)
    # Other allocations of the process may happen to be measured, but not three times.
    assert min(measure_growth(log_report) for _ in range(3)) < kept / 10


def test_a_resumed_run_drops_broken_and_later_rows(tmp_path):
    row = {"kind": "train", "step": 4, "loss": 2.5}
    broken = [b'{"kind": "tr', b"7", b"[]", b'{"step": 2}', b'{"kind": "train", "step": null}', b"\xff\xfe", b""]
    later = json.dumps(row | {"step": 5}).encode()
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([*broken, json.dumps(row).encode(), later]))
    MetricsLog(str(tmp_path), 4, 0)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [row]


def test_tensorboard_has_curves_histograms_and_images(tmp_path):
    box, elsewhere = [0.0, 0.0, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9]
    none = np.zeros(2, bool)
    labels, areas = np.array([1, 1]), np.ones(2, np.float32)
    objects = Objects(np.float32([box, elsewhere]), labels, ("cat", "cat"), none, none, areas)
    found = Detections("a", np.float32([box, [0.0, 0.5, 0.5, 1.0]]), labels, np.float32([0.9, 0.4]))
    matches = match_detections([GroundTruth("a", 100, 100, objects)], [found], ("cat",))
    TensorBoardTracker(str(tmp_path)).log_evaluation(6, matches, Image.new("RGB", (40, 20)))
    events = read_events(tmp_path)
    assert set(events) == {"pr/cat", "scores/true_positives", "scores/false_positives", "detections"}
    # A true positive at 0.9, a false positive at 0.4, two objects.
    curve = trace_curve(np.float32([0.9, 0.4]), np.array([1, -1], np.int8), 2)
    assert events["pr/cat"][1] == pytest.approx(tabulate_curve(curve))
    # Columns of a histogram: low, high, count.
    for name, score in (("scores/true_positives", 0.9), ("scores/false_positives", 0.4)):
        ((low, high, count),) = [row for row in np.asarray(events[name][1]) if row[2]]
        assert count == 1, name
        # Scores are float32.
        assert low - 1e-6 <= score <= high + 1e-6, name


def test_tensorboard_has_a_histogram_of_each_convolutions_weights(tmp_path):
    model = tf_keras.Sequential([tf_keras.layers.Conv2D(4, 3, name="conv"), tf_keras.layers.BatchNormalization()])
    model.build([None, 8, 8, 3])
    TensorBoardTracker(str(tmp_path)).log_weights(6, model)
    ((tag, (step, buckets)),) = read_events(tmp_path).items()
    assert (tag, step) == ("weights/conv", 6)
    kernel = model.get_layer("conv").kernel.numpy()
    low, high, count = np.asarray(buckets).T
    assert count.sum() == kernel.size
    assert (low[0], high[-1]) == pytest.approx((kernel.min(), kernel.max()))


def test_a_curve_is_sampled_at_thresholds():
    # A true positive at 0.9, a false positive at 0.4, two objects.
    found, wrong, _, missed, precision, recall = tabulate_curve(
        trace_curve(np.array([0.9, 0.4]), np.array([1, -1], np.int8), 2)
    )
    for threshold, expected in ((0, (1, 1, 1, 0.5, 0.5)), (50, (1, 0, 1, 1, 0.5)), (95, (0, 0, 2, 1, 0))):
        row = (found[threshold], wrong[threshold], missed[threshold], precision[threshold], recall[threshold])
        assert row == pytest.approx(expected)
    on_the_threshold = tabulate_curve(trace_curve(np.array([0.5]), np.array([1], np.int8), 1))
    assert on_the_threshold[0, [50, 51]].tolist() == [1, 0], "a score equal to the threshold counts"
    empty = trace_curve(np.zeros(0), np.zeros(0, np.int8), 0)
    assert np.isfinite(tabulate_curve(empty)).all()


@pytest.fixture
def services(monkeypatch):
    """Replaces wandb and mlflow by fakes that record their calls; returns the calls."""
    calls: list[tuple] = []
    run = types.SimpleNamespace(
        config=types.SimpleNamespace(update=lambda values, **_: calls.append(("wandb config", values))),
        log=lambda values: calls.append(("wandb", values)),
    )
    wandb = types.ModuleType("wandb")
    wandb.init = lambda **options: calls.append(("wandb init", options)) or run
    mlflow = types.ModuleType("mlflow")
    mlflow.set_experiment = lambda name: calls.append(("experiment", name))
    mlflow.start_run = lambda run_id, run_name: (
        calls.append(("mlflow run", run_id)) or types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))
    )
    mlflow.log_params = lambda values: calls.append(("mlflow params", values))
    mlflow.log_metrics = lambda values, step: calls.append(("mlflow", step, values))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    return calls


def test_other_services_get_the_same_values_and_resume_their_run(tmp_path, services):
    config = Config.model_validate({"tracking": {"also": ["wandb", "mlflow"], "project": "toys"}})
    for _ in range(2):
        log = MetricsLog(str(tmp_path), 0, 0, create_trackers(config, str(tmp_path)))
    log.write("train", 4, {"loss": 2.5})
    first, second = (options for kind, options in (entry for entry in services if entry[0] == "wandb init"))
    assert first == second, "the same folder has the same run id"
    assert [entry[1] for entry in services if entry[0] == "mlflow run"] == [None, "r1"]
    assert [set(entry[1]) for entry in services if entry[0] == "mlflow params"] == [set(flatten_config(config))]
    assert ("wandb", {"train/loss": 2.5, "step": 4}) in services
    assert ("mlflow", 4, {"train/loss": 2.5}) in services


def test_a_failing_service_causes_one_warning_and_no_lost_row(tmp_path, services, capsys):
    config = Config.model_validate({"tracking": {"also": ["mlflow"]}})
    log = MetricsLog(str(tmp_path), 0, 0, create_trackers(config, str(tmp_path)))

    def refuse(*_, **__):
        raise ConnectionError("no route to the server")

    sys.modules["mlflow"].log_metrics = refuse
    for step in (4, 8):
        log.write("train", step, {"loss": 2.5})
    assert [json.loads(row)["step"] for row in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [4, 8]
    warnings = capsys.readouterr().err
    assert warnings.count("warning: Mlflow has no values of step 4: no route to the server") == 1
    assert "step 8" not in warnings


def test_a_row_is_written_once_although_storage_fails_at_first(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "RETRY_PAUSES", (0.0, 0.0))
    log = MetricsLog(str(tmp_path), 0, 0)
    append, left = metrics_log._append, [2]

    def append_part_and_fail(path, line, size):
        if left[0]:
            left[0] -= 1
            append(path, line[:9], size)
            raise OSError(errno.ESTALE, "Stale file handle")
        append(path, line, size)

    monkeypatch.setattr(metrics_log, "_append", append_part_and_fail)
    for step in (4, 8):
        log.write("train", step, {"loss": 2.5})
    assert [json.loads(row)["step"] for row in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [4, 8]
    left[0] = 99
    with pytest.raises(RestartError, match=r"metrics\.jsonl .*start again"):
        log.write("train", 12, {"loss": 2.5})


def test_a_service_that_does_not_start_is_reported(tmp_path, services):
    def refuse(**_):
        raise RuntimeError("api_key not configured")

    sys.modules["wandb"].init = refuse
    config = Config.model_validate({"tracking": {"also": ["wandb"]}})
    with pytest.raises(UsageError, match=r"tracking\.also: wandb does not start .*api_key not configured.*log in"):
        create_trackers(config, str(tmp_path))


def test_a_resumed_run_continues_without_an_unavailable_service(tmp_path, services, capsys):
    def refuse(**_):
        raise ConnectionError("no route to the server")

    sys.modules["wandb"].init = refuse
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "ckpt-4.seal").touch()
    config = Config.model_validate({"tracking": {"also": ["wandb", "mlflow"]}})
    trackers = create_trackers(config, str(tmp_path))
    assert [type(tracker).__name__ for tracker in trackers] == ["TensorBoardTracker", "MlflowTracker"]
    assert "warning: tracking.also: wandb does not start (ConnectionError: no route" in capsys.readouterr().err
    sys.modules["wandb"] = None
    with pytest.raises(UsageError, match="not installed"):
        create_trackers(config, str(tmp_path))


def test_a_new_run_in_the_same_folder_gets_a_new_run_id(tmp_path, services):
    config = Config.model_validate({"tracking": {"also": ["wandb"]}})
    run = tmp_path / "run"
    for _ in range(2):
        run.mkdir()
        create_trackers(config, str(run))
        shutil.rmtree(run)
    first, second = (entry[1]["id"] for entry in services if entry[0] == "wandb init")
    assert first != second


def test_other_services_are_not_used_by_default(tmp_path, services):
    create_trackers(Config(), str(tmp_path))
    assert services == []


def test_a_service_that_is_not_installed_is_reported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = Config.model_validate({"tracking": {"also": ["wandb"]}})
    with pytest.raises(UsageError, match=r"tracking\.also: wandb is not installed"):
        create_trackers(config, str(tmp_path))


def test_a_running_process_can_be_profiled(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    create_trackers(Config.model_validate({"tracking": {"profiler_port": port}}), str(tmp_path))
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            tf.linalg.matmul(tf.ones([64, 64]), tf.ones([64, 64]))

    worker = threading.Thread(target=work)
    worker.start()
    try:
        tf.profiler.experimental.client.trace(f"grpc://localhost:{port}", str(tmp_path / "profiles"), 300)
    finally:
        done.set()
        worker.join(timeout=10)
    (profile,) = (tmp_path / "profiles").rglob("*.xplane.pb")
    assert b"MatMul" in profile.read_bytes()
