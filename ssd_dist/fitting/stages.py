"""Runs the stages of `ssd-fit` in order, each as a process of its own: the same programs that a user would run.

    survey -> choose -> prepare -> train -> evaluate -> export, once per format -> summary

The file that a stage writes last shows that the stage is finished, so the same command resumes at the stage that was
interrupted, and training resumes at its last checkpoint. This module imports neither TensorFlow nor Beam.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ssd_dist.core.config import QuantizationConfig
from ssd_dist.core.config_files import load_config
from ssd_dist.core.errors import (
    ERROR_FILE_VARIABLE,
    INTERRUPTED,
    RestartError,
    SsdDistError,
    UsageError,
    read_error_file,
)
from ssd_dist.core.extras import check_installed
from ssd_dist.core.folder_names import check_folder_name
from ssd_dist.core.manifest import MANIFEST_NAME, TRAIN_SPLIT, Manifest
from ssd_dist.core.printable import print_line
from ssd_dist.export.export_options import KINDS
from ssd_dist.fitting.fit_lock import lock_fit_folder
from ssd_dist.fitting.run_files import FitFiles, FitRequest

# Flags that errors of ssd-prepare recommend.
PREPARE_FLAGS = {
    "image_dir", "input_format", "split", "source_split", "split_by", "classes", "exclude_classes", "shards",
    "max_rejected_fraction",
}  # fmt: skip
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_stages(request: FitRequest, output: str, formats: Sequence[str]) -> FitFiles:
    """Runs all stages that are not finished yet, and returns the files of the run.

    Args:
      request: the dataset, the settings of the user, and the time limit.
      output: the run folder.
      formats: the formats to export.

    Raises:
      UsageError: if a format or a setting is not valid, or the folder has a run with another request or another
        process that works in it.
      RestartError: if a stage was interrupted; the same call resumes it.
      SsdDistError: if a stage failed; the error is that of the stage.
    """
    check_folder_name(output, "output")
    check_formats(formats)
    trained = load_config(request.config, request.overrides).quantization
    if trained.aware and set(formats) - {"tflite"}:
        raise UsageError(
            f"--export={','.join(formats)}: with quantization.aware the detector is trained for int8 TFLite files; use "
            "--export=tflite"
        )
    files = FitFiles(Path(output))
    with lock_fit_folder(files.folder), handle_signals(stop_between_stages):
        request.write_or_compare(files)
        prepare_data(request, files)
        train_and_evaluate(files)
        export_formats(files, formats, trained)
    return files


def check_formats(formats: Sequence[str]) -> None:
    """Checks the formats and their packages before training, which takes long.

    Raises:
      UsageError: if a format does not exist, or its package is not installed.
    """
    for kind in formats:
        if kind not in KINDS:
            raise UsageError(f"--export={kind}: unknown format; allowed: {', '.join(KINDS)}")
    packages = {"onnx": ("tf2onnx", "onnxruntime"), "openvino": ("openvino",)}
    check_installed("apache_beam", "tensorflow", *(name for kind in formats for name in packages.get(kind, ())))


def prepare_data(request: FitRequest, files: FitFiles) -> None:
    """Makes the choices, unless the run has its config already, and writes the shards."""
    source = f"--input={request.input}"
    shards = f"--output={files.manifest.parent}"
    if not files.config.exists():
        if read_json(files.survey) is None:
            run_stage("survey", "pipelines.prepare", source, shards, f"--survey={files.survey}", is_quiet=True)
        try:
            run_stage("choose", "ssd_dist.fitting.choose", f"--output={files.folder}", is_quiet=True)
        except RestartError:
            raise
        except SsdDistError:
            # The user may correct the dataset before the next start.
            files.survey.unlink(missing_ok=True)
            raise
    for choice in read_json(files.choices) or []:
        print_line(f"  {choice['key']} = {choice['value']}: {choice['reason']}")
    if read_json(files.manifest) is None:
        run_stage("prepare", "pipelines.prepare", source, shards, f"--config={files.config}", "--resume")


def train_and_evaluate(files: FitFiles) -> None:
    """Trains to the last step and evaluates the best checkpoint on the test split, or else on the validation split."""
    if read_json(files.metrics) is not None:
        return
    if not (files.folder / MANIFEST_NAME).exists():
        # A folder with a config and a manifest is a run, which ssd-train resumes with this config only.
        shutil.copy(files.manifest, files.folder / MANIFEST_NAME)
    run_dir = f"--model_dir={files.folder}"
    # The table at the end of this command replaces that of the trainer.
    run_stage("train", "ssd_dist.cli.train", f"--config={files.config}", run_dir, "--nosummary")
    run_stage(
        "evaluate", "ssd_dist.cli.evaluate", run_dir, f"--split={pick_split(files)}", f"--output={files.metrics}",
        f"--checkpoint={pick_checkpoint(files)}", f"--pictures={files.folder / 'predictions.png'}",
    )  # fmt: skip


def export_formats(files: FitFiles, formats: Sequence[str], trained: QuantizationConfig) -> None:
    """Exports the model to each format that is not exported yet; in int8 if it was trained for it."""
    quantize = ["--quantize=int8", f"--per_tensor={trained.per_tensor}"] if trained.aware else []
    for kind in formats:
        summary = read_json(files.export(kind))
        if summary is None or not summary.get("accepted", True):
            run_stage(
                f"export to {kind}", "ssd_dist.cli.export", f"--model_dir={files.folder}", f"--format={kind}",
                f"--checkpoint={pick_checkpoint(files)}", f"--output={files.export(kind).parent}",
                *quantize,
            )  # fmt: skip


def pick_split(files: FitFiles) -> str:
    """Returns the split of the final evaluation: test if there is one, else val, else another, else train."""
    splits = Manifest.from_json(files.manifest.read_bytes(), str(files.manifest)).splits
    others = [name for name in splits if name != TRAIN_SPLIT]
    return next((name for name in ("test", "val", *others) if name in splits), TRAIN_SPLIT)


def pick_checkpoint(files: FitFiles) -> str:
    """Returns `best`, or `last` if training did not evaluate."""
    return "best" if (files.folder / "best/best.json").exists() else "last"


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file; None if it is missing or was not completely written."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def run_stage(title: str, module: str, *arguments: str, is_quiet: bool = False) -> None:
    """Runs a program of this package as a process and waits for its end; passes signals on to it.

    Args:
      title: name of the stage, for messages.
      module: the module to run, as with `python -m`.
      arguments: the flags.
      is_quiet: discards what the program prints, except errors.

    Raises:
      RestartError: if it was interrupted.
      SsdDistError: the error of the program, with the title before the message; if the program ended with a traceback,
        an error with its exit code.
    """
    print_line(f"--- {title}")
    with tempfile.TemporaryDirectory() as folder:
        error_file = Path(folder) / "error.json"
        # -P: a package in the current folder must not replace one of ours, or one that we need.
        code, stopped = run_process([sys.executable, "-P", "-m", module, *arguments], error_file, is_quiet)
        error = read_error_file(error_file, title)
        if stopped and error is None:
            raise RestartError(f"{title}: interrupted; run the same command again to resume")
        if code:
            raise add_way_out(error) if error else describe_crash(title, code)


def add_way_out(error: SsdDistError) -> SsdDistError:
    """Returns the error; if it names a flag that only `ssd-prepare` has, with what the user of `ssd-fit` can do."""
    if not PREPARE_FLAGS & set(re.findall(r"(?<![\w/-])--([a-z_]+)", str(error))):
        return error
    return type(error)(f"{error} (ssd-fit has no such flag: change the dataset, or use ssd-prepare and ssd-train)")


def describe_crash(title: str, code: int) -> SsdDistError:
    """Returns the error for a stage that ended without an error of its own; `code` is below 0 after a signal."""
    if code == -signal.SIGKILL:
        fix = "end other programs"
        if title == "train":
            fix += ", or lower train.global_batch_size or model.input_size in another --output"
        return UsageError(f"{title}: killed by SIGKILL, which the system sends if memory is exhausted; {fix}")
    if code < 0:
        return SsdDistError(f"{title}: killed by {signal.Signals(-code).name}; read the output above")
    error = SsdDistError(f"{title}: failed with exit code {code}; read the output above")
    error.exit_code = code
    return error


def run_process(command: Sequence[str], error_file: Path, is_quiet: bool) -> tuple[int, bool]:
    """Runs a command, and passes signals on to it; returns its exit code and whether it was interrupted."""
    output = subprocess.DEVNULL if is_quiet else None
    environment = os.environ | {ERROR_FILE_VARIABLE: str(error_file)}
    root = Path(__file__).parents[2]
    if root.name not in ("site-packages", "dist-packages"):
        # A checkout: its own packages, whatever is installed.
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    received: list[int] = []
    running: list[subprocess.Popen[bytes]] = []

    def forward(number: int, _: FrameType | None) -> None:
        received.append(number)
        for stage in running:
            stage.send_signal(number)

    # In a process group of its own, so that Ctrl-C in a terminal arrives once, through `forward`.
    with (
        handle_signals(forward),
        subprocess.Popen(command, stdout=output, env=environment, process_group=0) as process,
    ):
        running.append(process)
        # Those that arrived while the process was being created.
        for number in received:
            process.send_signal(number)
        code = process.wait()
    stopped = (RestartError.exit_code, INTERRUPTED, *(-number for number in STOP_SIGNALS))
    return code, bool(received) or code in stopped


@contextmanager
def handle_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handles signals to stop in this context; only the main thread of a program can do so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # nohup makes a program ignore SIGHUP; keep that.
    numbers = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def stop_between_stages(number: int, _: FrameType | None) -> None:
    """Ends the command after a signal that arrives while no stage runs."""
    raise RestartError(f"stopped by {signal.Signals(number).name}; run the same command again to resume")


def absolute(path: str) -> str:
    """Returns a local path as an absolute one, so that a run can be resumed from another folder."""
    return path if "://" in path else os.path.abspath(path)
