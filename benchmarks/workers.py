"""Compares two workers, pinned to one core each, with two processes that do not communicate, pinned the same way.

The difference is the cost of the all-reduce and of waiting for the other worker. Width 1.0, 300 x 300 pixels, eight
images per worker and step.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from benchmarks.collectives import find_free_ports
from benchmarks.rows import Row, run_benchmark
from benchmarks.shards import generated_shards

ROOT = Path(__file__).parents[1]
IMAGES = 8
STEPS = 12
# The speed of a process is constant, but differs by up to a fifth between processes, so the median of several counts.
ROUNDS = 5
# The first log lines include tracing and warm-up.
SKIPPED = 2


def measure() -> list[Row]:
    with generated_shards() as (folder, _):
        together, apart = [], []
        for number in range(ROUNDS):
            together += measure_rates(folder, f"together{number}", communicate=True)
            apart += measure_rates(folder, f"apart{number}", communicate=False)
    ours, reference = median(together) / 2, median(apart)
    return [
        Row("two workers, one core each", "img/s per worker", ours, reference, "two processes without communication")
    ]


def measure_rates(folder: Path, name: str, communicate: bool, *overrides: str) -> list[float]:
    """Returns images per second of two processes, one value per log line; of each one if they do not communicate."""
    ports = find_free_ports(2)
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    workers = []
    for index in range(2):
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
        if communicate:
            environment["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        run = folder / (name if communicate else f"{name}_{index}")
        batch = 2 * IMAGES if communicate else IMAGES
        flags = [
            f"--config={folder / 'bench.yaml'}", f"--model_dir={run}", f"--set=data.dir={folder / 'data'}",
            f"--set=train.global_batch_size={batch}", f"--set=train.steps={STEPS}", "--set=train.log_every=2",
            "--set=backbone.weights=none", "--set=eval.every_epochs=0", "--set=checkpoint.every_steps=0",
            "--noreport", *(f"--set={override}" for override in overrides),
        ]  # fmt: skip
        workers.append(
            subprocess.Popen(
                ["taskset", "--cpu-list", str(index), sys.executable, "-m", "ssd_dist.cli.train", *flags],
                cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
        )  # fmt: skip
    codes = [worker.wait(timeout=400) for worker in workers]
    if any(codes):
        raise RuntimeError(f"run {name!r}: a worker failed")
    runs = [folder / name] if communicate else [folder / f"{name}_{index}" for index in range(2)]
    return [rate for run in runs for rate in _read_rates(run)[SKIPPED:]]


def _read_rates(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["images_per_second"] for row in rows if row["kind"] == "train"]


if __name__ == "__main__":
    run_benchmark(measure, __doc__)
