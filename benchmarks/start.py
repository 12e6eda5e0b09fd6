"""Measures the time from the command to the first step: one process, two workers under the launcher, and imports."""

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.rows import Row, run_benchmark
from benchmarks.shards import generated_shards

ROOT = Path(__file__).parents[1]


def measure() -> list[Row]:
    with generated_shards(images=64) as (folder, _):
        imports = _time([sys.executable, "-c", "import ssd_dist.training.run"])
        flags = [
            f"--config={folder / 'bench.yaml'}", f"--set=data.dir={folder / 'data'}", "--set=backbone.weights=none",
            "--set=train.log_every=1", "--set=train.steps=1", "--set=eval.every_epochs=0",
        ]  # fmt: skip
        one = _time_to_first_step([sys.executable, "-m", "ssd_dist.cli.train", *flags, f"--model_dir={folder / 'one'}"])
        launcher = [ROOT / "launch" / "train_multinode.sh", "--local=2", f"--python={sys.executable}", "--"]
        two = _time_to_first_step([*map(str, launcher), *flags, f"--model_dir={folder / 'two'}"])
        worker = _time([sys.executable, "-c", "import pipelines.shards"])
        bare = _time([sys.executable, "-c", "import apache_beam"])
    return [
        Row("start to first step, one process", "s", one, imports, "only the imports"),
        Row("start to first step, two workers", "s", two, one, "one process"),
        Row("imports of a Beam worker", "s", worker, bare, "import apache_beam"),
    ]


def _time(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    return time.perf_counter() - started


def _time_to_first_step(command: list[str]) -> float:
    started = time.perf_counter()
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    with subprocess.Popen(command, cwd=ROOT, env=quiet, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        for line in process.stdout or ():
            if b"step 1/" in line:
                seconds = time.perf_counter() - started
                break
        else:
            raise RuntimeError(f"the command ended before its first step: {' '.join(command)}")
        process.stdout.read()
    return seconds


if __name__ == "__main__":
    run_benchmark(measure, __doc__)
