"""Anchors that fit a data set: `ssd-inspect --data=OUT --fit_anchors=FILE.yaml`.

shapes of the objects -> k-means under 1 - IoU (Redmon and Farhadi 2017, section 2) -> a size for each level
  -> ratios of the objects of that level -> steps that raise the fit on the real grid -> a config of `anchors.*`

The number of ratios of each level stays, and with it the shape of the heads.
"""

from dataclasses import dataclass

import numpy as np

from ssd_dist.core.anchors import feature_sizes, generate_anchors
from ssd_dist.core.config import AnchorConfig, MatchingConfig
from ssd_dist.core.errors import DataError
from ssd_dist.core.matching import Matcher

# Objects that the search looks at: more change nothing but the time.
MOST_OBJECTS = 2000
FEWEST_OBJECTS = 20
# A level's anchors span at least so many of its cells: between the cells' centres smaller ones miss objects.
LEAST_CELLS = 1.5
LARGEST_SIZE = 1.05
# A ratio of 1 would be the square that every level has anyway.
SMALLEST_RATIO = 1.1
STEPS = (0.8, 0.9, 1.1, 1.25)
ROUNDS = 2


@dataclass(frozen=True)
class Fit:
    """How well anchors fit: the share of objects above `positive_iou`, and the mean best IoU."""

    share: float
    mean: float

    @property
    def score(self) -> float:
        """What the search raises."""
        return self.share + self.mean


def fit_anchors(
    boxes: np.ndarray, current: AnchorConfig, matching: MatchingConfig, input_size: int
) -> tuple[AnchorConfig, Fit, Fit]:
    """Anchors for objects `boxes` [N, 4]; returns them, the fit of the current ones and theirs, never a worse one.

    Raises:
      DataError: if there are too few objects to say anything.
    """
    if len(boxes) < FEWEST_OBJECTS:
        raise DataError(f"{len(boxes)} objects are too few to fit anchors to; {FEWEST_OBJECTS} are the least")
    boxes = boxes[np.linspace(0, len(boxes) - 1, min(len(boxes), MOST_OBJECTS)).round().astype(int)]
    before = measure_fit(boxes, current, matching, input_size)
    best, best_fit = current, before
    started = propose_anchors(boxes, current, input_size)
    for start in (started, current):
        found, fit = _climb(start, boxes, matching, input_size)
        if fit.score > best_fit.score:
            best, best_fit = found, fit
    return best, before, best_fit


def measure_fit(boxes: np.ndarray, anchors: AnchorConfig, matching: MatchingConfig, input_size: int) -> Fit:
    """The fit of anchors on their real grid."""
    best = Matcher(generate_anchors(anchors, input_size), anchors, matching).best_iou(boxes)
    return Fit(float((best > matching.positive_iou).mean()), float(best.mean()))


def propose_anchors(boxes: np.ndarray, current: AnchorConfig, input_size: int) -> AnchorConfig:
    """Sizes and ratios from the objects' shapes alone."""
    sides = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64)
    cells = np.array(feature_sizes(input_size))
    sizes = np.sort(np.sqrt(cluster_shapes(sides, len(cells)).prod(axis=1)))
    sizes = _make_valid(np.append(np.maximum(sizes, LEAST_CELLS / cells), LARGEST_SIZE))
    level = np.abs(np.log(np.sqrt(sides.prod(axis=1)))[:, None] - np.log(sizes[:-1])[None]).argmin(axis=1)
    long = sides.max(axis=1) / sides.min(axis=1)
    ratios = []
    for index, before in enumerate(current.aspect_ratios):
        own = long[(level == index) & (long > 1.2)]
        places = (2 * np.arange(len(before)) + 1) / (2 * len(before))
        found = np.quantile(own, places) if len(own) >= FEWEST_OBJECTS else np.array(before)
        ratios.append(tuple(float(ratio) for ratio in found.round(2)))
    return _replace(current, sizes, tuple(ratios))


def cluster_shapes(sides: np.ndarray, count: int, rounds: int = 100) -> np.ndarray:
    """`count` shapes [count, 2] that stand for `sides` [N, 2]: k-means under 1 - IoU of boxes with one centre."""
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
    """A YAML file with the anchors' keys and, above them, what they gain."""
    sizes = ", ".join(f"{size:g}" for size in anchors.sizes)
    ratios = "".join(f"    - [{', '.join(f'{ratio:g}' for ratio in level)}]\n" for level in anchors.aspect_ratios)
    return (
        f"# Anchors fitted to {' '.join(source.split())}: prepare again with them.\n"
        f"# Objects that an anchor fits: {before.share:.1%} before, {after.share:.1%} now; "
        f"mean best IoU {before.mean:.3f} before, {after.mean:.3f} now.\n"
        f"anchors:\n  sizes: [{sizes}]\n  aspect_ratios:\n{ratios}"
    )


def _climb(
    start: AnchorConfig, boxes: np.ndarray, matching: MatchingConfig, input_size: int
) -> tuple[AnchorConfig, Fit]:
    """Changes one size or ratio after the other as long as that raises the fit."""
    best, best_fit = start, measure_fit(boxes, start, matching, input_size)
    ratios = [(level, place) for level, own in enumerate(start.aspect_ratios) for place in range(len(own))]
    for _ in range(ROUNDS):
        for target in (*range(len(start.sizes)), *ratios):
            for step in STEPS:
                candidate = _change(best, target, step)
                fit = measure_fit(boxes, candidate, matching, input_size)
                if fit.score > best_fit.score + 1e-6:
                    best, best_fit = candidate, fit
    return best, best_fit


def _change(anchors: AnchorConfig, target: int | tuple[int, int], step: float) -> AnchorConfig:
    """The anchors with one size (by index) or one ratio (by level and place) multiplied by `step`."""
    if isinstance(target, int):
        sizes = np.array(anchors.sizes)
        sizes[target] *= step
        return _replace(anchors, _make_valid(sizes), anchors.aspect_ratios)
    ratios = [list(level) for level in anchors.aspect_ratios]
    ratios[target[0]][target[1]] = round(max(ratios[target[0]][target[1]] * step, SMALLEST_RATIO), 2)
    return _replace(anchors, np.array(anchors.sizes), tuple(tuple(level) for level in ratios))


def _make_valid(sizes: np.ndarray) -> np.ndarray:
    """Ascending, rounded to what a person would write."""
    return np.maximum.accumulate(np.clip(sizes, 0.01, 2.0)).round(3)


def _replace(anchors: AnchorConfig, sizes: np.ndarray, ratios: tuple[tuple[float, ...], ...]) -> AnchorConfig:
    return AnchorConfig(
        sizes=tuple(float(size) for size in sizes),
        aspect_ratios=ratios,
        center_variance=anchors.center_variance,
        size_variance=anchors.size_variance,
    )
