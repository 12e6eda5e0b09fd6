"""A run's model on its evaluation split, and the pictures that tell about it.

checkpoint -> detections -> metrics, analysis -> galleries;  checkpoint, training records -> mined negatives
first training batch, as the model gets it -> pictures
"""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf
from PIL import Image

from ssd_dist.core.boxes import decode_boxes
from ssd_dist.core.config import Config, DataConfig
from ssd_dist.core.errors import CheckpointError, DataError, first_line
from ssd_dist.core.manifest import MANIFEST_NAME, TRAIN_SPLIT, Manifest, Split
from ssd_dist.core.records import Record
from ssd_dist.data.augmentation import apply_color_map
from ssd_dist.data.batch import SparseTargets
from ssd_dist.data.decoding import decode_image
from ssd_dist.data.pipeline import plan_training, training_batches
from ssd_dist.data.shard_files import join, load_manifest
from ssd_dist.evaluation.analysis import Analysis, analyse_detections
from ssd_dist.evaluation.detections import Detections, GroundTruth
from ssd_dist.evaluation.error_types import HIT, IGNORED, classify_detections
from ssd_dist.evaluation.metrics import Metrics, evaluate_detections
from ssd_dist.inference.trained_model import evaluate_split, load_trained_model, locate_checkpoint
from ssd_dist.model.detector import normalize_image
from ssd_dist.report.anchor_images import Picture, draw_anchors, draw_negatives
from ssd_dist.report.box_overlay import Frame, draw_frames
from ssd_dist.report.dataset_facts import TargetMaker, read_chosen
from ssd_dist.training.losses import multibox_losses
from ssd_dist.training.mining import mine_per_image
from ssd_dist.training.targets import count_targets

GALLERY = 4
ANCHOR_PICTURES = 4
BATCH_PICTURES = 16
BATCH_SIDE = 200
# What stands beside a detection that is no hit; nothing for the commonest, where nothing is annotated.
KIND_WORDS = {"localisation": "place", "both": "class, place", "background": "", IGNORED: "not counted"}
# One process shows runs of any cluster: a single device will do.
ONE_DEVICE = ("cluster.strategy=one_device", "cluster.logical_cpus=0")


@dataclass(frozen=True)
class Evaluation:
    """What a checkpoint does on a split."""

    checkpoint: str
    split_name: str
    data: DataConfig
    split: Split
    classes: tuple[str, ...]
    truths: list[GroundTruth]
    detections: list[Detections]
    metrics: Metrics
    analysis: Analysis


def choose_checkpoint(model_dir: str, wanted: str) -> str:
    """`best`, `last` or a path; for `auto` best if there is one, else last.

    Raises:
      CheckpointError: if there is none.
    """
    if wanted != "auto":
        return wanted
    for name in ("best", "last"):
        try:
            locate_checkpoint(model_dir, name)
        except CheckpointError:
            continue
        return name
    raise CheckpointError(f"{model_dir} has no checkpoint that can be evaluated yet")


def evaluate_run(model_dir: str, checkpoint: str, config: Config, split: str, overrides: Sequence[str]) -> Evaluation:
    """Evaluates a checkpoint; `split` may be `auto`, the one that training evaluated on.

    Raises:
      CheckpointError, DataError, UsageError: for a run, data or overrides that do not fit.
    """
    if split == "auto":
        manifest, path = load_manifest(config.data), join(config.data.dir, MANIFEST_NAME)
        found = manifest.eval_split(config.eval.split, path)
        if found is None:
            raise DataError(f"{path} has neither val nor test to evaluate on; give --split")
        split = found
    config, manifest, truths, detections = evaluate_split(model_dir, checkpoint, split, [*overrides, *ONE_DEVICE])
    return Evaluation(
        checkpoint=checkpoint,
        split_name=split,
        data=config.data,
        split=manifest.splits[split],
        classes=manifest.classes,
        truths=truths,
        detections=detections,
        metrics=evaluate_detections(truths, detections, manifest.classes),
        analysis=analyse_detections(truths, detections, manifest.classes),
    )


@dataclass(frozen=True)
class Pair:
    """One image twice, side by side."""

    left: Picture
    right: Picture


def draw_galleries(evaluation: Evaluation) -> list[tuple[str, str, list[Pair]]]:
    """(title, what it means, pairs) of the best, the worst and the most confusing images; none is in two."""
    ranked = evaluation.analysis.ranked
    shown: set[int] = set()
    chosen: dict[str, list[int]] = {}
    for name, order in (("confusing", ranked.confusing), ("worst", ranked.worst), ("best", ranked.best)):
        chosen[name] = [image for image in order if image not in shown][:GALLERY]
        shown |= set(chosen[name])
    records = read_chosen(evaluation.data, evaluation.split, shown)
    drawn = {image: draw_pair(evaluation, image, records[image]) for image in shown}
    titles = (
        ("worst", "Worst", "Lowest F1: objects not found, detections that are wrong."),
        ("confusing", "Most confusing", "Where the model is surest and wrong. Look for missing annotations here."),
        ("best", "Best", "Highest F1, of equals those with most objects."),
    )
    return [(title, text, [drawn[image] for image in chosen[name]]) for name, title, text in titles]


def draw_pair(evaluation: Evaluation, image: int, record: Record) -> Pair:
    """Annotations beside detections above the thresholds of their classes."""
    matches = evaluation.analysis.matches.above(evaluation.analysis.thresholds)
    matches = matches.select(matches.found.images == image)
    kinds = classify_detections(matches).tolist()
    found, detections, truth = matches.found, evaluation.detections[image], evaluation.truths[image]
    first = int(np.searchsorted(matches.objects.images, image))
    hit = {int(index) - first for index, kind in zip(found.same_object, kinds, strict=True) if kind == HIT}
    pixels = Image.open(io.BytesIO(record.encoded))
    shape = (truth.height, truth.width)
    left = []
    for index, (box, label) in enumerate(zip(truth.objects.boxes, truth.objects.labels, strict=True)):
        counted = matches.objects.counted[first + index]
        style = "truth" if index in hit else "wrong" if counted else "crowd"
        left.append(Frame(box, style, evaluation.classes[label - 1]))
    right = []
    for row, label, score, kind in zip(found.rows, found.labels, found.scores, kinds, strict=True):
        name = f"{evaluation.classes[label - 1]} {score:.2f}"
        style = {HIT: "right", IGNORED: "crowd"}.get(kind, "wrong")
        word = "" if style == "right" else KIND_WORDS.get(kind, kind)
        right.append(Frame(detections.boxes[row], style, f"{name} {word}".strip(), f"{name}, {kind}"))
    wrong = Counter(kind for frame, kind in zip(right, kinds, strict=True) if frame.style == "wrong")
    counted = int(matches.objects.counted[matches.objects.images == image].sum())
    told = f"{len(hit)} of {counted} found; wrong: "
    told += ", ".join(f"{count} {kind}" for kind, count in wrong.most_common()) or "none"
    return Pair(
        Picture(draw_frames(pixels, left, f"annotations of {record.filename}", shape), record.filename),
        Picture(
            draw_frames(pixels, right, f"detections on {record.filename}", shape),
            told,
        ),
    )


def draw_mined(model_dir: str, checkpoint: str, config: Config, manifest: Manifest) -> list[Pair]:
    """Training images with the anchors the loss looks at; mining is that of `mining.scope: image`."""
    model = load_trained_model(model_dir, checkpoint, config, len(manifest.classes))
    maker = TargetMaker.create(config.anchors, config.matching, config.model.input_size)
    split = manifest.split(TRAIN_SPLIT, config.data.dir)
    count = split.views[0].examples
    chosen = np.linspace(0, count - 1, min(ANCHOR_PICTURES, count)).round().astype(int).tolist()
    pictures = []
    for record in read_chosen(config.data, split, set(chosen)).values():
        objects = record.objects
        # As the config has them: the records may hold those of other anchors, for online targets.
        targets = maker.matcher.match(objects.boxes, objects.labels, objects.is_crowd)
        batch = SparseTargets(
            tf.constant(targets.anchors[None], tf.int32),
            tf.constant(targets.labels[None], tf.int32),
            tf.constant(targets.offsets[None]),
            tf.constant(targets.ignored[None], tf.int32),
        )
        quota = count_targets(batch, len(maker.anchors), config.mining).quota
        image = decode_image(tf.constant(record.encoded), config.model.input_size)
        outputs = model(normalize_image(image[None]), training=False)
        losses = multibox_losses(
            outputs["logits"],
            outputs["offsets"],
            batch,
            config.loss,
            lambda values, candidates, quota=quota: mine_per_image(values, candidates, quota),
        )
        mined = np.flatnonzero(losses.negatives[0].numpy())
        # Mining's own order: the likelier an object, the harder.
        background = tf.nn.log_softmax(outputs["logits"][0])[:, 0].numpy()
        mined = mined[np.argsort(background[mined], kind="stable")]
        record = replace(record, targets=targets)
        pictures.append(Pair(draw_anchors(record, maker, manifest.classes), draw_negatives(record, maker, mined)))
    return pictures


def draw_first_batch(config: Config, manifest: Manifest) -> list[Picture]:
    """The first training batch after every augmentation, with the boxes that its targets encode.

    Raises:
      DataError, UsageError: if the data does not fit the config.
    """
    plan = plan_training(config, manifest.split(TRAIN_SPLIT, config.data.dir))
    size = min(BATCH_PICTURES, config.train.global_batch_size)
    try:
        batch = next(iter(training_batches(config, plan, size, 0)))
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
        raise DataError(f"{config.data.dir}: a record cannot be read: {first_line(error)}") from None
    pixels = (apply_color_map(normalize_image(batch.images), batch.color_maps).numpy() + 1) * 127.5
    anchors = TargetMaker.create(config.anchors, config.matching, config.model.input_size).anchors
    targets = SparseTargets(*(part.numpy() for part in batch.targets))
    pictures = []
    for row in range(size):
        real = targets.anchors[row] >= 0
        boxes = decode_boxes(
            targets.offsets[row][real],
            anchors[targets.anchors[row][real]],
            config.anchors.center_variance,
            config.anchors.size_variance,
        )
        # Every positive of an object encodes the object's box, up to rounding.
        _, first = np.unique(boxes.round(3), axis=0, return_index=True)
        labels = targets.labels[row][real]
        frames = [Frame(boxes[index], "truth", manifest.classes[labels[index] - 1]) for index in first]
        image = Image.fromarray(pixels[row].round().astype(np.uint8))
        drawing = draw_frames(image, frames, f"image {row + 1} of the first training batch", side=BATCH_SIDE)
        pictures.append(Picture(drawing, f"{real.sum()} positive"))
    return pictures
