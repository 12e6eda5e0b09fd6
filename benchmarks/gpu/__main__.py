"""Measures what only a GPU can show, block by block; `--tiny` runs the same code on a CPU, to find mistakes early.

    python -m benchmarks.gpu BLOCK --data=SHARDS --output=DIR [--seconds=120] [--tiny]

    probe      does it run: steps in float32, float16 and bfloat16, each twice; are the bits equal?
    placement  the operations of the step that run on the CPU
    speed      steps against bare forward and backward passes: batch sizes, precisions, XLA
    parts      loss and mining, and the optimizer with EMA, as shares of the step
    input      images per second of the input pipeline, and what the step loses by it
    layouts    one loss curve on 1, 2 and 4 logical devices of one GPU
    overflow   an infinite gradient on one of two logical devices: both skip the step
    accuracy   complete trainings of CONFIG in float32 and float16, two seeds each: AP and minutes

Use `python -m benchmarks.torchvision_ssd` for other SSD trainers on the same GPU.

Each block is a process of its own and writes DIR/BLOCK.json after each row, so that an error or a time limit loses only
the rows that would follow.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow as tf

from benchmarks.gpu.correctness import accuracy, log_placement, placement, probe
from benchmarks.gpu.replicas import layouts, overflow
from benchmarks.gpu.setup import Row, Setup
from benchmarks.gpu.speed import feed, parts, speed

BLOCKS: dict[str, Callable[[Setup], Iterator[Row]]] = {
    "probe": probe, "placement": placement, "log_placement": log_placement, "speed": speed, "parts": parts,
    "input": feed, "layouts": layouts, "overflow": overflow, "accuracy": accuracy,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("block", choices=BLOCKS)
    parser.add_argument("--data", required=True, help="folder of prepared shards")
    parser.add_argument("--config", default="base")
    parser.add_argument("--output", default=os.environ.get("OUT", "."), type=Path)
    parser.add_argument("--seconds", type=float, default=120, help="speed, input and layouts begin no row later")
    parser.add_argument("--tiny", action="store_true", help="few steps of a small network")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    setup = Setup(arguments.data, arguments.config, arguments.tiny, time.monotonic() + arguments.seconds)
    gpus = tf.config.list_physical_devices("GPU")
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name") if gpus else "CPU"
    rows: list[Row] = []
    for row in BLOCKS[arguments.block](setup):
        rows.append(row)
        print({name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}, flush=True)
        document = {"block": arguments.block, "device": name, "tiny": arguments.tiny, "rows": rows}
        (arguments.output / f"{arguments.block}.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
