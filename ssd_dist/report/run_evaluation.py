"""Evaluates the checkpoint of a run and draws its images: detections, mined negatives and the first training batch.

checkpoint -> detections -> metrics, error analysis -> galleries
checkpoint, training records -> mined negatives
first training batch -> images with the boxes of its targets
"""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from ssd_dist.core.boxes import decode_boxes
from ssd_dist.core.config import Config, DataConfig, LossConfig, MiningConfig
from ssd_dist.core.errors import CheckpointError, DataError, first_line
from ssd_dist.core.manifest import MANIFEST_NAME, TRAIN_SPLIT, Manifest, Split
from ssd_dist.core.matching import Targets
from ssd_dist.core.records import Record
from ssd_dist.core.stage_line import SILENT, StageLine
from ssd_dist.core.storage import join
from ssd_dist.data.augmentation import apply_color_map
from ssd_dist.data.batch import SparseTargets
from ssd_dist.data.decoding import decode_jpeg
from ssd_dist.data.pipeline import plan_training, training_batches
from ssd_dist.data.shard_files import load_manifest
from ssd_dist.evaluation.analysis import Analysis, analyse_detections
from ssd_dist.evaluation.baseline import evaluate_constant_box
from ssd_dist.evaluation.detections import Detections, GroundTruth
from ssd_dist.evaluation.error_types import IGNORED, NAMES, TRUE_POSITIVE, classify_detections
from ssd_dist.evaluation.metrics import Metrics, evaluate_detections
from ssd_dist.inference.trained_model import evaluate_split, load_trained_model
from ssd_dist.model.detector import normalize_image
from ssd_dist.report.anchor_images import CaptionedImage, draw_anchors, draw_negatives
from ssd_dist.report.box_overlay import OverlayBox, draw_overlay
from ssd_dist.report.dataset_facts import TargetMaker, read_selected
from ssd_dist.runs.checkpoints import locate_checkpoint
from ssd_dist.training.losses import multibox_losses
from ssd_dist.training.mining import mine_per_image
from ssd_dist.training.targets import count_targets

# Numbers of images per section of the report.
GALLERY_IMAGES, MINING_IMAGES, BATCH_IMAGES = 4, 4, 16
# Side of an image of the training batch, in pixels.
BATCH_SIDE = 200
# Suffixes of the labels of detections that are not true positives; none for background, the most frequent type.
KIND_LABELS = {
    "localisation": "low IoU",
    "class": "wrong class",
    "both": "wrong class, low IoU",
    "background": "",
    IGNORED: "ignored",
}
# The report is built in one process on one device, whatever cluster the run was trained on.
ONE_DEVICE = ("cluster.strategy=one_device", "cluster.logical_cpus=0")


@dataclass(frozen=True)
class Evaluation:
    """The results of a checkpoint on a split; each list has one entry per image."""

    checkpoint: str
    split_name: str
    data: DataConfig
    split: Split
    classes: tuple[str, ...]
    ground_truths: list[GroundTruth]
    detections: list[Detections]
    metrics: Metrics
    analysis: Analysis

    def as_dict(self) -> dict[str, Any]:
        """Returns metrics and analysis as the JSON values of `ssd-evaluate`."""
        baseline = evaluate_constant_box(self.ground_truths, self.classes)
        return self.metrics.as_dict() | {"analysis": self.analysis.as_dict(), "constant_box": baseline}


def choose_checkpoint(model_dir: str, requested: str) -> str:
    """Returns the checkpoint to evaluate; `auto` selects `best` if it exists, else `last`.

    Raises:
      CheckpointError: if `requested` is `auto` and the run has no checkpoint.
    """
    if requested != "auto":
        return requested
    for name in ("best", "last"):
        try:
            locate_checkpoint(model_dir, name)
        except CheckpointError:
            continue
        return name
    raise CheckpointError(f"{model_dir}: the run has no checkpoint yet; train it first")


def choose_split(data: DataConfig, eval_split: str, requested: str) -> str:
    """Returns the split to evaluate; `auto` selects the split that training evaluates on.

    Args:
      data: the data of the run.
      eval_split: `eval.split` of the run.
      requested: name of a split, or `auto`.

    Raises:
      DataError: if `requested` is `auto` and the data has no split to evaluate on.
    """
    if requested != "auto":
        return requested
    path = join(data.dir, MANIFEST_NAME)
    found = load_manifest(data).eval_split(eval_split, path)
    if found is None:
        raise DataError(f"{path}: the data has neither a val nor a test split; choose one with --split")
    return found


def evaluate_run(
    model_dir: str, checkpoint: str, split: str, overrides: Sequence[str], stages: StageLine = SILENT
) -> Evaluation:
    """Evaluates a checkpoint of a run on a split; `stages` shows the progress.

    Raises:
      CheckpointError: if the checkpoint does not exist or was trained on other classes.
      DataError: if the data is missing or does not fit the model.
      UsageError: if an override is not valid.
    """
    overrides = [*overrides, *ONE_DEVICE]
    config, manifest, ground_truths, detections = evaluate_split(model_dir, checkpoint, split, overrides, stages)
    return Evaluation(
        checkpoint=checkpoint,
        split_name=split,
        data=config.data,
        split=manifest.splits[split],
        classes=manifest.classes,
        ground_truths=ground_truths,
        detections=detections,
        metrics=evaluate_detections(ground_truths, detections, manifest.classes),
        analysis=analyse_detections(ground_truths, detections, manifest.classes),
    )


@dataclass(frozen=True)
class ImagePair:
    """Two drawings of one image, shown side by side."""

    left: CaptionedImage
    right: CaptionedImage


def draw_galleries(evaluation: Evaluation) -> list[tuple[str, str, list[ImagePair]]]:
    """Draws the worst images, the most confident errors and the best images, as (title, caption, image pairs).

    No image is in two galleries.
    """
    ranked = evaluation.analysis.ranked
    shown: set[int] = set()
    selected: dict[str, list[int]] = {}
    for name, order in (("confusing", ranked.confusing), ("worst", ranked.worst), ("best", ranked.best)):
        selected[name] = [image for image in order if image not in shown][:GALLERY_IMAGES]
        shown |= set(selected[name])
    records = read_selected(evaluation.data, evaluation.split, shown)
    drawn = {image: draw_pair(evaluation, image, records[image]) for image in shown}
    titles = (
        ("worst", "Worst images", "Images with the lowest F1: missed objects and false positives."),
        (
            "confusing",
            "Most confident errors",
            "Images with the false positives of the highest scores. Check these images for missing annotations.",
        ),
        ("best", "Best images", "Images with the highest F1; ties go to the image with more objects."),
    )
    return [(title, text, [drawn[image] for image in selected[name]]) for name, title, text in titles]


def draw_pair(evaluation: Evaluation, image: int, record: Record) -> ImagePair:
    """Draws ground truth on the left, and detections above the thresholds of their classes on the right.

    Args:
      evaluation: the results.
      image: index of the image in the split.
      record: its record.
    """
    matches = evaluation.analysis.matches.above_thresholds(evaluation.analysis.thresholds)
    matches = matches.select(matches.detections.images == image)
    kinds = classify_detections(matches).tolist()
    found, detections, annotated = matches.detections, evaluation.detections[image], evaluation.ground_truths[image]
    first = int(np.searchsorted(matches.objects.images, image))
    pairs = zip(found.same_object.tolist(), kinds, strict=True)
    detected = {index - first for index, kind in pairs if kind == TRUE_POSITIVE}
    pixels = Image.open(io.BytesIO(record.encoded))
    shape = (annotated.height, annotated.width)
    left = []
    for index, (box, label) in enumerate(zip(annotated.objects.boxes, annotated.objects.labels, strict=True)):
        counted = matches.objects.counted[first + index]
        style = "ground-truth" if index in detected else "wrong" if counted else "crowd"
        left.append(OverlayBox(box, style, evaluation.classes[label - 1]))
    right = []
    for row, label, score, kind in zip(found.rows, found.labels, found.scores, kinds, strict=True):
        name = f"{evaluation.classes[label - 1]} {score:.2f}"
        style = {TRUE_POSITIVE: "correct", IGNORED: "crowd"}.get(kind, "wrong")
        suffix = "" if style == "correct" else KIND_LABELS.get(kind, kind)
        tooltip = f"{name}, {'true positive' if style == 'correct' else NAMES.get(kind, kind)}"
        right.append(OverlayBox(detections.boxes[row], style, f"{name} {suffix}".strip(), tooltip))
    wrong = Counter(kind for box, kind in zip(right, kinds, strict=True) if box.style == "wrong")
    counted = int(matches.objects.counted[matches.objects.images == image].sum())
    caption = f"{len(detected)} of {counted} objects detected; false positives: "
    caption += ", ".join(f"{count} {NAMES.get(kind, kind)}" for kind, count in wrong.most_common()) or "none"
    return ImagePair(
        CaptionedImage(draw_overlay(pixels, left, f"ground truth of {record.filename}", shape), record.filename),
        CaptionedImage(draw_overlay(pixels, right, f"detections in {record.filename}", shape), caption),
    )


def draw_mined(model_dir: str, checkpoint: str, config: Config, manifest: Manifest) -> list[ImagePair]:
    """Draws training images with their positive anchors on the left and their mined negatives on the right."""
    model = load_trained_model(model_dir, checkpoint, config, len(manifest.classes))
    maker = TargetMaker.create(config.anchors, config.matching, config.model.input_size)
    split = manifest.split(TRAIN_SPLIT, config.data.dir)
    count = split.views[0].examples
    selected = np.linspace(0, count - 1, min(MINING_IMAGES, count)).round().astype(int).tolist()
    pairs = []
    for record in read_selected(config.data, split, set(selected)).values():
        objects = record.objects
        # Matched again with the config of the run: with online targets, the records may hold other anchors.
        targets = maker.matcher.match(objects.boxes, objects.labels, objects.is_crowd)
        image = decode_jpeg(tf.constant(record.encoded), config.model.input_size)
        outputs = model(normalize_image(image[None]), training=False)
        mined = find_mined_negatives(outputs, targets, len(maker.anchors), config.mining, config.loss)
        record = replace(record, targets=targets)
        pairs.append(ImagePair(draw_anchors(record, maker, manifest.classes), draw_negatives(record, maker, mined)))
    return pairs


def find_mined_negatives(
    outputs: dict[str, tf.Tensor], targets: Targets, anchor_count: int, mining: MiningConfig, loss: LossConfig
) -> np.ndarray:
    """Returns the anchors that hard negative mining selects in one image, as with `mining.scope: image`.

    Args:
      outputs: `logits` [1, A, C + 1] and `offsets` [1, A, 4] of the image.
      targets: the targets of the image.
      anchor_count: number of anchors A.
      mining: sets the number of negatives.
      loss: sets the loss by which the anchors are ranked.

    Returns:
      int64 [M], indices of anchors in order of decreasing probability of an object.
    """
    batch = SparseTargets(
        tf.constant(targets.anchors[None], tf.int32),
        tf.constant(targets.labels[None], tf.int32),
        tf.constant(targets.offsets[None]),
        tf.constant(targets.ignored[None], tf.int32),
    )
    quota = count_targets(batch, anchor_count, mining).quota

    def mine(losses: tf.Tensor, candidates: tf.Tensor) -> tf.Tensor:
        return mine_per_image(losses, candidates, quota)

    losses = multibox_losses(outputs["logits"], outputs["offsets"], batch, loss, mine)
    mined = np.flatnonzero(losses.negatives[0].numpy())
    background = tf.nn.log_softmax(outputs["logits"][0])[:, 0].numpy()
    return mined[np.argsort(background[mined], kind="stable")]


def draw_first_batch(config: Config, manifest: Manifest) -> list[CaptionedImage]:
    """Draws images of the first training batch after augmentation, with the boxes that their targets encode.

    Raises:
      DataError: if a record is damaged, or the data does not fit the config.
      UsageError: if batch size or shards do not fit the config.
    """
    plan = plan_training(config.data, config.train, manifest.split(TRAIN_SPLIT, config.data.dir))
    size = min(BATCH_IMAGES, config.train.global_batch_size)
    try:
        batches = training_batches(config.data, config.anchors, config.matching, config.model.input_size, plan, size, 0)
        batch = next(iter(batches))
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
        raise DataError(
            f"{config.data.dir}: a record cannot be read: {first_line(error)}; prepare the data again"
        ) from None
    pixels = (apply_color_map(normalize_image(batch.images), batch.color_maps).numpy() + 1) * 127.5
    maker = TargetMaker.create(config.anchors, config.matching, config.model.input_size)
    targets = SparseTargets(*(part.numpy() for part in batch.targets))
    return [_draw_training_image(pixels[row], targets, row, maker, manifest.classes) for row in range(size)]


def _draw_training_image(
    pixels: np.ndarray, targets: SparseTargets, row: int, maker: TargetMaker, classes: Sequence[str]
) -> CaptionedImage:
    """Draws one image of a batch; `pixels` is float [S, S, 3] in 0..255."""
    positive = targets.anchors[row] >= 0
    boxes = decode_boxes(
        targets.offsets[row][positive],
        maker.anchors[targets.anchors[row][positive]],
        maker.anchor_config.center_variance,
        maker.anchor_config.size_variance,
    )
    # All positive anchors of an object encode the same box, up to rounding: draw it once.
    _, first = np.unique(boxes.round(3), axis=0, return_index=True)
    labels = targets.labels[row][positive]
    overlay = [OverlayBox(boxes[index], "ground-truth", classes[labels[index] - 1]) for index in first]
    image = Image.fromarray(pixels.round().astype(np.uint8))
    drawing = draw_overlay(image, overlay, f"image {row + 1} of the first training batch", side=BATCH_SIDE)
    return CaptionedImage(drawing, f"{positive.sum()} positive anchors")
