"""Compares the exports of a detector: float32, float16, and int8 calibrated after training or trained for.

    prepare -> train -> train again with quantization.aware, per channel and per tensor
    each of the three runs -> its exports, without and with postprocess_op -> AP and size -> results.jsonl -> table

The stages that are finished are not repeated, so the same command resumes after an interruption. `--run=RUN` takes a
trained run instead of training one. Example, for one dataset:

    python -m benchmarks.quantization --data_set=bccd --split=val --set model.width=0.35 --set model.input_size=224
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "runs" / "quantization"
SHARED = Path(os.environ.get("SSD_DIST_SHARED", ROOT.parent / "shared"))
DATASETS = {
    "bccd": "data/bccd/BCCD",
    "aquarium": "data/battery/aquarium/dataset",
    "chess": "data/battery/chess",
}
# As in docs/exporting.md; chosen on validation splits.
AWARE = ("quantization.aware=true", "optimizer.lr=0.0005", "train.epochs=10")
# The runs, by the config keys that distinguish them from the first one, which they continue.
RUNS = {"float32": (), "aware": AWARE, "aware_per_tensor": (*AWARE, "quantization.per_tensor=true")}


@dataclass(frozen=True)
class Export:
    """A row of the table: the exported run and the flags of ssd-export."""

    name: str
    run: str
    flags: tuple[str, ...] = ()


EXPORTS = (
    Export("float32", "float32"),
    Export("float16", "float32", ("--quantize=fp16",)),
    Export("int8, calibrated", "float32", ("--quantize=int8",)),
    Export("int8 per tensor, calibrated", "float32", ("--quantize=int8", "--per_tensor")),
    Export("int8, trained", "aware", ("--quantize=int8",)),
    Export("int8 per tensor, trained", "aware_per_tensor", ("--quantize=int8", "--per_tensor")),
)
# "" is the default of the export: detections in float32 and float16, raw outputs in int8.
OUTPUTS = ("", "--outputs=postprocess_op")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data_set", action="append", choices=sorted(DATASETS), help="a dataset; all by default; repeatable"
    )
    parser.add_argument("--run", type=Path, help="a trained run of the one dataset; without it, one is trained")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder for data, runs, exports and results.jsonl")
    parser.add_argument("--split", default="val", help="the split on which AP is measured")
    parser.add_argument("--set", action="append", default=[], help="key=value of the config, for data and training")
    parser.add_argument("--aware_set", action="append", default=[], help="key=value for the runs with quantization")
    arguments = parser.parse_args()
    names = arguments.data_set or list(DATASETS)
    if arguments.run and len(names) != 1:
        sys.exit("--run: is a run of one dataset; add --data_set=NAME")
    for name in names:
        folder = arguments.folder / name
        runs = train_runs(name, folder, arguments.run, arguments.set, arguments.aware_set)
        measure_exports(name, folder, runs, arguments.split)
        print_table(name, read_results(folder))


def train_runs(
    name: str, folder: Path, trained: Path | None, overrides: Sequence[str], aware: Sequence[str]
) -> dict[str, Path]:
    """Prepares the data and trains the runs that are not finished; returns all runs."""
    first = trained or folder / "float32"
    sets = [f"--set={each}" for each in overrides]
    if trained is None:
        data = folder / "data"
        if not (data / "dataset.json").exists():
            call("pipelines.prepare", f"--input={SHARED / DATASETS[name]}", f"--output={data}", *sets)
        # Without --config, the defaults of the config apply.
        call("ssd_dist.cli.train", "--config=base", f"--model_dir={first}", f"--set=data.dir={data}", *sets)
    runs = {"float32": first}
    for run, changes in RUNS.items():
        if changes:
            runs[run] = folder / run
            # The config of the first run also contains the folder of the data.
            more = [f"--set={each}" for each in (f"model.init_from={first}", "backbone.weights=none", *changes, *aware)]
            call("ssd_dist.cli.train", f"--config={first / 'config.yaml'}", f"--model_dir={runs[run]}", *more)
    return runs


def measure_exports(name: str, folder: Path, runs: dict[str, Path], split: str) -> None:
    """Exports the runs and appends a row for each export to results.jsonl, unless it has one for the same split."""
    done = {(row["export"], row["outputs"], row["split"]) for row in read_results(folder)}
    for export in EXPORTS:
        for outputs in OUTPUTS:
            label = outputs.partition("=")[2] or "default"
            if (export.name, label, split) in done:
                continue
            target = folder / "exports" / f"{export.name.replace(',', '').replace(' ', '_')}-{label}"
            flags = [*export.flags, *([outputs] if outputs else []), f"--set=eval.split={split}"]
            run = f"--model_dir={runs[export.run]}"
            call("ssd_dist.cli.export", run, "--format=tflite", f"--output={target}", *flags)
            summary = json.loads((target / "export.json").read_text())
            metrics = summary["metrics"]
            row = {
                "data_set": name, "export": export.name, "outputs": label, "split": split,
                "images": summary["parity"]["images"], "bytes": summary["bytes"],
                "AP": metrics["export"]["coco/AP"], "AP50": metrics["export"]["coco/AP50"],
                "AP of the checkpoint": metrics["checkpoint"]["coco/AP"],
            }  # fmt: skip
            with (folder / "results.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            Console(stderr=True).print(f"{name}, {export.name}, {label}: AP {row['AP']:.4f}")


def read_results(folder: Path) -> list[dict]:
    """Reads the rows of a dataset."""
    path = folder / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def print_table(name: str, rows: Sequence[dict]) -> None:
    """Prints a Markdown table; the difference is that from the AP of the float32 file with the same outputs."""
    print(f"\n{name}:\n\n| file | outputs | split | AP | difference | AP50 | MB |\n|{'---|' * 7}")
    float32 = {(row["outputs"], row["split"]): row["AP"] for row in rows if row["export"] == "float32"}
    for row in rows:
        base = float32.get((row["outputs"], row["split"]))
        difference = "" if base is None else f"{row['AP'] - base:+.4f}"
        cells = (row["export"], row["outputs"], row["split"], f"{row['AP']:.4f}", difference, f"{row['AP50']:.4f}")
        print(f"| {' | '.join(cells)} | {row['bytes'] / 1e6:.2f} |")


def call(module: str, *flags: str) -> None:
    """Runs a command of the package; ends this program with its exit code if it fails."""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "SSD_DIST_SHARED": str(SHARED)}
    done = subprocess.run([sys.executable, "-m", module, *flags], cwd=ROOT, env=environment, check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; run the command again to resume")
