"""Builds the report of a prepared dataset: counts, object sizes, anchor fit, rejections and sample images.

dataset.json and records -> facts (dataset_facts) -> charts, tables, images -> one HTML file
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from ssd_dist.core.config import DataConfig
from ssd_dist.core.errors import DataError
from ssd_dist.core.manifest import MANIFEST_NAME, TRAIN_SPLIT, Manifest, Split
from ssd_dist.core.printable import make_printable
from ssd_dist.core.storage import join
from ssd_dist.data.shard_files import load_manifest
from ssd_dist.evaluation.visualization import class_color
from ssd_dist.report.anchor_fit import describe_anchors, fit_anchors
from ssd_dist.report.anchor_images import CaptionedImage, draw_anchors
from ssd_dist.report.charts import Axes, draw_columns, draw_histogram, draw_shape_chart
from ssd_dist.report.dataset_facts import SplitFacts, TargetMaker, examine_split, read_selected
from ssd_dist.report.html_page import SHOWN_CLASSES, render_page, write_page
from ssd_dist.report.svg import format_number

# Numbers of images: full rows of three.
SAMPLES, POOR_FIT_SAMPLES = 9, 6
# Dots in the chart of shapes; more would merge into one area.
MAX_DOTS = 1500
MAX_CLASSES = 100
# Width of a chart in pixels.
SMALL_CHART = 264
# Bounds of COCO's size classes: square root of the area in pixels of the original image.
SMALL_BOUND, LARGE_BOUND = 32.0, 96.0


@dataclass(frozen=True)
class ClassRow:
    """A row of the class table.

    Attributes:
      name: name of the class.
      color: color of the class as `#rrggbb`.
      counts: number of objects in each split.
      shares: `counts` divided by the counts of the largest class, for the bars.
      images: share of the images of the first split that show it; None if an earlier version prepared the split.
      side: median of sqrt(width x height) in shares of the image; None without objects.
      unfit: share of objects that no anchor fits; None without objects.
      few: share of objects with fewer than two positive anchors; None without objects.
    """

    name: str
    color: str
    counts: list[int]
    shares: list[float]
    images: float | None
    side: float | None
    unfit: float | None
    few: float | None


def build_data_page(folder: str, output: str, limit: int) -> None:
    """Writes the report of a prepared dataset.

    Args:
      folder: the dataset.
      output: HTML file to write.
      limit: maximum number of records to read per split.

    Raises:
      DataError: if the folder holds no dataset, or a shard is damaged.
      UsageError: if the file cannot be written.
    """
    manifest = load_manifest(DataConfig(dir=folder))
    maker = TargetMaker.from_manifest(manifest)
    facts = [examine_split(folder, name, split, maker, limit) for name, split in order_splits(manifest)]
    write_page(output, render_data_page(folder, manifest, maker, facts))


def write_fitted_anchors(folder: str, output: str, limit: int) -> str:
    """Writes a config with anchors fitted to the objects of the first split.

    Args:
      folder: the dataset.
      output: YAML file to write.
      limit: maximum number of records to read.

    Returns:
      A sentence about the fit before and after.

    Raises:
      DataError: if there is no data, or there are too few objects.
      UsageError: if the file cannot be written.
    """
    manifest = load_manifest(DataConfig(dir=folder))
    maker = TargetMaker.from_manifest(manifest)
    splits = order_splits(manifest)
    if not splits:
        raise DataError(f"{folder}: the dataset has no split to fit anchors to; prepare one first")
    name, split = splits[0]
    boxes = examine_split(folder, name, split, maker, limit).objects.boxes
    anchors, before, after = fit_anchors(boxes, maker.anchor_config, maker.matching, manifest.image_size)
    write_page(output, describe_anchors(anchors, before, after, make_printable(f"{folder}, split {name}")))
    return f"the fitted anchors fit {after.share:.1%} of the objects; the anchors of the dataset fit {before.share:.1%}"


def order_splits(manifest: Manifest) -> list[tuple[str, Split]]:
    """Returns the splits by name, with the training split first."""
    return sorted(manifest.splits.items(), key=lambda item: (item[0] != TRAIN_SPLIT, item[0]))


def render_data_page(folder: str, manifest: Manifest, maker: TargetMaker, facts: Sequence[SplitFacts]) -> str:
    """Renders the report as HTML; the charts show the objects of the first split."""
    main = facts[0] if facts else None
    samples, poor_fits = _draw_samples(folder, main, maker, manifest.classes) if main else ([], [])
    return render_page(
        "data.html",
        title=folder,
        manifest=manifest,
        manifest_path=join(folder, MANIFEST_NAME),
        facts=facts,
        main=main,
        headline=_build_headline(facts, maker),
        notes=_note_partial_splits(facts),
        class_rows=_build_class_rows(manifest, facts, maker),
        shown_classes=SHOWN_CLASSES,
        hidden_classes=max(0, len(manifest.classes) - MAX_CLASSES),
        size_charts=_draw_size_charts(main) if main else [],
        anchor_charts=_draw_anchor_charts(main, maker) if main else [],
        orphans=_build_orphan_rows(facts),
        samples=samples,
        poor_fits=poor_fits,
        positive_iou=maker.matching.positive_iou,
    )


def _build_headline(facts: Sequence[SplitFacts], maker: TargetMaker) -> list[tuple[str, str]]:
    """Returns the (label, value) pairs at the top of the report."""
    numbers = [
        ("images", format_number(sum(f.split.images for f in facts))),
        ("objects", format_number(sum(f.split.boxes for f in facts))),
    ]
    if facts and len(facts[0].objects.labels):
        objects = facts[0].objects
        numbers += [
            ("objects with a fitting anchor", f"{_measure_fitting_share(objects.best_iou, maker):.1%}"),
            ("positive anchors per object", f"{objects.positives.mean():.1f}"),
        ]
    rejected = sum(f.split.images_read - f.split.images + f.split.boxes_read - f.split.boxes for f in facts)
    return [*numbers, ("images and objects rejected", format_number(rejected))]


def _measure_fitting_share(best_iou: np.ndarray, maker: TargetMaker) -> float:
    """Returns the share of objects with a fitting anchor; 1 without objects."""
    return float((best_iou > maker.matching.positive_iou).mean()) if len(best_iou) else 1.0


def _note_partial_splits(facts: Sequence[SplitFacts]) -> list[str]:
    """Returns a note for each split of which not all records were read."""
    return [
        f"Split {f.name}: the charts use the first {f.examined:,} of {f.split.images:,} records (--max_images); "
        "the counts cover all records."
        for f in facts
        if f.examined < f.split.images
    ]


def _build_class_rows(manifest: Manifest, facts: Sequence[SplitFacts], maker: TargetMaker) -> list[ClassRow]:
    """Returns the rows of the class table, in order of decreasing objects in the first split."""
    counts = np.array(
        [[f.split.views[0].objects_per_class.get(name, 0) for f in facts] for name in manifest.classes], float
    ).reshape(len(manifest.classes), len(facts))
    largest = np.maximum(counts.max(axis=0, initial=0), 1)
    images, examples = (facts[0].split.views[0].images_per_class, facts[0].split.images) if facts else (None, 0)
    rows = []
    for index in np.argsort(-counts[:, 0] if len(facts) else np.zeros(len(manifest.classes)), kind="stable"):
        objects = facts[0].objects if facts else None
        own = objects.select(objects.labels == index + 1) if objects is not None else None
        some = own if own is not None and len(own.labels) else None
        rows.append(
            ClassRow(
                name=manifest.classes[index],
                color="#{:02x}{:02x}{:02x}".format(*class_color(int(index) + 1)),
                counts=counts[index].astype(int).tolist(),
                shares=(counts[index] / largest).tolist(),
                images=images[manifest.classes[index]] / max(examples, 1) if images else None,
                side=float(np.median(np.sqrt(some.sides.prod(axis=1)))) if some else None,
                unfit=1 - _measure_fitting_share(some.best_iou, maker) if some else None,
                few=float((some.positives < 2).mean()) if some else None,
            )
        )
    return rows[:MAX_CLASSES]


def _draw_size_charts(facts: SplitFacts) -> list[tuple[str, Markup, str]]:
    """Draws the charts of object counts, sizes and shapes, each as (title, chart, caption)."""
    objects = facts.objects
    sides = objects.sides
    scale = np.sqrt(sides.prod(axis=1))
    step, names, per_image = count_in_columns(facts.objects_per_image)
    ratios = np.log2(np.maximum(sides[:, 0], 1e-6) / np.maximum(sides[:, 1], 1e-6))
    ratio_counts = np.histogram(np.clip(ratios, -3.49, 3.49), np.arange(-3.5, 4, 1))[0]
    sizes = np.array([(objects.pixels < SMALL_BOUND).sum(), 0, (objects.pixels >= LARGE_BOUND).sum()])
    sizes[1] = len(objects.pixels) - sizes.sum()
    empty = int((facts.objects_per_image == 0).sum())
    return [
        (
            "Objects per image",
            draw_columns(
                "images by number of objects",
                names,
                per_image,
                Axes("objects", "images", width=SMALL_CHART),
            ),
            f"{empty:,} {'image' if empty == 1 else 'images'} without objects; at most "
            f"{facts.objects_per_image.max(initial=0)} objects per image"
            + (f"; each column covers {step} values." if step > 1 else "."),
        ),
        (
            "Object size",
            draw_histogram(
                "objects by size",
                np.linspace(0, 1, 26),
                np.histogram(np.clip(scale, 0, 1), np.linspace(0, 1, 26))[0],
                Axes("√(width × height), share of the image", "objects", width=SMALL_CHART),
            ),
            f"The median is {np.median(scale):.0%} of the image side." if len(scale) else "",
        ),
        (
            "Aspect ratio",
            draw_columns(
                "objects by aspect ratio",
                ["1:8", "1:4", "1:2", "1:1", "2:1", "4:1", "8:1"],
                ratio_counts,
                Axes("width : height in the model input", "objects", width=SMALL_CHART),
            ),
            "Measured after the image is resized to the square model input, as anchors are. Each column spans a factor "
            "of 2.",
        ),
        (
            "COCO size class",
            draw_columns(
                "objects by COCO size class",
                ["small, < 32²", "medium", "large, ≥ 96²"],
                sizes,
                Axes("area in pixels of the original image", "objects", width=SMALL_CHART),
            ),
            "AP_small, AP_medium and AP_large use these classes.",
        ),
    ]


def count_in_columns(numbers: np.ndarray) -> tuple[int, list[str], np.ndarray]:
    """Counts integers [N] in ten columns of equal width and an eleventh for all larger numbers.

    Returns:
      The width of the columns, 1, 2 or 5 times a power of ten, such that the last column holds about 5 % of the
      numbers at most; the first number of each column as text; and the counts.
    """
    high = np.percentile(numbers, 95) if len(numbers) else 0
    step = next(
        width for power in itertools.count() for width in (10**power, 2 * 10**power, 5 * 10**power) if high < 10 * width
    )
    counts = np.bincount(np.minimum(numbers // step, 10), minlength=11)
    return step, [*(str(column * step) for column in range(10)), f"{10 * step}+"], counts


def _draw_anchor_charts(facts: SplitFacts, maker: TargetMaker) -> list[tuple[str, Markup, str]]:
    """Draws the charts of anchor fit, each as (title, chart, caption)."""
    objects = facts.objects
    bound = maker.matching.positive_iou
    fits = objects.best_iou > bound
    edges = np.linspace(0, 1, 41)
    positives = np.bincount(np.minimum(objects.positives, 12), minlength=13)
    dots = np.linspace(0, max(len(fits) - 1, 0), min(len(fits), MAX_DOTS)).round().astype(int)
    shapes = np.unique((maker.anchors[:, 2:] - maker.anchors[:, :2])[:, ::-1].round(4), axis=0)
    smallest = float(np.quantile(objects.sides, 0.005)) if len(objects.sides) else 1.0
    low = max(0.9 * min(0.05, smallest), 0.001)
    few = float((objects.positives < 2).mean()) if len(fits) else 0.0
    return [
        (
            "Best IoU of each object",
            draw_histogram(
                "objects by best IoU with any anchor",
                edges,
                np.histogram(objects.best_iou, edges)[0],
                Axes("best IoU with any anchor", "objects"),
                bound,
                "no anchor fits",
            ),
            f"{(~fits).sum():,} of {len(fits):,} objects have no anchor with an IoU above {bound:g}. Each of them is "
            "trained with a single positive anchor that overlaps it little.",
        ),
        (
            "Positive anchors per object",
            draw_columns(
                "objects by number of positive anchors",
                [*map(str, range(12)), "12+"],
                positives,
                Axes("positive anchors", "objects"),
                wrong=(0, 1),
            ),
            f"{few:.1%} of the objects have fewer than two positive anchors, and so contribute little to training.",
        ),
        (
            "Object and anchor shapes",
            draw_shape_chart("widths and heights of objects and anchors", objects.sides[dots], fits[dots], shapes, low),
            "Dots are objects, orange if no anchor fits. Squares are anchor shapes. Orange dots far from every square: "
            "change anchors.sizes or anchors.aspect_ratios. Orange dots between squares: the anchor grid is too coarse "
            "for objects of this size.",
        ),
    ]


def _build_orphan_rows(facts: Sequence[SplitFacts]) -> list[tuple[str, list[tuple[int, float]]]]:
    """Returns, for each matching rule, the number and the share of objects without a positive anchor in each split."""
    rules = {
        "TF Object Detection API: the first object keeps a shared anchor": "first",
        "PyTorch SSDs: the last object keeps a shared anchor": "last",
        "ssd_dist: the other object takes its next-best anchor": "",
    }
    rows = []
    for rule, key in rules.items():
        counts = [f.orphans[key] if key else int((f.objects.positives == 0).sum()) for f in facts]
        rows.append((rule, [(c, c / max(1, len(f.objects.labels))) for c, f in zip(counts, facts, strict=True)]))
    return rows


def _draw_samples(
    folder: str, facts: SplitFacts, maker: TargetMaker, classes: Sequence[str]
) -> tuple[list[CaptionedImage], list[CaptionedImage]]:
    """Draws images spread over the split, and those with the objects that anchors fit least."""
    spread = np.linspace(0, facts.examined - 1, min(SAMPLES, facts.examined)).round().astype(int).tolist()
    lowest_iou: dict[int, float] = {}
    for record, iou in zip(facts.objects.records.tolist(), facts.objects.best_iou.tolist(), strict=True):
        if iou <= maker.matching.positive_iou:
            lowest_iou[record] = min(iou, lowest_iou.get(record, 1.0))
    poor = sorted(lowest_iou, key=lambda record: (lowest_iou[record], record))[:POOR_FIT_SAMPLES]
    records = read_selected(DataConfig(dir=folder), facts.split, {*spread, *poor})

    def draw(indices: list[int]) -> list[CaptionedImage]:
        return [draw_anchors(records[index], maker, classes) for index in indices]

    return draw(spread), draw(poor)
