"""Tests that the output depends only on input and flags: every runner and every resumed job writes the same bytes."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from raw_sets import ROOT, digests, labeled_images, make_voc

from pipelines import manifest_writer, shards
from pipelines.runners import explain_failure
from ssd_dist.core.config import Config
from ssd_dist.core.errors import DataError, RestartError

IMAGES = labeled_images(60)
SMALL = Config.model_validate({"model": {"input_size": 64}, "data": {"views": 2}})
LARGER = Config.model_validate({"data": {"views": 3}})


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = make_voc(tmp_path_factory.mktemp("runners") / "voc", IMAGES)
    (folder / "JPEGImages/image_00007.jpg").write_bytes(b"broken")
    return folder


@pytest.fixture(scope="module")
def reference(source, prepare, tmp_path_factory):
    """Returns the digests of the files that a run in this process writes, by relative path."""
    output = tmp_path_factory.mktemp("reference")
    prepare("voc", source, output, config=SMALL)
    return digests(output)


def test_a_second_run_writes_the_same_bytes(source, prepare, reference, tmp_path):
    prepare("voc", source, tmp_path, config=SMALL)
    assert digests(tmp_path) == reference
    prepare("voc", source, tmp_path, config=SMALL)
    assert digests(tmp_path) == reference


@pytest.mark.parametrize(
    "text",
    [
        # The forms in which the runner in this process, that of worker processes, and other runners raise it.
        "{} [while running 'Read/Parse']",
        "Traceback\n  raise DataError(\"a\")\nssd_dist.core.errors.DataError: {} [while running 'Read/Parse']\n",
        "Workflow failed.\nDataError: an earlier one [while running 'x']\nDataError: {} [while running 'Read/Parse']",
    ],
)
def test_a_message_of_several_lines_arrives_whole(text):
    message = "a.xml: class 'a\\nb' is\nunknown; fix it"
    kind = RuntimeError if "DataError" in text else DataError
    assert str(explain_failure(kind(text.format(message)))) == message


def test_without_the_step_the_message_ends_with_its_line():
    assert str(explain_failure(RuntimeError("DataError: a is broken; fix it\n  at line 3"))) == "a is broken; fix it"
    assert explain_failure(RuntimeError("another error")) is None


def test_a_store_that_does_not_answer_is_reported():
    # As google-api-core raises it while Beam stages the files of a Dataflow job.
    error = type("RetryError", (Exception,), {})("Timeout of 120.0s exceeded, last exception: no route")
    found = explain_failure(error)
    assert isinstance(found, DataError)
    assert str(found).startswith(
        "the store or the service of the runner does not answer (RetryError: Timeout of 120.0s"
    )


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
def test_worker_processes_write_the_same_bytes(source, prepare, reference, tmp_path, workers):
    prepare("voc", source, tmp_path, config=SMALL, workers=workers)
    assert digests(tmp_path) == reference


@pytest.fixture
def cluster(tmp_path):
    """Starts a Dask scheduler and two workers, each in its own process; yields the address of the scheduler."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    file = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment, "cwd": tmp_path}
    options = ["--scheduler-file", str(file)]
    processes = []
    try:
        processes.append(subprocess.Popen([*dask, "scheduler", "--no-dashboard", "--port", "0", *options], **quiet))
        worker = [*dask, "worker", "--no-dashboard", "--nthreads", "1", *options]
        processes += [subprocess.Popen(worker, **quiet) for _ in range(2)]
        deadline = time.monotonic() + 60
        while not file.exists():
            assert time.monotonic() < deadline, "Dask's scheduler did not start within 60 s"
            time.sleep(0.2)
        yield json.loads(file.read_text())["address"]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)


@pytest.mark.slow
def test_a_dask_cluster_writes_the_same_bytes(source, prepare, reference, tmp_path, cluster):
    options = ["--runner=DaskRunner", f"--dask_client_address={cluster}", "--dask_npartitions=8"]
    prepare("voc", source, tmp_path / "out", config=SMALL, options=options)
    assert digests(tmp_path / "out") == reference


@pytest.fixture
def job_service(tmp_path):
    """Starts Beam's job service and a pool of workers in processes of their own; yields the options that use them."""
    scripts = Path(sys.executable).parent
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment, "cwd": tmp_path}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        pool_port = free.getsockname()[1]
    file = tmp_path / "job_service.port"
    modules = {
        "runners.portability.local_job_service_main": [f"--port_file={file}", f"--staging_dir={tmp_path / 'staging'}"],
        "runners.worker.worker_pool_main": [f"--service_port={pool_port}"],
    }
    processes = [
        subprocess.Popen([sys.executable, "-m", f"apache_beam.{module}", *flags], **quiet, start_new_session=True)
        for module, flags in modules.items()
    ]
    try:
        deadline = time.monotonic() + 120
        while not (file.exists() and file.read_text()):
            assert time.monotonic() < deadline, "Beam's job service did not start within 120 s"
            time.sleep(0.2)
        yield [
            "--runner=PortableRunner", f"--job_endpoint=localhost:{file.read_text()}",
            "--environment_type=EXTERNAL", f"--environment_config=localhost:{pool_port}",
        ]  # fmt: skip
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


@pytest.mark.slow
def test_a_portable_job_service_with_external_workers_writes_the_same_bytes(
    source, prepare, reference, tmp_path, job_service
):
    # The interface of Flink and Spark: the job, its files and its elements travel between processes over gRPC.
    prepare("voc", source, tmp_path / "out", config=SMALL, options=job_service)
    assert digests(tmp_path / "out") == reference


def test_resume_keeps_finished_shards_and_writes_the_others(source, prepare, tmp_path):
    manifest = prepare("voc", source, tmp_path, config=SMALL, shards=6)
    reference = digests(tmp_path)
    shards = [shard.file for view in manifest.splits["train"].views for shard in view.shards]
    # The state after a killed run: no manifest, one shard missing, one truncated, a report missing, a temporary file.
    (tmp_path / "dataset.json").unlink()
    (tmp_path / shards[0]).unlink()
    (tmp_path / shards[1]).write_bytes((tmp_path / shards[1]).read_bytes()[:-1])
    reports = sorted((tmp_path / "train/.parts").glob("*-of-*.json"))
    reports[2].unlink()
    (tmp_path / "train/.view00-00000-of-00002.tfrecord.tmp-abc").write_bytes(b"half")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "train").glob("*00003-of-*.tfrecord")}
    assert kept
    prepare("voc", source, tmp_path, config=SMALL, shards=6, resume=True)
    assert digests(tmp_path) == reference
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_resume_continues_the_stopped_run_and_not_an_earlier_one(prepare, tmp_path, monkeypatch):
    source = make_voc(tmp_path / "voc", IMAGES)
    image = source / "JPEGImages/image_00007.jpg"
    good = image.read_bytes()
    image.write_bytes(b"broken")
    assert prepare("voc", source, tmp_path / "out", config=SMALL).splits["train"].images == len(IMAGES) - 1
    image.write_bytes(good)

    def stop(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("apache_beam.Pipeline.run", stop)
        with pytest.raises(RestartError, match="--resume"):
            prepare("voc", source, tmp_path / "out", config=SMALL)
    assert prepare("voc", source, tmp_path / "out", config=SMALL, resume=True).splits["train"].images == len(IMAGES)


def test_splits_that_finish_at_the_same_time_are_both_in_the_manifest(prepare, tmp_path, monkeypatch):
    source = make_voc(tmp_path / "voc", IMAGES, {"train": sorted(IMAGES)[:30], "val": sorted(IMAGES)[30:]})
    out = tmp_path / "out"
    train = prepare("voc", source, out, config=SMALL)
    (out / "dataset.json").unlink()
    parts = [str(path.relative_to(out)) for path in sorted((out / "train/.parts").glob("*-of-*.json"))]
    job = manifest_writer.ManifestJob(str(out), SMALL, 1.0)
    writers = []

    def read_while_another_writes(output):
        """On the first call, which is val's, also starts to write train's manifest entry; the lock must delay it."""
        monkeypatch.setattr(manifest_writer, "read_manifest", read)
        before = read(output)
        reports = [("train", str(out / part)) for part in parts]
        writers.append(threading.Thread(target=manifest_writer.write_manifest, args=(reports, job)))
        writers[0].start()
        writers[0].join(2)
        return before

    read = manifest_writer.read_manifest
    monkeypatch.setattr(manifest_writer, "read_manifest", read_while_another_writes)
    prepare("voc", source, out, "val", config=SMALL)
    writers[0].join(20)
    manifest = read(str(out))
    assert sorted(manifest.splits) == ["train", "val"]
    assert manifest.splits["train"] == train.splits["train"]


def test_resume_rewrites_shards_whose_annotations_changed(prepare, tmp_path):
    changed = make_voc(tmp_path / "voc", {**IMAGES, "image_00001": [("c", 1, 1, 40, 60)]})
    prepare("voc", changed, tmp_path / "out", config=SMALL)
    make_voc(tmp_path / "voc", IMAGES)
    prepare("voc", changed, tmp_path / "out", config=SMALL, resume=True)
    fresh = prepare("voc", changed, tmp_path / "fresh", config=SMALL)
    resumed = {name: digest for name, digest in digests(tmp_path / "out").items() if name.endswith(".tfrecord")}
    assert resumed == {name: digests(tmp_path / "fresh")[name] for name in resumed}
    assert fresh.splits["train"].boxes > 0


def test_resume_rewrites_a_shard_that_was_replaced_without_a_report(prepare, tmp_path, monkeypatch):
    """The labels are changed, a resumed job dies between a shard and its report, and the labels are changed back."""
    # Shards of the same sizes: only the classes are exchanged.
    labels, exchanged = (
        {name: [(order[index % 2], 1, 1, 40, 60)] for index, name in enumerate(IMAGES)} for order in ("ab", "ba")
    )
    source = make_voc(tmp_path / "voc", labels)
    prepare("voc", source, tmp_path / "out", config=SMALL)
    reference = digests(tmp_path / "out")
    make_voc(tmp_path / "voc", exchanged)
    write_shard = shards.write_shard

    def die_after(*arguments):
        write_shard(*arguments)
        raise RuntimeError("died")

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_shard", die_after)
        with pytest.raises(RuntimeError, match="died"):
            prepare("voc", source, tmp_path / "out", config=SMALL, resume=True)
    make_voc(tmp_path / "voc", labels)
    prepare("voc", source, tmp_path / "out", config=SMALL, resume=True)
    assert digests(tmp_path / "out") == reference


def start_prepare(source, output, *flags):
    (output.parent / "x.yaml").write_text("data: {views: 3}\n")
    command = [
        sys.executable, "-m", "pipelines.prepare", "--input_format=voc", f"--input={source}", "--split=train",
        f"--output={output}", f"--config={output.parent / 'x.yaml'}", *flags,
    ]  # fmt: skip
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def find_workers(process):
    """Returns the ids of the worker processes, without the shells that only wait for them."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        # The process may end before its command line is read.
        with contextlib.suppress(psutil.NoSuchProcess):
            line = child.cmdline()
            if "sh" not in map(os.path.basename, line[:1]) and any("sdk_worker_main" in word for word in line):
                found.append(child.pid)
    return found


def wait_for_first_shard(job, output, workers):
    """Waits for the first shard and returns the ids of the worker processes; `workers`: whether there must be any."""
    deadline = time.monotonic() + 120
    while not list(output.glob("train/view00-*.tfrecord")):
        assert job.poll() is None, f"the job ended before its first shard: {job.communicate()[1]}"
        assert time.monotonic() < deadline, "no shard within 120 s"
        time.sleep(0.02)
    found = find_workers(job)
    assert bool(found) == workers, f"worker processes: {found}"
    return found


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["worker", "everything"])
def test_resuming_a_killed_job_gives_the_output_of_an_uninterrupted_one(tmp_path, prepare, killed):
    images = labeled_images(400)
    source = make_voc(tmp_path / "voc", images)
    output = tmp_path / "out"
    prepare("voc", source, tmp_path / "uninterrupted", config=LARGER)
    job = start_prepare(source, output, "--workers=2")
    workers = wait_for_first_shard(job, output, workers=True)
    if killed == "worker":
        os.kill(workers[-1], signal.SIGKILL)
        _, errors = job.communicate(timeout=120)
        assert job.returncode == 75, errors
        assert "Traceback" not in errors
        # The shell around the worker prints "Killed".
        assert len(errors.splitlines()) <= 2
        assert "--resume" in errors
    else:
        os.killpg(job.pid, signal.SIGKILL)
        job.communicate(timeout=120)
    finished = sorted(path.name for path in (output / "train").glob("*.tfrecord"))
    assert finished
    assert not (output / "dataset.json").exists()
    expected = digests(tmp_path / "uninterrupted")
    assert all(digests(output)[f"train/{name}"] == expected[f"train/{name}"] for name in finished)
    prepare("voc", source, output, config=LARGER, resume=True)
    assert digests(output) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "signal_number"), [([], signal.SIGINT), (["--workers=2"], signal.SIGTERM)])
def test_a_stopped_job_recommends_resume_and_can_be_resumed(tmp_path, prepare, flags, signal_number):
    source = make_voc(tmp_path / "voc", labeled_images(300))
    output = tmp_path / "out"
    prepare("voc", source, tmp_path / "uninterrupted", config=LARGER)
    job = start_prepare(source, output, *flags)
    workers = wait_for_first_shard(job, output, workers=bool(flags))
    os.kill(job.pid, signal_number)
    _, errors = job.communicate(timeout=60)
    assert (job.returncode, len(errors.splitlines()), "--resume" in errors) == (75, 1, True), errors
    assert not [pid for pid in workers if psutil.pid_exists(pid)]
    prepare("voc", source, output, config=LARGER, resume=True)
    assert digests(output) == digests(tmp_path / "uninterrupted")


@pytest.mark.slow
def test_an_error_in_a_worker_process_is_reported_in_one_line(source, tmp_path):
    job = start_prepare(source, tmp_path / "out", "--workers=2", "--exclude_classes=a", "--max_rejected_fraction=0.1")
    output, errors = job.communicate(timeout=120)
    assert (job.returncode, output, len(errors.splitlines())) == (3, "", 1), errors
    assert "boxes were rejected" in errors


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--shards=3"], "shards"),
        (["--set", "matching.policy=one_to_one"], "matching"),
        (["--set", "data.jpeg_quality=80"], "data.jpeg_quality"),
        (["--exclude_classes=c"], "exclude_classes"),
        (["--split_by=train:0.5,val:0.5"], "split_by"),
    ],
)
def test_another_configuration_is_refused_for_the_same_folder(source, command, tmp_path, flags, word):
    (tmp_path / "x.yaml").write_text("model: {input_size: 64}\n")
    required = ["--input_format=voc", f"--input={source}", "--split=train", f"--output={tmp_path / 'out'}"]
    required.append(f"--config={tmp_path / 'x.yaml'}")
    assert command(*required)[0] == 0
    (tmp_path / "out/dataset.json").unlink()
    before = digests(tmp_path / "out")
    code, _, err = command(*required, *flags)
    assert code == 3
    assert word in err
    assert "--output" in err
    assert digests(tmp_path / "out") == before
    assert command(*required, "--resume")[0] == 0
