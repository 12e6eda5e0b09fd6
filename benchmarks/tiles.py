"""Compares the detection in tiles with the detection on whole images: AP of a run on a split, and the time.

    python -m benchmarks.tiles --model_dir=RUN --images='FOLDER/**/*.jpg' --split=val

The images are the originals of the split, found by the ids of its records, which are paths or names.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ssd_dist.evaluation.detections import Detections
from ssd_dist.evaluation.evaluator import read_ground_truth
from ssd_dist.evaluation.metrics import evaluate_detections
from ssd_dist.inference.image_files import find_images, read_image
from ssd_dist.inference.loaded_detector import open_run
from ssd_dist.inference.tiles import detect_images
from ssd_dist.runs.run_folder import read_run_folder

METRICS = ("coco/AP", "coco/AP50", "coco/AP_small", "coco/AP_medium", "coco/AP_large")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_dir", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--tiles", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    config, manifest = read_run_folder(arguments.model_dir, [])
    ground_truth = read_ground_truth(config.data, manifest.split(arguments.split, config.data.dir))
    files = match_files([annotated.source_id for annotated in ground_truth], find_images([arguments.images]))
    detector = open_run(arguments.model_dir, "best", ())
    table = Table("tiles", *(metric.removeprefix("coco/") for metric in METRICS), "ms per image")
    for tiles in arguments.tiles:
        found: list[Detections] = []
        seconds = []
        for name, file in files.items():
            image = read_image(file)
            # One image at a time, as the shape of a batch that TensorFlow has not seen takes seconds.
            started = time.perf_counter()
            found.extend(detect_images(detector, [image], [name], tiles))
            seconds.append(time.perf_counter() - started)
        metrics = evaluate_detections(ground_truth, found, manifest.classes).as_dict()
        values = ["" if metrics[name] is None else f"{100 * metrics[name]:.1f}" for name in METRICS]
        table.add_row(str(tiles), *values, f"{1e3 * statistics.median(seconds):.0f}")
    Console().print(table)


def match_files(names: Sequence[str], files: Sequence[str]) -> dict[str, str]:
    """Returns the file of each image id: the one whose path ends with the id, with or without its suffix.

    Ends the program if an id has no file, or several.
    """
    matches: dict[str, list[str]] = {}
    for file in files:
        parts = Path(file).parts
        for start in range(len(parts)):
            path = Path(*parts[start:])
            for name in {path.as_posix(), path.with_suffix("").as_posix()}:
                matches.setdefault(name, []).append(file)
    for name in names:
        if len(found := matches.get(name, [])) != 1:
            sys.exit(f"image {name}: {len(found)} files of --images have this name instead of 1")
    return {name: matches[name][0] for name in names}


if __name__ == "__main__":
    main()
