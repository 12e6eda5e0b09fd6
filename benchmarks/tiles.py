"""Compares the detection in tiles with the detection on whole images: AP of a run on a split, and the time.

    python -m benchmarks.tiles --model_dir=RUN --images='FOLDER/**/*.jpg' --split=val

RUN contains its data, as runs of ssd-fit do; the images are the originals, found by their names.
"""

import argparse
import dataclasses
import time
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
    config, manifest = read_run_folder(arguments.model_dir, [f"data.dir={arguments.model_dir}/data"])
    ground_truth = read_ground_truth(config.data, manifest.split(arguments.split, config.data.dir))
    # Ids of YOLO images have no suffix.
    files = {name: file for file in find_images([arguments.images]) for name in (Path(file).stem, Path(file).name)}
    images = [read_image(files[Path(annotated.source_id).name]) for annotated in ground_truth]
    names = [annotated.source_id for annotated in ground_truth]
    loaded = open_run(arguments.model_dir, "best", ())
    # The first batch traces the network.
    list(detect_images(loaded, images[: loaded.batch_size], names[: loaded.batch_size]))
    table = Table("tiles", *(metric.removeprefix("coco/") for metric in METRICS), "ms per image")
    for tiles in arguments.tiles:
        detector = dataclasses.replace(loaded, tiles=tiles)
        found: list[Detections] = []
        started = time.perf_counter()
        for start in range(0, len(images), loaded.batch_size):
            chunk = slice(start, start + loaded.batch_size)
            found.extend(detect_images(detector, images[chunk], names[chunk]))
        milliseconds = 1e3 * (time.perf_counter() - started) / len(images)
        metrics = evaluate_detections(ground_truth, found, manifest.classes).as_dict()
        values = [metrics[metric] for metric in METRICS]
        table.add_row(
            str(tiles), *("" if value is None else f"{100 * value:.1f}" for value in values), f"{milliseconds:.0f}"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
