"""Fits anchors to the objects of a dataset: `ssd-inspect --data=OUT --fit_anchors=FILE.yaml`.

object shapes -> k-means with distance 1 - IoU (Redmon and Farhadi 2017, section 2) -> one size per level
  -> aspect ratios from the objects of each level -> coordinate search on the real anchor grid -> config of `anchors.*`

The number of aspect ratios per level does not change, so the shape of the heads does not change either.
"""

from dataclasses import dataclass

import numpy as np

from ssd_dist.core.anchors import feature_sizes
from ssd_dist.core.config import AnchorConfig, MatchingConfig
from ssd_dist.core.errors import DataError
from ssd_dist.core.matching import Matcher

# Objects that the search uses; more take longer without a better fit.
MAX_OBJECTS = 2000
MIN_OBJECTS = 20
# The anchors of a level have at least this size in cells; smaller anchors would miss objects between cell centers.
MIN_CELLS = 1.5
MAX_SIZE = 1.05
# A ratio of 1 would repeat the square anchor that every level has.
MIN_RATIO = 1.1
# Factors by which the search changes a size or ratio, and how often it visits each of them.
FACTORS = (0.8, 0.9, 1.1, 1.25)
ROUNDS = 2


@dataclass(frozen=True)
class Fit:
    """How well anchors fit: the share of objects with a best IoU above `positive_iou`, and the mean best IoU."""

    share: float
    mean: float

    @property
    def score(self) -> float:
        """The objective that the search maximizes."""
        return self.share + self.mean


def fit_anchors(
    boxes: np.ndarray, current: AnchorConfig, matching: MatchingConfig, input_size: int
) -> tuple[AnchorConfig, Fit, Fit]:
    """Fits anchors to objects.

    Args:
      boxes: float32 [N, 4].
      current: the anchors in use, which set the number of ratios per level.
      matching: the matching settings; an anchor fits an object if their IoU exceeds `positive_iou`.
      input_size: side of the model input in pixels.

    Returns:
      The fitted anchors, the fit of the current anchors, and the fit of the fitted ones, which is never worse.

    Raises:
      DataError: if there are fewer than `MIN_OBJECTS` objects.
    """
    if len(boxes) < MIN_OBJECTS:
        raise DataError(
            f"--fit_anchors: {len(boxes)} objects are too few; at least {MIN_OBJECTS} are needed; prepare more images "
            "or raise --max_images"
        )
    boxes = boxes[np.linspace(0, len(boxes) - 1, min(len(boxes), MAX_OBJECTS)).round().astype(int)]
    before = measure_fit(boxes, current, matching, input_size)
    best, best_fit = current, before
    for start in (propose_anchors(boxes, current, input_size), current):
        found, fit = _search(start, boxes, matching, input_size)
        if fit.score > best_fit.score:
            best, best_fit = found, fit
    return best, before, best_fit


def measure_fit(boxes: np.ndarray, anchors: AnchorConfig, matching: MatchingConfig, input_size: int) -> Fit:
    """Measures the fit of anchors on their real grid."""
    best = Matcher(anchors, input_size, matching).best_iou(boxes)
    return Fit(float((best > matching.positive_iou).mean()), float(best.mean()))


def propose_anchors(boxes: np.ndarray, current: AnchorConfig, input_size: int) -> AnchorConfig:
    """Computes sizes and ratios from the shapes of the objects, without their positions."""
    sides = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64)
    cells = np.array(feature_sizes(input_size))
    sizes = np.sort(np.sqrt(cluster_shapes(sides, len(cells)).prod(axis=1)))
    sizes = _make_valid(np.append(np.maximum(sizes, MIN_CELLS / cells), MAX_SIZE))
    level = np.abs(np.log(np.sqrt(sides.prod(axis=1)))[:, None] - np.log(sizes[:-1])[None]).argmin(axis=1)
    elongation = sides.max(axis=1) / sides.min(axis=1)
    ratios = []
    for index, before in enumerate(current.aspect_ratios):
        own = elongation[(level == index) & (elongation > 1.2)]
        quantiles = (2 * np.arange(len(before)) + 1) / (2 * len(before))
        found = np.quantile(own, quantiles) if len(own) >= MIN_OBJECTS else np.array(before)
        ratios.append(tuple(float(ratio) for ratio in found.round(2)))
    return _replace_shapes(current, sizes, tuple(ratios))


def cluster_shapes(sides: np.ndarray, count: int, rounds: int = 100) -> np.ndarray:
    """Clusters `sides` [N, 2] into shapes [count, 2] by k-means, with 1 - IoU of concentric boxes as distance."""
    order = np.argsort(sides.prod(axis=1), kind="stable")
    centers = sides[order[((2 * np.arange(count) + 1) * len(sides) // (2 * count))]]
    member = np.full(len(sides), -1)
    for _ in range(rounds):
        intersection = np.minimum(sides[:, None], centers[None]).prod(axis=-1)
        union = sides.prod(axis=1)[:, None] + centers.prod(axis=1)[None] - intersection
        nearest = (intersection / union).argmax(axis=1)
        if (nearest == member).all():
            break
        member = nearest
        centers = np.stack(
            [
                sides[member == index].mean(axis=0) if (member == index).any() else centers[index]
                for index in range(count)
            ]
        )
    return centers


def describe_anchors(anchors: AnchorConfig, before: Fit, after: Fit, source: str) -> str:
    """Returns a YAML file with the fitted anchors, headed by the fit before and after."""
    sizes = ", ".join(f"{size:g}" for size in anchors.sizes)
    ratios = "".join(f"    - [{', '.join(f'{ratio:g}' for ratio in level)}]\n" for level in anchors.aspect_ratios)
    return (
        f"# Anchors fitted to {' '.join(source.split())}. Run prepare again with them.\n"
        f"# Objects with a fitting anchor: {before.share:.1%} before, {after.share:.1%} after; "
        f"mean best IoU: {before.mean:.3f} before, {after.mean:.3f} after.\n"
        f"anchors:\n  sizes: [{sizes}]\n  aspect_ratios:\n{ratios}"
    )


def _search(
    start: AnchorConfig, boxes: np.ndarray, matching: MatchingConfig, input_size: int
) -> tuple[AnchorConfig, Fit]:
    """Coordinate search: changes one size or ratio at a time and keeps each change that improves the fit."""
    best, best_fit = start, measure_fit(boxes, start, matching, input_size)
    ratios = [(level, index) for level, own in enumerate(start.aspect_ratios) for index in range(len(own))]
    for _ in range(ROUNDS):
        for target in (*range(len(start.sizes)), *ratios):
            for factor in FACTORS:
                candidate = _scale_shape(best, target, factor)
                fit = measure_fit(boxes, candidate, matching, input_size)
                if fit.score > best_fit.score + 1e-6:
                    best, best_fit = candidate, fit
    return best, best_fit


def _scale_shape(anchors: AnchorConfig, target: int | tuple[int, int], factor: float) -> AnchorConfig:
    """Multiplies one size (given by its index) or one ratio (by level and index) by `factor`."""
    if isinstance(target, int):
        sizes = np.array(anchors.sizes)
        sizes[target] *= factor
        return _replace_shapes(anchors, _make_valid(sizes), anchors.aspect_ratios)
    ratios = [list(own) for own in anchors.aspect_ratios]
    level, index = target
    ratios[level][index] = round(max(ratios[level][index] * factor, MIN_RATIO), 2)
    return _replace_shapes(anchors, np.array(anchors.sizes), tuple(tuple(own) for own in ratios))


def _make_valid(sizes: np.ndarray) -> np.ndarray:
    """Clips sizes to the valid range, makes them ascending, and rounds them to three decimals."""
    return np.maximum.accumulate(np.clip(sizes, 0.01, 2.0)).round(3)


def _replace_shapes(anchors: AnchorConfig, sizes: np.ndarray, ratios: tuple[tuple[float, ...], ...]) -> AnchorConfig:
    return AnchorConfig(
        sizes=tuple(float(size) for size in sizes),
        aspect_ratios=ratios,
        center_variance=anchors.center_variance,
        size_variance=anchors.size_variance,
    )
