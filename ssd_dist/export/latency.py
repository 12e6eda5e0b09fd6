"""Measures one export, alone in its process: `python -m ssd_dist.export.latency EXPORT IMAGES.npy THREADS`.

Prints the measurements as one line of JSON. The process imports only the runtime of the export, so its peak memory is
what a program with this export needs.
"""

import json
import sys
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ssd_dist.core.folder_names import SUMMARY_NAME
from ssd_dist.export.runtimes import FILES, open_export

# Runs that are not measured: the first ones allocate memory.
WARM_UP_RUNS = 5


def measure_export(folder: Path, images: np.ndarray, threads: int) -> dict[str, Any]:
    """Runs an export on images, one at a time.

    Args:
      folder: the export.
      images: uint8 [N, S, S, 3].
      threads: threads of one operation.

    Returns:
      `runtime` and its `version`, `load_seconds`, the percentiles `p50_ms` and `p95_ms` of the time per image, and
      `peak_mib`, the largest memory of this process.
    """
    kind = json.loads((folder / SUMMARY_NAME).read_text())["format"]
    litert = find_spec("ai_edge_litert") is not None
    packages = {"tflite": "ai-edge-litert" if litert else "tensorflow", "onnx": "onnxruntime", "openvino": "openvino"}
    runtime = packages.get(kind, "tensorflow")
    started = time.perf_counter()
    run = open_export(kind, folder / FILES[kind], threads, litert)
    load_seconds = time.perf_counter() - started
    for index in range(WARM_UP_RUNS):
        run(images[index % len(images)][None])
    seconds = []
    for image in images:
        started = time.perf_counter()
        run(image[None])
        seconds.append(time.perf_counter() - started)
    p50, p95 = np.percentile(seconds, [50, 95])
    return {
        "runtime": runtime,
        "version": metadata.version(runtime),
        "load_seconds": load_seconds,
        "p50_ms": 1e3 * float(p50),
        "p95_ms": 1e3 * float(p95),
        "peak_mib": _read_peak_memory(),
    }


def _read_peak_memory() -> float:
    """Returns the largest resident memory of this process in MiB.

    `getrusage` is not used: on Linux it includes the memory of the process that started this one.
    """
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    print(json.dumps(measure_export(Path(sys.argv[1]), np.load(sys.argv[2]), int(sys.argv[3]))))
