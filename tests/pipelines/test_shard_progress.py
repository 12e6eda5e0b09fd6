"""Tests the progress display of a running job and the counters that the runner reports."""

import io
import os
import time

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from raw_sets import labeled_images, make_voc
from rich.console import Console

import pipelines.shard_progress
from pipelines import job as job_module
from pipelines.classes import ClassRules
from pipelines.options import PrepareJob
from pipelines.readers.sources import Source
from pipelines.runners import make_runner
from pipelines.shard_progress import Written, count_written, create_console, show_progress
from ssd_dist.core.config import Config

SMALL = Config.model_validate({"model": {"input_size": 64}, "data": {"views": 2}})


def test_finished_shards_and_bytes_are_counted(tmp_path):
    assert count_written(tmp_path / "train", 0) == Written()
    parts = tmp_path / "train/.parts"
    parts.mkdir(parents=True)
    (tmp_path / "train/view00-00000-of-00004.tfrecord").write_bytes(b"x" * 100)
    (tmp_path / "train/.view00-00001-of-00004.tfrecord.tmp-abc").write_bytes(b"x" * 10)
    assert count_written(tmp_path / "train", 0) == Written(0, 4, 110)
    (parts / "00000-of-00004.json").write_text("{}")
    (parts / ".00001-of-00004.json.tmp-abc").write_text("{")
    (parts / "job.json").write_text("{}")
    assert count_written(tmp_path / "train", 0) == Written(1, 4, 110)
    os.utime(tmp_path / "train/view00-00000-of-00004.tfrecord", (1000, 1000))
    assert count_written(tmp_path / "train", time.time() - 60) == Written(1, 4, 10)


@pytest.mark.parametrize(("terminal", "output"), [(False, ""), (True, "gs://bucket/out")])
def test_no_progress_is_shown_without_a_terminal_or_for_remote_output(tmp_path, terminal, output):
    shown = io.StringIO()
    with show_progress(output or str(tmp_path), ["train"], False, Console(file=shown, force_terminal=terminal)):
        pass
    assert shown.getvalue() == ""


def test_a_pipe_is_no_terminal_also_in_jupyter(tmp_path, monkeypatch):
    # As in the processes that a notebook starts.
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = io.StringIO()
    with show_progress(str(tmp_path), ["train"], False, create_console(shown)):
        pass
    assert shown.getvalue() == ""


def test_a_terminal_shows_the_finished_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(pipelines.shard_progress, "POLL_SECONDS", 0.01)
    shown = io.StringIO()
    with show_progress(str(tmp_path), ["train"], False, Console(file=shown, force_terminal=True, width=100)):
        (tmp_path / "train/.parts").mkdir(parents=True)
        (tmp_path / "train/view00-00002-of-00004.tfrecord").write_bytes(b"x" * 3_000_000)
        (tmp_path / "train/.parts/00002-of-00004.json").write_text("{}")
        deadline = time.monotonic() + 10
        while "shard 1 of 4" not in shown.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert "reading annotations" in shown.getvalue()
    assert "shard 1 of 4" in shown.getvalue()
    assert "3 MB" in shown.getvalue()


def test_the_counters_of_the_runner_equal_those_of_the_manifest(tmp_path):
    images = labeled_images(12)
    images["image_00001"] = [("a", 5, 5, 30, 30), ("a", 9, 9, 9, 30), ("b", 100, 100, 120, 120)]
    source = make_voc(tmp_path / "voc", images)
    (source / "JPEGImages/image_00003.jpg").write_bytes(b"broken")
    job = PrepareJob(
        "voc",
        (Source((str(source),), output_split="train"),),
        str(tmp_path / "out"),
        2,
        ClassRules(),
        1.0,
        SMALL,
    )
    options = PipelineOptions([])
    pipeline = job_module.beam.Pipeline(runner=make_runner(options), options=options)
    job_module.build_pipeline(pipeline, job)
    result = pipeline.run()
    result.wait_until_finish()
    found = result.metrics().query()
    counters = {counter.key.metric.name: counter.result for counter in found["counters"]}
    distributions = {entry.key.metric.name: entry.result for entry in found["distributions"]}
    split = job_module.read_manifest(job.output).splits["train"]
    expected = {
        "images_read": 12, "images_written": 11, "images_rejected": 1, "images_rejected_unreadable": 1,
        "boxes_read": split.boxes_read, "boxes_written": split.boxes, "boxes_rejected": split.boxes_read - split.boxes,
        "boxes_rejected_zero_area": 1, "boxes_rejected_outside": 1,
    }  # fmt: skip
    assert {name: value for name, value in counters.items() if name in expected} == expected
    assert split.rejected_boxes == {"image_rejected": 3, "outside": 1, "zero_area": 1}
    # Each of the 11 valid images is decoded once and encoded twice, once per augmented copy.
    assert (distributions["decode_microseconds"].count, distributions["encode_microseconds"].count) == (11, 22)
    positives = distributions["positives_per_object"]
    histograms = [view.positives_per_object.histogram for view in split.views]
    assert positives.count == sum(sum(histogram.values()) for histogram in histograms)
    assert positives.sum == sum(number * objects for histogram in histograms for number, objects in histogram.items())
