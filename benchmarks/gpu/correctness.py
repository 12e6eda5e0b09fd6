"""Blocks that answer whether training on the GPU is right: equal bits, placement of operations, AP in 16 bits."""

import collections
import hashlib
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import tensorflow as tf

from benchmarks.gpu.setup import POLICIES, Row, Setup, build
from ssd_dist.training.state import TrainState

# A line of TensorFlow's log of placements: "name: (Op): /job:.../device:GPU:0".
PLACEMENT = re.compile(r": \((\w+)\): \S*device:(CPU|GPU):\d+")


def probe(setup: Setup) -> Iterator[Row]:
    """Trains twice in each precision; the weights must have the same bits."""
    for policy in POLICIES:
        hashes = []
        for _ in range(2):
            started = time.perf_counter()
            built = build(setup, setup.load(setup.batches[-1], policy, f"train.log_every={setup.steps}"))
            report = built.trainer.train(tf.constant(setup.steps))
            hashes.append(hash_weights(built.state))
            yield {"policy": policy, "weights": hashes[-1], "seconds": time.perf_counter() - started, **(report or {})}
        yield {"policy": policy, "equal_bits": hashes[0] == hashes[1]}


def hash_weights(state: TrainState) -> str:
    """Returns a short hash of all weights and moving statistics."""
    digest = hashlib.sha256()
    for variable in state.model.variables:
        digest.update(variable.numpy().tobytes())
    return digest.hexdigest()[:16]


def placement(setup: Setup) -> Iterator[Row]:
    """Counts the operations of the step by device, from TensorFlow's log of a process that runs one step."""
    flags = [f"--data={setup.data}", f"--config={setup.config}", *["--tiny"] * setup.tiny]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "0", "TF_CPP_MAX_VLOG_LEVEL": "0"}
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.gpu", "log_placement", f"--output={folder}", *flags]
        output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    counts = collections.Counter(PLACEMENT.findall(output.stderr + output.stdout))
    for device in ("GPU", "CPU"):
        yield {"device": device, "operations": sum(n for (_, where), n in counts.items() if where == device)}
    for (op, device), number in counts.most_common():
        if device == "CPU":
            yield {"device": device, "op": op, "number": number}


def log_placement(setup: Setup) -> Iterator[Row]:
    """Runs one step with the log of placements; a block of its own process, for `placement`."""
    tf.debugging.set_log_device_placement(True)
    build(setup, setup.load(setup.batches[-1], "float16")).trainer.train(tf.constant(1))
    yield {"steps": 1}


def accuracy(setup: Setup) -> Iterator[Row]:
    """Trains CONFIG to its end; the AP of float16 should differ from that of float32 by no more than the seeds do."""
    small = ["model.width=0.35", "backbone.weights=none", "train.steps=2"] if setup.tiny else []
    results: dict[str, list[float]] = {"float32": [], "float16": []}
    # All four trainings are needed, however long they take.
    for seed, policy in itertools.product((0, 1), results):
        overrides = [f"data.dir={setup.data}", f"train.seed={seed}", *small, *POLICIES[policy]]
        with TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "ssd_dist.cli.train", f"--config={setup.config}", f"--model_dir={folder}"]
            command += [f"--set={override}" for override in overrides]
            started = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            minutes = (time.perf_counter() - started) / 60
            rows = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
        last = next(row for row in reversed(rows) if row["kind"] == "eval")
        steps = [row for row in rows if row["kind"] == "train"]
        results[policy].append(last["coco/AP"])
        yield {
            "policy": policy, "seed": seed, "minutes": minutes, "steps": last["step"], "AP": last["coco/AP"],
            "AP50": last["coco/AP50"], "skipped_steps": steps[-1]["skipped_steps"],
        }  # fmt: skip
    means = {policy: statistics.mean(values) for policy, values in results.items()}
    yield {
        "float16_minus_float32": means["float16"] - means["float32"],
        "difference_of_seeds": max(abs(first - second) for first, second in results.values()),
    }
