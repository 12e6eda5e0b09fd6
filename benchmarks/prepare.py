"""What prepare costs beside the work that nobody can avoid: decode, resize, encode.

    make bench-prepare            or    python -m benchmarks.prepare --only=throughput --json=FILE

Every figure is printed beside its reference from the same run. The images are generated: 640 x 480 pixels and 141 kB
(COCO's train2017 has 163 kB on average), a few files under many ids; seven objects an image, as COCO has.
Throughput is told in processor time, which other programs on the machine disturb least; the wall clock stands beside.
"""

import argparse
import io
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from apache_beam.options.pipeline_options import PipelineOptions
from PIL import Image

from pipelines.classes import ClassRules
from pipelines.options import PrepareJob
from pipelines.prepare import run_job
from pipelines.readers.source import Source
from pipelines.runners import quiet_logs
from ssd_dist.core.config import Config
from ssd_dist.core.example_proto import decode_example, encode_example
from ssd_dist.core.tfrecord import read_records

RESULTS = Path(__file__).parent / "results" / "prepare.json"
FILES = 48
OBJECTS = 7
CLASSES = 80
HEIGHT, WIDTH = 480, 640
# Tiny images leave the metadata to fill the memory.
TINY = Config.model_validate({"model": {"input_size": 64}})
GIB = 1 << 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(BENCHMARKS), help="run this one alone")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures go")
    arguments = parser.parse_args()
    quiet_logs(PipelineOptions([]))
    results = {}
    for name, benchmark in BENCHMARKS.items():
        if arguments.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                results[name] = benchmark(Path(folder))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nwritten to {arguments.json}")


def bench_throughput(folder: Path, few: int = 100, many: int = 3100, rounds: int = 2) -> dict:
    """One core: the whole job, from JSON to manifest, against a bare loop over the same files."""
    images = many - few
    seconds: dict[str, list[float]] = {"start_up": [], "loop": [], "job": []}
    clock: dict[str, list[float]] = {"start_up": [], "loop": [], "job": []}
    with one_core():
        for _ in range(rounds):
            for name, count, work in (("start_up", few, prepare), ("loop", images, bare_loop), ("job", many, prepare)):
                wall, processor = time_call(partial(work, make_coco(folder, count), folder / "out"))
                seconds[name].append(processor)
                clock[name].append(wall)
    best = {name: min(values) for name, values in seconds.items()}
    loop, whole = images / best["loop"], many / best["job"]
    going = images / (best["job"] - best["start_up"])
    wall = images / min(clock["loop"]), many / min(clock["job"])
    show(
        f"one core, {images} images of {image_bytes(folder) / 1e3:.0f} kB, {OBJECTS} objects each, best of {rounds}",
        [
            ("decode, resize, encode", f"{loop:.0f} images/s", f"{wall[0]:.0f} by the clock"),
            ("prepare", f"{going:.0f} images/s", f"{whole:.0f} with start-up, {wall[1]:.0f} by the clock"),
            ("share of the bare loop", f"{going / loop:.3f}", f"{whole / loop:.3f} with start-up; wanted: 0.85"),
        ],
    )
    return {
        "images": images,
        "loop_images_per_second": loop,
        "prepare_images_per_second": going,
        "ratio": going / loop,
        "ratio_with_start_up": whole / loop,
        "processor_seconds": seconds,
        "clock_seconds": clock,
    }


def bench_workers(folder: Path, few: int = 400, many: int = 4400) -> dict:
    """Two worker processes against one; start-up cancels in the difference between many images and few."""
    seconds = {}
    for workers in (1, 2):
        taken = []
        for images in (few, many):
            source = make_coco(folder, images)
            options = ["--direct_running_mode=multi_processing", f"--direct_num_workers={workers}"]
            taken.append(time_call(lambda s=source, o=options: prepare(s, folder / "out", options=o))[0])
        seconds[workers] = taken
    rates = {workers: (many - few) / (taken[1] - taken[0]) for workers, taken in seconds.items()}
    busy = psutil.getloadavg()[0]
    show(
        f"worker processes, {many - few} images, start-up excluded",
        [
            ("one", f"{rates[1]:.0f} images/s", f"{seconds[1][1]:.1f} s with start-up"),
            ("two", f"{rates[2]:.0f} images/s", f"{seconds[2][1]:.1f} s with start-up"),
            ("two against one", f"{rates[2] / rates[1]:.2f}", f"wanted: 1.8; load average {busy:.1f}"),
        ],
    )
    return {"seconds": seconds, "images_per_second": rates, "ratio": rates[2] / rates[1], "load_average": busy}


def bench_memory(folder: Path) -> dict:
    """The most that a worker process holds, for a hundred times the images and a JSON of a million boxes."""
    peaks = {}
    for images in (1_000, 100_000):
        source = make_coco(folder, images, objects=10, side=48)
        with watched_workers() as peak:
            prepare(source, folder / "out", config=TINY, workers=2)
        peaks[images] = max(peak)
    size = os.path.getsize(folder / "annotations/instances_train.json") / 1e6
    show(
        "largest worker process",
        [
            *(
                (f"{images} images, {10 * images} boxes", f"{peak / 2**20:.0f} MiB", "")
                for images, peak in peaks.items()
            ),
            (
                "growth",
                f"{peaks[100_000] / peaks[1_000]:.2f} times",
                f"wanted: under {GIB / 2**20:.0f} MiB; JSON {size:.0f} MB",
            ),
        ],
    )
    return {"peak_bytes": peaks, "growth": peaks[100_000] / peaks[1_000], "json_megabytes": size}


def bench_targets(folder: Path, images: int = 200) -> dict:
    """How much of a record its targets are."""
    prepare(make_coco(folder, images), folder / "out")
    whole = targets = 0
    for path in (folder / "out/train").glob("*.tfrecord"):
        with path.open("rb") as file:
            for data in read_records(file, path.name):
                features = decode_example(data)
                whole += len(data)
                targets += len(encode_example({k: v for k, v in features.items() if k.startswith("target/")}))
    share = targets / whole
    show(
        f"bytes of a record, {images} images",
        [
            ("record", f"{whole / images:.0f}", ""),
            ("targets", f"{targets / images:.0f}", f"dense: {8732 * 5 * 4}"),
            ("share", f"{share:.1%}", "wanted: under 5 %"),
        ],
    )
    return {"record_bytes": whole / images, "target_bytes": targets / images, "share": share}


BENCHMARKS: dict[str, Callable[[Path], dict]] = {
    "throughput": bench_throughput,
    "workers": bench_workers,
    "memory": bench_memory,
    "targets": bench_targets,
}


def prepare(
    source: Path, output: Path, config: Config | None = None, options: Sequence[str] = (), workers: int = 0
) -> None:
    """Runs the job into an empty folder."""
    shutil.rmtree(output, ignore_errors=True)
    job = PrepareJob(
        input_format="coco",
        source=Source((str(source),), fallback_split="train"),
        split="train",
        output=str(output),
        shards=0,
        rules=ClassRules(),
        max_rejected_fraction=0.0,
        config=config or Config(),
        workers=workers,
    )
    run_job(job, PipelineOptions(list(options)))


def bare_loop(source: Path, _: Path) -> None:
    """What no program can do without: each image's bytes, decoded, resized and encoded as prepare does it."""
    size, quality = Config().model.input_size, Config().data.jpeg_quality
    listed = json.loads((source / "annotations/instances_train.json").read_text())["images"]
    for name in [image["file_name"] for image in listed]:
        data = (source / "train" / name).read_bytes()
        image = Image.open(io.BytesIO(data)).resize((size, size), Image.Resampling.BILINEAR)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
        buffer.getvalue()


def make_coco(folder: Path, images: int, objects: int = OBJECTS, side: int = 0) -> Path:
    """A COCO data set whose ids share a few files; `side` makes small squares of them."""
    rng = np.random.default_rng(0)
    height, width = (side, side) if side else (HEIGHT, WIDTH)
    (folder / "train").mkdir(exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    for number in range(FILES):
        path = folder / "train" / f"{number}.jpg"
        if not path.exists():
            paint(rng, height, width).save(path, quality=90)
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
    """Clouds of colour at several scales, with grain: decoding costs what a photograph's does."""
    pixels = np.full((height, width, 3), 128.0)
    for cells, strength in ((4, 60), (16, 35), (64, 20), (200, 14)):
        coarse = rng.normal(0, 1, (3, max(2, cells * height // width), cells)).astype(np.float32)
        layers = [np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC)) for one in coarse]
        pixels += strength * np.stack(layers, axis=-1)
    pixels += 9 * rng.normal(0, 1, (height, width, 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def image_bytes(folder: Path) -> float:
    """Mean size of the image files."""
    return float(np.mean([path.stat().st_size for path in (folder / "train").iterdir()]))


def time_call(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock and of this process's processor time."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


@contextmanager
def one_core() -> Iterator[None]:
    """Keeps this process and its threads on one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


@contextmanager
def watched_workers() -> Iterator[list[int]]:
    """Collects the resident bytes of the worker processes, several times a second."""
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


def show(title: str, rows: list[tuple[str, str, str]]) -> None:
    """Prints a small table."""
    print(f"\n{title}")
    for name, figure, note in rows:
        print(f"  {name:<28}{figure:>16}  {note}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
