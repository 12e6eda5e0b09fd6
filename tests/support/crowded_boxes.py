"""Generates crowded images: many objects that compete for the same anchors."""

import numpy as np

KINDS = ("spread", "cluster", "large", "shifted", "identical", "grid", "mirrored", "specks", "faint", "mixed")


def crowded_boxes(kind: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Returns boxes float32 [count, 4] of one kind."""
    if kind == "spread":
        return _boxes(rng.uniform(0.05, 0.95, (count, 2)), np.exp(rng.uniform(np.log(0.01), np.log(0.3), (count, 2))))
    if kind == "cluster":
        # Nearly equal boxes; the smallest differences are below the tolerance of ties.
        jitter = 10.0 ** rng.integers(-7, -1)
        center, size = rng.uniform(0.2, 0.6, 2), rng.uniform(0.02, 0.3, 2)
        return _boxes(center + jitter * rng.normal(size=(count, 2)), size + jitter * rng.normal(size=(count, 2)))
    if kind == "large":
        # Each contains many anchors, which tie.
        return _boxes(0.5 + 0.1 * rng.normal(size=(count, 2)), 0.6 + 0.1 * rng.normal(size=(count, 2)))
    if kind == "shifted":
        # Boxes of one size at whole pixels: all that lie inside an anchor tie.
        return _boxes(rng.integers(100, 160, (count, 2)) / 300, np.full((count, 2), 10 / 300))
    if kind == "identical":
        distinct = crowded_boxes("spread", max(1, count // 10), rng)
        return distinct[rng.integers(0, len(distinct), count)]
    if kind == "grid":
        return _boxes(rng.integers(1, 20, (count, 2)) / 20, rng.choice([0.05, 0.1, 0.2], (count, 1)) * np.ones(2))
    if kind == "mirrored":
        half = crowded_boxes("spread", (count + 1) // 2, rng)
        other = half.copy()
        other[:, [1, 3]] = 1 - half[:, [3, 1]]
        return np.concatenate([half, other])[:count]
    if kind == "specks":
        # The IoU with every anchor is below the tolerance.
        return _boxes(rng.uniform(0.3, 0.6, (count, 2)), np.full((count, 2), 1e-5))
    if kind == "faint":
        # The IoU with the best anchor is a few times the tolerance.
        return _boxes(rng.uniform(0.3, 0.6, (count, 2)), np.exp(rng.uniform(np.log(1e-4), np.log(1e-3), (count, 2))))
    if kind == "mixed":
        parts = [crowded_boxes(part, (count + 3) // 4, rng) for part in ("spread", "cluster", "shifted", "specks")]
        return rng.permutation(np.concatenate(parts))[:count]
    raise ValueError(f"{kind!r}: unknown kind; valid kinds: {', '.join(KINDS)}")


def _boxes(centers: np.ndarray, sides: np.ndarray) -> np.ndarray:
    sides = np.maximum(sides, 1e-5)
    low = np.clip(centers - sides / 2, 0, 0.99)
    high = np.clip(centers + sides / 2, low + 1e-5, 1)
    return np.concatenate([low, high], axis=1).astype(np.float32)
