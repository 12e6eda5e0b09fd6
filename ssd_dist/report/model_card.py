"""Writes RUN/model_card.md: what a trained detector was made from, what it takes, how good it is, and its limits.

Follows the sections of Mitchell et al. 2019, "Model Cards for Model Reporting". Facts that the run does not contain,
such as the license of the data, are stated as "not stated"; a person who publishes the model fills them in.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ssd_dist.core.errors import DataError
from ssd_dist.core.manifest import MANIFEST_NAME, TRAIN_SPLIT, Split
from ssd_dist.core.printable import NAME_LENGTH, make_printable
from ssd_dist.core.storage import write_text
from ssd_dist.evaluation.metrics_table import describe_split
from ssd_dist.report.run_facts import RunFacts, read_run

MODEL_CARD_NAME = "model_card.md"
EVALUATIONS_NAME = "evaluations.json"
NOT_STATED = "not stated"
METRICS = ("coco/AP", "coco/AP50", "voc/mAP")


def write_model_card(model_dir: str) -> None:
    """Writes the model card of a run, or writes it again with the evaluations made since.

    Raises:
      CheckpointError: if the folder is not a run.
      OSError: if the model card cannot be written.
    """
    run = read_run(model_dir, [])
    sections = (_describe_model(run), _describe_data(run), _describe_metrics(run), _describe_limits(run))
    lines = [f"# Model card: {_escape(run.name)}", "", *(line for section in sections for line in section)]
    write_text(Path(model_dir) / MODEL_CARD_NAME, "\n".join(lines).rstrip() + "\n")


def record_evaluation(model_dir: str, split: str, step: int, images: int, metrics: dict[str, Any]) -> None:
    """Adds a result of the best model to RUN/evaluations.json, and writes the model card again if the run has one.

    Results of an earlier best model are removed.

    Args:
      model_dir: folder of the run.
      split: the split that was evaluated.
      step: the step of the best model that was evaluated; a run that is still training may have a better one now.
      images: number of images of the split.
      metrics: the metrics.

    Raises:
      CheckpointError: if the folder is not a run.
      OSError: if a file cannot be written.
    """
    earlier = [row for row in _read_evaluations(model_dir, step) if row["split"] != split]
    row = {"split": split, "step": step, "images": images} | {name: metrics[name] for name in METRICS}
    rows = sorted([*earlier, row], key=lambda row: row["split"])
    write_text(Path(model_dir) / EVALUATIONS_NAME, json.dumps(rows, indent=1) + "\n")
    if (Path(model_dir) / MODEL_CARD_NAME).exists():
        write_model_card(model_dir)


def _read_evaluations(model_dir: str, step: int | None) -> list[dict[str, Any]]:
    """Returns the recorded evaluations of the best model, which is that of `step`; an unreadable file has none."""
    try:
        rows = json.loads((Path(model_dir) / EVALUATIONS_NAME).read_text())
        return [row for row in rows if {"split", "step", "images", *METRICS} <= row.keys() and row["step"] == step]
    except (OSError, ValueError, TypeError, AttributeError):
        return []


def _describe_model(run: RunFacts) -> Iterator[str]:
    model, environment = run.config.model, run.environment
    yield f"An object detector for {_count(len(run.manifest.classes), 'class', 'classes')}, made with ssd_dist."
    yield ""
    yield "## Model"
    yield ""
    yield f"- Architecture: SSD with MobileNetV2 of width {model.width:g}, {model.head} head"
    yield (
        f"- Input: one RGB image, resized to {model.input_size} x {model.input_size} pixels without keeping its aspect "
        "ratio, values scaled from 0..255 to -1..1. Exports take RGB pixels as uint8 and scale them themselves."
    )
    yield "- Output: upright boxes with class and score; `export.json` of an export describes its outputs"
    yield f"- Initial weights: {_describe_weights(run)}"
    yield f"- Training: {run.last_step:,} of {run.total_steps:,} steps of {run.config.train.global_batch_size} images"
    versions = [f"{name} {environment[name]}" for name in ("ssd-dist", "tensorflow") if name in environment]
    yield f"- Versions: {', '.join(versions) or NOT_STATED}"
    yield f"- License of the model: {NOT_STATED}; it depends on the licenses of data and initial weights"
    yield ""


def _describe_weights(run: RunFacts) -> str:
    weights, source = run.config.backbone.weights, run.config.model.init_from
    if source:
        return f"taken over from {_escape(source)}; license {NOT_STATED} here, see the model card of the source"
    if weights == "none":
        return "random; nothing was pretrained"
    if weights == "imagenet":
        return (
            "MobileNetV2 of Keras (Apache License 2.0), trained on ImageNet, whose terms allow research and education"
        )
    return f"{_escape(weights)}; license {NOT_STATED}"


def _describe_data(run: RunFacts) -> Iterator[str]:
    text = (Path(run.model_dir) / MANIFEST_NAME).read_bytes()
    yield "## Data"
    yield ""
    yield f"- Folder: {_escape(run.config.data.dir)}"
    yield f"- SHA-256 of dataset.json: `{hashlib.sha256(text).hexdigest()}`"
    yield f"- Fingerprint of anchors and matching: `{run.manifest.fingerprint}`"
    yield f"- License of the data: {NOT_STATED}"
    yield ""
    splits = run.manifest.splits
    yield from _table(
        ("split", "images", "objects", "rejected images", "rejected boxes"),
        [
            (_escape(name), split.images, split.boxes, _rejected(split)[0], _rejected(split)[1])
            for name, split in splits.items()
        ],
    )
    yield from _table(
        ("class", *(f"objects in {_escape(name)}" for name in splits)),
        [
            (_escape(name), *(split.views[0].objects_per_class.get(name, 0) for split in splits.values()))
            for name in run.manifest.classes
        ],
    )


def _rejected(split: Split) -> tuple[int, int]:
    return sum(split.rejected_images.values()), sum(split.rejected_boxes.values())


def _describe_metrics(run: RunFacts) -> Iterator[str]:
    yield "## Metrics"
    yield ""
    rows: list[Sequence[Any]] = []
    step = run.best["step"] if run.best else None
    best = next((row for row in run.evaluations.rows if row["step"] == step), None)
    split = _find_eval_split(run)
    if best is not None:
        images = run.manifest.splits[split].images if split in run.manifest.splits else NOT_STATED
        rows.append((_escape(split), f"best, step {step:,}", images, *(_number(best.get(name)) for name in METRICS)))
    others = [row for row in _read_evaluations(run.model_dir, step) if not rows or row["split"] != split]
    for row in others:
        metrics = (_number(row[name]) for name in METRICS)
        rows.append((_escape(describe_split(row["split"])), f"best, step {step:,}", row["images"], *metrics))
    if not rows:
        yield "The run has not been evaluated."
        yield ""
        return
    yield from _table(("split", "checkpoint", "images", "COCO AP", "COCO AP50", "VOC mAP"), rows)
    if best is not None:
        yield (
            f"The checkpoint is the best of {_count(len(run.evaluations.rows), 'evaluation', 'evaluations')} by "
            f"{run.best['metric'] if run.best else ''} on {_escape(split)}, so its metrics there are slightly too high."
        )
        yield ""
        per_class = best.get("per_class")
        if isinstance(per_class, dict):
            yield from _table(
                (f"class, best checkpoint on {_escape(split)}", "objects", "COCO AP", "COCO AP50"),
                [
                    (_escape(name), row.get("objects"), _number(row.get("coco/AP")), _number(row.get("coco/AP50")))
                    for name, row in per_class.items()
                ],
            )


def _find_eval_split(run: RunFacts) -> str:
    try:
        return run.manifest.eval_split(run.config.eval.split, run.config.data.dir) or NOT_STATED
    except DataError:
        return NOT_STATED


def _describe_limits(run: RunFacts) -> Iterator[str]:
    size, smallest = run.config.model.input_size, min(run.config.anchors.sizes)
    train = run.manifest.splits.get(TRAIN_SPLIT)
    yield "## Limits"
    yield ""
    yield "- Detects only the classes above, in images like those of the training split; nothing else was measured."
    yield (
        f"- Objects much smaller than {smallest * size:.0f} pixels after resizing to {size} x {size}, the size of the "
        "smallest anchors, are found less reliably."
    )
    yield "- Scores are not probabilities: choose a threshold per class with `ssd-evaluate --output=metrics.json`."
    if train is not None and train.images < 1000:
        yield f"- Trained on {_count(train.images, 'image', 'images')}: expect errors on other scenes."
    yield "- Not evaluated for use where errors harm people, or for fairness between groups of people."


def _table(header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    for row in (header, ["---"] * len(header), *rows):
        yield "| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row) + " |"
    yield ""


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "-"


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _escape(text: str) -> str:
    r"""Returns a name of unknown origin as text of a Markdown line.

    >>> _escape("a|b `<i>` [c](d)")
    'a\\|b \\`&lt;i>\\` \\[c](d)'
    """
    text = make_printable(text, NAME_LENGTH).replace("<", "&lt;")
    return re.sub(r"([\\|`*\[])", r"\\\1", text)
