"""Compares exports: latency, peak memory, size and AP of each, for `ssd-benchmark`.

export folders -> export.json -> latency.py, one process per export -> AP on prepared data -> table and JSON
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssd_dist.core.config_files import format_override
from ssd_dist.core.errors import CheckpointError
from ssd_dist.core.folder_names import SUMMARY_NAME
from ssd_dist.core.printable import make_printable
from ssd_dist.export.export_folder import find_export_folder, read_input_size
from ssd_dist.export.runtimes import FILES, list_files

METRICS = ("coco/AP", "coco/AP50")


def find_exports(folders: Sequence[str]) -> list[Path]:
    """Returns the exports in folders, at any depth, and those that contain the given files, sorted by path.

    Raises:
      CheckpointError: if a folder contains none.
    """
    found: set[Path] = set()
    for folder in folders:
        own = find_export_folder(folder) if os.path.isfile(folder) else None
        exports = {own} if own else {path.parent for path in Path(folder).rglob(SUMMARY_NAME)}
        if not exports:
            raise CheckpointError(f"{folder}: contains no export; create one with ssd-export")
        found |= exports
    return sorted(found)


def benchmark_exports(
    exports: Sequence[Path], runs: int, threads: int | None, data: str | None, split: str
) -> dict[str, Any]:
    """Measures exports one after another.

    Args:
      exports: the export folders.
      runs: images per export.
      threads: threads of one operation; None for the number of processors.
      data: prepared data for the images and for AP; None for images of noise, and no AP.
      split: the split of the data.

    Returns:
      `machine`, and for each export its options, `bytes`, the measurements of `latency.measure_export`, and AP.

    Raises:
      CheckpointError: if an export cannot be opened, or its classes differ from the data's.
      DataError: if the data is missing, has no such split, or its image size differs from an export's.
    """
    threads = threads or os.cpu_count() or 1
    rows = [_describe_export(folder) for folder in exports]
    if data:
        for folder, row in zip(exports, rows, strict=True):
            _check_size(folder, row["size"], data)
    for folder, row in zip(exports, rows, strict=True):
        size = row.pop("size")
        images = _read_images(data, split, runs) if data else _draw_noise(size, runs)
        row |= _measure(folder, images, threads)
        if data:
            row |= _evaluate(folder, data, split)
    machine = {"system": platform.platform(), "processor": _find_processor(), "processors": os.cpu_count()}
    return {"machine": machine, "threads": threads, "runs": runs, "exports": rows}


def _describe_export(folder: Path) -> dict[str, Any]:
    try:
        summary = json.loads((folder / SUMMARY_NAME).read_text())
        kind = summary["format"]
        size = sum(file.stat().st_size for file in list_files(folder / FILES[kind]))
        return {
            "export": str(folder),
            "format": kind,
            "quantize": summary["quantize"],
            "outputs": summary["outputs"],
            "bytes": size,
            "size": read_input_size(summary),
        }
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise CheckpointError(f"{folder}: the export is damaged ({error}); export it again with ssd-export") from None


def _check_size(folder: Path, size: int, data: str) -> None:
    from ssd_dist.core.config_files import load_config
    from ssd_dist.data.shard_files import load_manifest
    from ssd_dist.export.exported_detector import check_image_size

    config = load_config(None, _data_overrides(data)).data
    check_image_size(str(folder), size, load_manifest(config), config.dir)


def _read_images(data: str, split: str, count: int) -> np.ndarray:
    from ssd_dist.core.config_files import load_config
    from ssd_dist.data.shard_files import load_manifest
    from ssd_dist.export.exporter import read_images

    config = load_config(None, _data_overrides(data)).data
    pixels = [image for _, image in read_images(config, load_manifest(config), split, count)]
    return np.stack(pixels * -(-count // len(pixels)))[:count]


def _draw_noise(size: int, count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, [count, size, size, 3], np.uint8)


def _measure(folder: Path, images: np.ndarray, threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "images.npy")
        np.save(path, images)
        command = [sys.executable, "-m", "ssd_dist.export.latency", folder, path, threads]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise CheckpointError(f"{folder}: cannot be run: {reason}; export it again, or install the extra of its format")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _evaluate(folder: Path, data: str, split: str) -> dict[str, float | None]:
    # TensorFlow takes seconds to import, and only this needs it.
    from ssd_dist.evaluation.metrics import evaluate_detections
    from ssd_dist.export.exported_detector import evaluate_export

    _, manifest, ground_truths, detections = evaluate_export(str(folder), "", split, _data_overrides(data))
    metrics = evaluate_detections(ground_truths, detections, manifest.classes).as_dict()
    return {name: metrics[name] for name in METRICS}


def _data_overrides(data: str) -> list[str]:
    return [format_override("data.dir", data)]


def _find_processor() -> str:
    """Returns the name of the processor, or its architecture where the system does not state the name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def print_benchmark(results: dict[str, Any]) -> None:
    """Prints the results as a table."""
    machine = results["machine"]
    title = f"{results['threads']} threads, {results['runs']} images, {machine['processor']}"
    table = Table(title=Text(make_printable(title), style="bold"), title_justify="left")
    for name in ("export", "runtime", "weights", "outputs"):
        table.add_column(name, no_wrap=True)
    for name in ("MB", "p50 ms", "p95 ms", "peak MiB", "AP"):
        table.add_column(name, justify="right")
    paths = [row["export"] for row in results["exports"]]
    common = os.path.commonpath(map(os.path.abspath, paths)) if len(paths) > 1 else os.path.dirname(paths[0])
    for row in results["exports"]:
        weights = {"none": "float32"}.get(row["quantize"], row["quantize"])
        values = (row[name] for name in ("p50_ms", "p95_ms"))
        ap = "-" if row.get("coco/AP") is None else f"{row['coco/AP']:.3f}"
        table.add_row(
            Text(make_printable(os.path.relpath(row["export"], common))), row["runtime"], weights, row["outputs"],
            f"{row['bytes'] / 1e6:.1f}", *(f"{value:.1f}" for value in values), f"{row['peak_mib']:.0f}", ap,
        )  # fmt: skip
    # In a file, names are not cut.
    Console(highlight=False, width=None if sys.stdout.isatty() else 140).print(table)
