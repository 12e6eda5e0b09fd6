"""Training and evaluation beside the limits of this machine, both sides from one run: `make bench`.

Every row is the median of several rounds in which ours and its reference take turns; prints a table and writes JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from ssd_dist.core.anchors import generate_anchors
from ssd_dist.core.config import Config
from ssd_dist.core.config_files import load_config
from ssd_dist.core.records import Objects
from ssd_dist.core.tfrecord import read_records
from ssd_dist.data.batch import TrainBatch
from ssd_dist.data.pipeline import plan_training, training_batches
from ssd_dist.data.storage import load_manifest
from ssd_dist.evaluation.detections import Detections, GroundTruth
from ssd_dist.evaluation.metrics import evaluate_detections
from ssd_dist.model.detector import normalize_image
from ssd_dist.training.assembly import distribute_training
from ssd_dist.training.checkpoint_writing import CheckpointWriter
from ssd_dist.training.losses import multibox_losses
from ssd_dist.training.mining import mine_per_image
from ssd_dist.training.run import make_reproducible
from ssd_dist.training.state import create_state
from ssd_dist.training.targets import count_targets
from ssd_dist.training.trainer import DetectorTrainer

BATCH = 16
SETTINGS = ["backbone.weights=none", f"train.global_batch_size={BATCH}", "train.steps=100000"]


@dataclass(frozen=True)
class Row:
    """A measurement: ours and the reference, in `unit`, and `ratio` ours / reference."""

    what: str
    unit: str
    ours: float
    reference: float
    beside: str

    @property
    def ratio(self) -> float:
        return self.ours / self.reference


def take_turns(ours: Callable[[], object], reference: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds of each; one round of both to warm up."""
    times: tuple[list[float], list[float]] = ([], [])
    for round_number in range(rounds + 1):
        for function, found in zip((ours, reference), times, strict=True):
            started = time.perf_counter()
            function()
            if round_number:
                found.append(time.perf_counter() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def prepare_data(folder: Path) -> Config:
    """Shards of generated images, through the commands a user has; the config that fits them."""
    (folder / "bench.yaml").write_text("{}")
    raw, out = folder / "raw", folder / "data"
    command = [sys.executable, "-m", "pipelines.sample", f"--output={raw}", "--train=256", "--val=16"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(
        [sys.executable, "-m", "pipelines.prepare", "--input_format=coco", f"--input={raw}", "--split=train",
         f"--output={out}", f"--config={folder / 'bench.yaml'}"],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return load_config(folder / "bench.yaml", [*SETTINGS, f"data.dir={out}"])


def measure_step(config: Config, folder: Path) -> list[Row]:
    """The whole step from TFRecords beside forward and backward alone, and the parts that it adds."""
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    manifest = load_manifest(config.data)
    plan = plan_training(config, manifest.split("train", config.data.dir))
    with strategy.scope():
        state = create_state(config, len(manifest.classes), 100000)
        trainer = DetectorTrainer(config, strategy, state, distribute_training(config, strategy, plan, state), 100000)
    batch = next(iter(training_batches(config, plan, BATCH, 0)))
    model = state.model
    pixels = normalize_image(batch.images)

    @tf.function(autograph=False)
    def bare() -> tf.Tensor:
        with tf.GradientTape() as tape:
            outputs = model(pixels, training=True)
            loss = tf.reduce_sum(outputs["logits"]) + tf.reduce_sum(outputs["offsets"])
        return tf.add_n([tf.reduce_sum(g) for g in tape.gradient(loss, model.trainable_variables)])

    ours, reference = take_turns(lambda: trainer.train(tf.constant(4)), lambda: [bare() for _ in range(4)], 6)
    rows = [Row("training step", "img/s", 4 * BATCH / ours, 4 * BATCH / reference, "bare forward + backward")]
    step = ours / 4
    loss = measure_loss(config, batch, model(pixels, training=False))
    rows.append(Row("loss, mining, densifying", "ms a step", 1e3 * loss, 1e3 * step, "the step"))
    if state.ema is not None:
        update = tf.function(lambda: state.ema.update(tf.constant(1, tf.int64)), autograph=False)
        ema, _ = take_turns(update, lambda: None, 20)
        rows.append(Row("EMA", "ms a step", 1e3 * ema, 1e3 * step, "the step"))
    checkpoint = state.checkpoint()
    saved = folder / "checkpoint"
    writer = CheckpointWriter(checkpoint, str(saved))
    writer.write("ckpt-1")
    size = sum(f.stat().st_size for f in saved.iterdir())
    data = os.urandom(size)
    save, plain = take_turns(lambda: writer.write("ckpt-1"), lambda: (folder / "plain").write_bytes(data), 5)
    rows.append(Row("checkpoint save", "MB/s", size / save / 1e6, size / plain / 1e6, "plain write of the bytes"))
    return rows


def measure_loss(config: Config, batch: TrainBatch, outputs: dict[str, tf.Tensor]) -> float:
    """Seconds of targets, mining, loss and their gradient on constant outputs."""
    anchors = len(generate_anchors(config.anchors, config.model.input_size))

    @tf.function(autograph=False)
    def run() -> list[tf.Tensor]:
        counts = count_targets(batch.targets, anchors, config.mining)
        with tf.GradientTape() as tape:
            tape.watch([outputs["logits"], outputs["offsets"]])
            losses = multibox_losses(
                outputs["logits"], outputs["offsets"], batch.targets, config.loss,
                lambda values, candidates: mine_per_image(values, candidates, counts.quota),
            )  # fmt: skip
            loss = tf.reduce_sum(losses.classification) + tf.reduce_sum(losses.localization)
        return tape.gradient(loss, [outputs["logits"], outputs["offsets"]])

    return take_turns(run, lambda: None, 15)[0]


def measure_input(config: Config) -> list[Row]:
    """The input pipeline beside a bare decode loop of the same JPEGs, and online targets beside precomputed ones."""
    manifest = load_manifest(config.data)
    plan = plan_training(config, manifest.split("train", config.data.dir))
    images = []
    for file in plan.files[0]:
        with Path(file).open("rb") as stream:
            for record in read_records(stream, file):
                images.append(tf.train.Example.FromString(record).features.feature["image/encoded"].bytes_list.value[0])
    count = len(images) // BATCH * BATCH
    bare = tf.data.Dataset.from_tensor_slices(images[:count]).repeat()
    bare = iter(bare.map(tf.io.decode_jpeg, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH).prefetch(4))
    online_config = config.model_copy(update={"data": config.data.model_copy(update={"targets": "online"})})
    ours = iter(training_batches(config, plan, BATCH, 0))
    online = iter(training_batches(online_config, plan, BATCH, 0))

    def drain(iterator: object) -> Callable[[], None]:
        def run() -> None:
            for _ in range(count // BATCH):
                next(iterator)

        return run

    fast, limit = take_turns(drain(ours), drain(bare), 6)
    precomputed, matched = take_turns(drain(ours), drain(online), 3)
    return [
        Row("input pipeline", "img/s", count / fast, count / limit, "bare decode loop, as many threads"),
        Row("precomputed targets", "img/s", count / precomputed, count / matched, "data.targets: online"),
    ]


def measure_metrics(images: int, per_image: int, classes: int) -> Row:
    """COCO and VOC metrics together beside pycocotools' COCO metrics of the same detections."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(0)
    names = tuple(f"class {number}" for number in range(classes))
    truths, found = [], []
    for number in range(images):
        corners = np.sort(rng.uniform(0, 1, (7, 2, 2)), axis=1).reshape(7, 4).astype(np.float32)
        labels = rng.integers(1, classes + 1, 7)
        area = ((corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]) * 640 * 480).astype(np.float32)
        nothing = np.zeros(7, bool)
        objects = Objects(corners, labels, tuple(names[label - 1] for label in labels), nothing, nothing, area)
        truths.append(GroundTruth(str(number), 480, 640, objects))
        chosen = rng.integers(0, 7, per_image)
        boxes = np.clip(corners[chosen] + rng.normal(0, 0.05, (per_image, 4)), 0, 1).astype(np.float32)
        scores = np.sort(rng.uniform(0.01, 1, per_image).astype(np.float32))[::-1]
        found.append(Detections(str(number), boxes, labels[chosen], scores))

    def reference() -> None:
        annotations, results = [], []
        for number, (truth, one) in enumerate(zip(truths, found, strict=True)):
            for (y0, x0, y1, x1), label in zip(
                truth.objects.boxes.tolist(), truth.objects.labels.tolist(), strict=True
            ):
                box = [x0 * 640, y0 * 480, (x1 - x0) * 640, (y1 - y0) * 480]
                annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": label, "bbox": box,
                                    "area": box[2] * box[3], "iscrowd": 0})  # fmt: skip
            for (y0, x0, y1, x1), label, score in zip(one.boxes.tolist(), one.labels.tolist(), one.scores.tolist(),
                                                      strict=True):  # fmt: skip
                box = [x0 * 640, y0 * 480, (x1 - x0) * 640, (y1 - y0) * 480]
                results.append({"image_id": number, "category_id": label, "bbox": box, "score": score})
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": number, "height": 480, "width": 640} for number in range(images)],
            "annotations": annotations,
            "categories": [{"id": label + 1, "name": name} for label, name in enumerate(names)],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()

    with Path(os.devnull).open("w") as nowhere:
        shown, sys.stdout = sys.stdout, nowhere
        try:
            ours, theirs = take_turns(lambda: evaluate_detections(truths, found, names), reference, 1)
        finally:
            sys.stdout = shown
    return Row("COCO and VOC metrics", "s", ours, theirs, f"pycocotools, {images} x {per_image} x {classes}")


def print_rows(rows: list[Row]) -> None:
    """The table."""
    table = Table("work", "ours", "reference", "unit", "ours / reference", "reference is")
    for row in rows:
        table.add_row(row.what, f"{row.ours:.3g}", f"{row.reference:.3g}", row.unit, f"{row.ratio:.3f}", row.beside)
    Console(width=130).print(table)


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", default="benchmarks/results/training.json", help="where the figures go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        config = prepare_data(Path(name))
        make_reproducible(config)
        rows = measure_step(config, Path(name))
        rows += measure_input(config)
    rows.append(measure_metrics(images=1000, per_image=100, classes=80))
    print_rows(rows)
    path = Path(arguments.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(row) | {"ratio": row.ratio} for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
