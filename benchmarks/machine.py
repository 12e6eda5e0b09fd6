"""Measures the machine (`make bench` prints it first), since the speed of machines differs by a factor of ten.

python -m benchmarks.machine
"""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

SIDE = 3000
COPIED_BYTES = 400_000_000
ROUNDS = 5
# From the widest to the narrowest registers; the first one that the processor has is printed.
INSTRUCTION_SETS = {"avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX", "asimd": "NEON"}


def describe_machine() -> dict[str, str | int | float]:
    """Returns processor, cores and instruction set, and the best speeds of a matrix product and a copy in memory.

    The product of two float32 matrices and the copy use all cores that this process may use, as far as NumPy does: it
    copies on one core.
    """
    return {
        "processor": name_processor(),
        "cores": len(os.sched_getaffinity(0)),
        "matrix product, GFLOP/s": round(measure_product()),
        "memory copy, GB/s": round(measure_copy(), 1),
    }


def name_processor() -> str:
    """Returns the name and the instruction set of the processor, as Linux reports them."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    # ARM processors have "Features" and no name.
    flags = fields.get("flags", fields.get("Features", "")).split()
    instruction_set = next((name for flag, name in INSTRUCTION_SETS.items() if flag in flags), "unknown instructions")
    return f"{fields.get('model name', platform.machine())}, {instruction_set}"


def measure_product() -> float:
    """Returns 10^9 float32 operations per second of a matrix product, the best of some rounds."""
    left, right = (np.random.default_rng(seed).random((SIDE, SIDE), np.float32) for seed in (0, 1))
    return 2e-9 * SIDE**3 / min(time_once(lambda: left @ right) for _ in range(ROUNDS))


def measure_copy() -> float:
    """Returns 10^9 bytes per second that a copy reads and writes, the best of some rounds."""
    source, target = np.ones(COPIED_BYTES, np.uint8), np.ones(COPIED_BYTES, np.uint8)
    return 2e-9 * COPIED_BYTES / min(time_once(lambda: np.copyto(target, source)) for _ in range(ROUNDS))


def time_once(function: Callable[[], object]) -> float:
    """Returns the seconds of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def print_machine() -> None:
    """Prints one line."""
    print("; ".join(f"{name}: {value}" for name, value in describe_machine().items()), flush=True)


if __name__ == "__main__":
    print_machine()
