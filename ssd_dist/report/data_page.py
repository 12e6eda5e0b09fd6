"""The page of a prepared data set: is it what I meant, and do the anchors fit it?

dataset.json and records -> facts (dataset_facts) -> charts, tables, pictures -> one HTML file
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from ssd_dist.core.config import DataConfig
from ssd_dist.core.errors import DataError
from ssd_dist.core.manifest import MANIFEST_NAME, Manifest
from ssd_dist.data.shard_files import join, load_manifest
from ssd_dist.evaluation.visualization import class_color
from ssd_dist.report.anchor_fit import describe_anchors, fit_anchors
from ssd_dist.report.anchor_images import Picture, draw_anchors
from ssd_dist.report.charts import Axes, columns, histogram, shape_chart
from ssd_dist.report.dataset_facts import SplitFacts, TargetMaker, examine_split, read_chosen
from ssd_dist.report.html_page import SHOWN_CLASSES, render_page, write_page
from ssd_dist.report.svg import format_number

# Whole rows of three.
SAMPLES, HARD_SAMPLES = 9, 6
# Dots in the chart of shapes: more would be a blot.
MOST_DOTS = 1500
MOST_CLASSES = 100
SMALL_CHART = 264
# COCO's size classes, in pixels of the original image.
SMALL, MEDIUM = 32.0, 96.0


@dataclass(frozen=True)
class ClassRow:
    """A line of the table of classes; `shares` are of the largest class, for the bars."""

    name: str
    color: str
    counts: list[int]
    shares: list[float]
    side: float | None
    unfit: float | None
    few: float | None


def build_data_page(folder: str, output: str, most: int) -> None:
    """Writes the page of the data set in `folder`, examining at most `most` records of each split.

    Raises:
      DataError: if there is no data set, or a shard of it is damaged.
      UsageError: if the page cannot be written.
    """
    manifest = load_manifest(DataConfig(dir=folder))
    maker = TargetMaker.of(manifest)
    facts = [examine_split(folder, name, split, maker, most) for name, split in order_splits(manifest)]
    write_page(output, render_data_page(folder, manifest, maker, facts))


def write_fitted_anchors(folder: str, output: str, most: int) -> str:
    """Writes a config with anchors fitted to the objects of the first split; returns what they gain, in a line.

    Raises:
      DataError: if there is no data, or too few objects. UsageError: if the file cannot be written.
    """
    manifest = load_manifest(DataConfig(dir=folder))
    maker = TargetMaker.of(manifest)
    splits = order_splits(manifest)
    if not splits:
        raise DataError(f"{folder} has no split to fit anchors to; prepare one first")
    name, split = splits[0]
    boxes = examine_split(folder, name, split, maker, most).objects.boxes
    anchors, before, after = fit_anchors(boxes, maker.anchor_config, maker.matching, manifest.image_size)
    write_page(output, describe_anchors(anchors, before, after, f"{folder}, split {name}"))
    return f"an anchor fits {after.share:.1%} of the objects, {before.share:.1%} with those it was prepared with"


def order_splits(manifest: Manifest) -> list[tuple[str, Any]]:
    """The splits, the one that is trained on first."""
    return sorted(manifest.splits.items(), key=lambda item: (item[0] != "train", item[0]))


def render_data_page(folder: str, manifest: Manifest, maker: TargetMaker, facts: Sequence[SplitFacts]) -> str:
    """The page as HTML; the first split is the one whose objects are charted."""
    main = facts[0] if facts else None
    return render_page(
        "data.html",
        title=folder,
        manifest=manifest,
        manifest_path=join(folder, MANIFEST_NAME),
        facts=facts,
        main=main,
        headline=_headline(facts, maker),
        notes=_notes(facts),
        class_rows=_class_rows(manifest, facts, maker),
        shown_classes=SHOWN_CLASSES,
        hidden_classes=max(0, len(manifest.classes) - MOST_CLASSES),
        size_charts=_size_charts(main) if main else [],
        anchor_charts=_anchor_charts(main, maker) if main else [],
        orphans=_orphan_rows(facts),
        pictures=_pictures(folder, main, maker, manifest.classes) if main else ([], []),
        positive_iou=maker.matching.positive_iou,
    )


def _headline(facts: Sequence[SplitFacts], maker: TargetMaker) -> list[tuple[str, str]]:
    numbers = [
        ("images", format_number(sum(f.split.images for f in facts))),
        ("objects", format_number(sum(f.split.boxes for f in facts))),
    ]
    if facts and len(facts[0].objects.labels):
        objects = facts[0].objects
        numbers += [
            ("objects that an anchor fits", f"{_share_fit(objects.best_iou, maker):.1%}"),
            ("positives an object", f"{objects.positives.mean():.1f}"),
        ]
    rejected = sum(f.split.images_read - f.split.images + f.split.boxes_read - f.split.boxes for f in facts)
    return [*numbers, ("rejected", format_number(rejected))]


def _share_fit(best_iou: np.ndarray, maker: TargetMaker) -> float:
    return float((best_iou > maker.matching.positive_iou).mean()) if len(best_iou) else 1.0


def _notes(facts: Sequence[SplitFacts]) -> list[str]:
    return [
        f"Split {f.name}: charts show the first {f.examined:,} of {f.split.images:,} records "
        "(--max_images), counts are of all."
        for f in facts
        if f.examined < f.split.images
    ]


def _class_rows(manifest: Manifest, facts: Sequence[SplitFacts], maker: TargetMaker) -> list[ClassRow]:
    counts = np.array(
        [[f.split.views[0].objects_per_class.get(name, 0) for f in facts] for name in manifest.classes], float
    ).reshape(len(manifest.classes), len(facts))
    largest = np.maximum(counts.max(axis=0, initial=0), 1)
    rows = []
    for index in np.argsort(-counts[:, 0] if len(facts) else np.zeros(len(manifest.classes)), kind="stable"):
        objects = facts[0].objects if facts else None
        own = objects.labels == index + 1 if objects is not None else np.zeros(0, bool)
        some = objects is not None and bool(own.any())
        rows.append(
            ClassRow(
                name=manifest.classes[index],
                color="#{:02x}{:02x}{:02x}".format(*class_color(int(index) + 1)),
                counts=counts[index].astype(int).tolist(),
                shares=(counts[index] / largest).tolist(),
                side=float(np.median(np.sqrt(objects.sides[own].prod(axis=1)))) if some else None,
                unfit=1 - _share_fit(objects.best_iou[own], maker) if some else None,
                few=float((objects.positives[own] < 2).mean()) if some else None,
            )
        )
    return rows[:MOST_CLASSES]


def _size_charts(facts: SplitFacts) -> list[tuple[str, Markup, str]]:
    """(title, chart, sentence) of what the objects look like."""
    objects = facts.objects
    sides = objects.sides
    scale = np.sqrt(sides.prod(axis=1))
    step, names, per_image = count_in_steps(facts.objects_per_image)
    ratios = np.log2(np.maximum(sides[:, 0], 1e-6) / np.maximum(sides[:, 1], 1e-6))
    ratio_counts = np.histogram(np.clip(ratios, -3.49, 3.49), np.arange(-3.5, 4, 1))[0]
    sizes = np.array([(objects.pixels < SMALL).sum(), 0, (objects.pixels >= MEDIUM).sum()])
    sizes[1] = len(objects.pixels) - sizes.sum()
    empty = int((facts.objects_per_image == 0).sum())
    return [
        (
            "Objects in an image",
            columns(
                "images by number of objects",
                names,
                per_image,
                Axes("objects", "images", width=SMALL_CHART),
            ),
            f"{empty:,} images without an object, {facts.objects_per_image.max(initial=0)} objects at most"
            + (f"; each column is {step} wide." if step > 1 else "."),
        ),
        (
            "Size",
            histogram(
                "objects by size",
                np.linspace(0, 1, 26),
                np.histogram(np.clip(scale, 0, 1), np.linspace(0, 1, 26))[0],
                Axes("√(width × height), share of the image", "objects", width=SMALL_CHART),
            ),
            f"Half of the objects are below {np.median(scale):.0%} of the side." if len(scale) else "",
        ),
        (
            "Shape",
            columns(
                "objects by ratio of width to height",
                ["1:8", "1:4", "1:2", "1:1", "2:1", "4:1", "8:1"],
                ratio_counts,
                Axes("width : height, as the anchors see it", "objects", width=SMALL_CHART),
            ),
            "In the square input, where the anchors live; each column is a factor of 2 wide.",
        ),
        (
            "COCO's size classes",
            columns(
                "objects by COCO size class",
                ["small, < 32²", "medium", "large, ≥ 96²"],
                sizes,
                Axes("area in pixels of the original", "objects", width=SMALL_CHART),
            ),
            "Metrics by size (AP_small, ...) are of these.",
        ),
    ]


def count_in_steps(numbers: np.ndarray) -> tuple[int, list[str], np.ndarray]:
    """Counts of numbers [N] in eleven columns, the last of them open, whose round width leaves few for the last.

    Returns the width, what each column begins with, and the counts.
    """
    usual = np.percentile(numbers, 95) if len(numbers) else 0
    step = next(
        width
        for power in itertools.count()
        for width in (10**power, 2 * 10**power, 5 * 10**power)
        if usual < 10 * width
    )
    counts = np.bincount(np.minimum(numbers // step, 10), minlength=11)
    return step, [*(str(column * step) for column in range(10)), f"{10 * step}+"], counts


def _anchor_charts(facts: SplitFacts, maker: TargetMaker) -> list[tuple[str, Markup, str]]:
    """(title, chart, sentence) of how anchors and objects meet."""
    objects = facts.objects
    bound = maker.matching.positive_iou
    fits = objects.best_iou > bound
    edges = np.linspace(0, 1, 41)
    positives = np.bincount(np.minimum(objects.positives, 12), minlength=13)
    dots = np.linspace(0, max(len(fits) - 1, 0), min(len(fits), MOST_DOTS)).round().astype(int)
    shapes = np.unique((maker.anchors[:, 2:] - maker.anchors[:, :2])[:, ::-1].round(4), axis=0)
    smallest = float(np.quantile(objects.sides, 0.005)) if len(objects.sides) else 1.0
    low = max(0.9 * min(0.05, smallest), 0.001)
    few = float((objects.positives < 2).mean()) if len(fits) else 0.0
    return [
        (
            "Best IoU of each object",
            histogram(
                "objects by the best IoU any anchor reaches",
                edges,
                np.histogram(objects.best_iou, edges)[0],
                Axes("best IoU of any anchor", "objects"),
                bound,
                "no anchor fits",
            ),
            f"{(~fits).sum():,} of {len(fits):,} objects lie at or below {bound:g}: they keep one anchor, a poor one.",
        ),
        (
            "Positives of each object",
            columns(
                "objects by number of positive anchors",
                [*map(str, range(12)), "12+"],
                positives,
                Axes("positive anchors", "objects"),
                wrong=(0, 1),
            ),
            f"{few:.1%} have fewer than two: few examples to learn their place from.",
        ),
        (
            "Objects among anchor shapes",
            shape_chart("widths and heights of objects and anchors", objects.sides[dots], fits[dots], shapes, low),
            "Dots are objects, orange where no anchor fits; squares are anchor shapes. Orange far from squares: change "
            "anchors.sizes or anchors.aspect_ratios. Orange among squares: the grid is too coarse for that size.",
        ),
    ]


def _orphan_rows(facts: Sequence[SplitFacts]) -> list[tuple[str, list[tuple[int, float]]]]:
    """(rule, for each split the objects without a positive and their share)."""
    rules = {
        "TF Object Detection API: of two with one best anchor the first has it": "first",
        "PyTorch SSDs: the last has it": "last",
        "ssd_dist: the second takes its next best": "",
    }
    rows = []
    for rule, key in rules.items():
        counts = [f.orphans[key] if key else int((f.objects.positives == 0).sum()) for f in facts]
        rows.append((rule, [(c, c / max(1, len(f.objects.labels))) for c, f in zip(counts, facts, strict=True)]))
    return rows


def _pictures(
    folder: str, facts: SplitFacts, maker: TargetMaker, classes: Sequence[str]
) -> tuple[list[Picture], list[Picture]]:
    """Samples spread over the split, and the images whose objects fit the anchors least."""
    spread = np.linspace(0, facts.examined - 1, min(SAMPLES, facts.examined)).round().astype(int).tolist()
    poorest: dict[int, float] = {}
    for record, iou in zip(facts.objects.records.tolist(), facts.objects.best_iou.tolist(), strict=True):
        if iou <= maker.matching.positive_iou:
            poorest[record] = min(iou, poorest.get(record, 1.0))
    hard = sorted(poorest, key=lambda record: (poorest[record], record))[:HARD_SAMPLES]
    records = read_chosen(DataConfig(dir=folder), facts.split, {*spread, *hard})
    return tuple(  # type: ignore[return-value]
        [draw_anchors(records[index], maker, classes) for index in chosen] for chosen in (spread, hard)
    )
