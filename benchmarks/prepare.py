"""Compares the Beam job with the minimum of work: decode, resize, encode.

The images are generated: 640 x 480 pixels and 141 kB (COCO's train2017 has 163 kB on average). Many image ids share a
few files. Each image has seven objects, the average of COCO. The throughput of one core is measured in processor time,
which other programs on the machine affect least.
"""

import io
import json
import multiprocessing
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
from apache_beam.options.pipeline_options import PipelineOptions
from PIL import Image

from benchmarks.rows import Row, run_benchmark
from pipelines.classes import ClassRules
from pipelines.job import run_job
from pipelines.options import PrepareJob
from pipelines.readers.coco import read_file
from pipelines.readers.coco_layout import CocoFile
from pipelines.readers.sources import Source
from pipelines.runners import quiet_logs
from ssd_dist.core.config import Config
from ssd_dist.core.example_proto import decode_example, encode_example
from ssd_dist.core.tfrecord_io import read_records

FILES = 48
OBJECTS = 7
CLASSES = 80
HEIGHT, WIDTH = 480, 640
SPLIT = Source((), output_split="train")
# With tiny images, metadata dominates the memory.
TINY = Config.model_validate({"model": {"input_size": 64}})


def measure() -> list[Row]:
    quiet_logs(PipelineOptions([]))
    rows = []
    for benchmark in (measure_core, measure_workers, measure_memory, measure_targets):
        with tempfile.TemporaryDirectory() as folder:
            rows += benchmark(Path(folder))
    return rows


def measure_core(folder: Path, few: int = 100, many: int = 3100, rounds: int = 2) -> list[Row]:
    """Compares, on one core, the whole job from JSON to manifest with a bare loop over the same files."""
    seconds: dict[str, list[float]] = {"start-up": [], "loop": [], "job": []}
    with pinned_to_one_core():
        for _ in range(rounds):
            for name, count, work in (
                ("start-up", few, prepare),
                ("loop", many - few, bare_loop),
                ("job", many, prepare),
            ):
                source = make_coco(folder, count)
                started = time.process_time()
                work(source, folder / "out")
                seconds[name].append(time.process_time() - started)
    best = {name: min(values) for name, values in seconds.items()}
    ours, reference = ((many - few) / taken for taken in (best["job"] - best["start-up"], best["loop"]))
    return [Row("prepare, one core", "img/s", ours, reference, "bare loop: decode, resize, encode")]


def measure_workers(folder: Path, few: int = 400, many: int = 4400) -> list[Row]:
    """Compares two worker processes with one; subtracts the time of `few` images to exclude the start-up time."""
    rates = {}
    for workers in (1, 2):
        options = PipelineOptions(["--direct_running_mode=multi_processing", f"--direct_num_workers={workers}"])
        taken = []
        for images in (few, many):
            source = make_coco(folder, images)
            started = time.perf_counter()
            prepare(source, folder / "out", options=options)
            taken.append(time.perf_counter() - started)
        rates[workers] = (many - few) / (taken[1] - taken[0])
    return [Row("prepare, two worker processes", "img/s", rates[2], rates[1], "one worker process")]


def measure_memory(folder: Path) -> list[Row]:
    """Compares the memory of the largest worker, and of reading the JSON file, for 100,000 and for 1,000 images."""
    job, reading = {}, {}
    for images in (1_000, 100_000):
        source = make_coco(folder, images, objects=10, side=48)
        with sampled_memory() as sizes:
            prepare(source, folder / "out", config=TINY, workers=2)
        job[images] = max(sizes) / 2**20
        reading[images] = measure_reading(source / "annotations/instances_train.json") / 2**20
    return [
        Row("prepare, one worker, 100,000 images", "MiB", job[100_000], job[1_000], "1,000 images"),
        Row("prepare, reading JSON of 1,000,000 boxes", "MiB", reading[100_000], reading[1_000], "10,000 boxes"),
    ]


def measure_targets(folder: Path, images: int = 200) -> list[Row]:
    """Compares the size of the targets with the size of the record."""
    prepare(make_coco(folder, images), folder / "out")
    whole = targets = 0
    for path in (folder / "out/train").glob("*.tfrecord"):
        with path.open("rb") as file:
            for data in read_records(file, path.name):
                features = decode_example(data)
                whole += len(data)
                targets += len(encode_example({k: v for k, v in features.items() if k.startswith("target/")}))
    return [Row("targets per record", "bytes", targets / images, whole / images, "whole record")]


def prepare(
    source: Path, output: Path, config: Config | None = None, options: PipelineOptions | None = None, workers: int = 0
) -> None:
    """Runs the job with an empty output folder."""
    shutil.rmtree(output, ignore_errors=True)
    job = PrepareJob(
        input_format="coco",
        sources=(Source((str(source),), output_split="train"),),
        output=str(output),
        shards=0,
        rules=ClassRules(),
        max_rejected_fraction=0.0,
        config=config or Config(),
        workers=workers,
    )
    run_job(job, options or PipelineOptions([]))


def measure_reading(path: Path) -> int:
    """Returns the peak memory in bytes of a separate process that reads an annotation file."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_read, (CocoFile(0, str(path), ""),))


def _read(file: CocoFile) -> int:
    for _ in read_file(file, SPLIT):
        pass
    # Not getrusage: its maximum is inherited from the parent process.
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak) * 1024


def bare_loop(source: Path, _: Path) -> None:
    """Reads, decodes, resizes and encodes each image like `prepare`, and does nothing else."""
    size, quality = Config().model.input_size, Config().data.jpeg_quality
    listed = json.loads((source / "annotations/instances_train.json").read_text())["images"]
    for name in [image["file_name"] for image in listed]:
        data = (source / "train" / name).read_bytes()
        image = Image.open(io.BytesIO(data)).resize((size, size), Image.Resampling.BILINEAR)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
        buffer.getvalue()


def make_coco(folder: Path, images: int, objects: int = OBJECTS, side: int = 0) -> Path:
    """Writes a COCO dataset whose image ids share a few files; with `side`, the images are squares of this size."""
    height, width = (side, side) if side else (HEIGHT, WIDTH)
    (folder / "train").mkdir(exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    for number in range(FILES):
        path = folder / "train" / f"{number}.jpg"
        if not path.exists():
            paint(np.random.default_rng(number), height, width).save(path, quality=90)
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(np.log(0.04), np.log(0.6), (images * objects, 2)))
    corners = rng.uniform(0, 1 - sizes)
    boxes = np.round(np.concatenate([corners, sizes], axis=1) * [width, height, width, height], 2).tolist()
    classes = rng.integers(1, CLASSES + 1, len(boxes)).tolist()
    content = {
        "images": [
            {"id": number, "file_name": f"{number % FILES}.jpg", "height": height, "width": width}
            for number in range(images)
        ],
        "annotations": [
            {
                "id": number,
                "image_id": number // objects,
                "category_id": category,
                "bbox": box,
                "area": round(box[2] * box[3], 2),
                "iscrowd": 0,
            }
            for number, (box, category) in enumerate(zip(boxes, classes, strict=True))
        ],
        "categories": [{"id": number, "name": f"class {number}"} for number in range(1, CLASSES + 1)],
    }
    (folder / "annotations/instances_train.json").write_text(json.dumps(content))
    return folder


def paint(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Draws colored noise at several scales; decoding it takes as long as decoding a photograph."""
    pixels = np.full((height, width, 3), 128.0)
    for cells, strength in ((4, 60), (16, 35), (64, 20), (200, 14)):
        coarse = rng.normal(0, 1, (3, max(2, cells * height // width), cells)).astype(np.float32)
        layers = [np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC)) for one in coarse]
        pixels += strength * np.stack(layers, axis=-1)
    pixels += 9 * rng.normal(0, 1, (height, width, 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@contextmanager
def pinned_to_one_core() -> Iterator[None]:
    """Pins this process and its threads to one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


@contextmanager
def sampled_memory() -> Iterator[list[int]]:
    """Samples the resident memory in bytes of the worker processes ten times per second."""
    sizes: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            for process in psutil.Process().children(recursive=True):
                try:
                    if any("sdk_worker_main" in part for part in process.cmdline()):
                        sizes.append(process.memory_info().rss)
                except psutil.Error:
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield sizes
    done.set()
    watcher.join()


if __name__ == "__main__":
    run_benchmark(measure, __doc__)
