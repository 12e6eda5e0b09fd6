"""Float64 NumPy references of losses, mining and optimizers, written from the formulas in plain loops.

This module does not import the package under test.

Sources: docs/formulas.md, SSD (Liu et al. 2016), Fast R-CNN (Girshick 2015), Adam (Kingma and Ba 2015), AdamW and
the cosine schedule (Loshchilov and Hutter 2017, 2019), Nesterov momentum (Sutskever et al. 2013).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def smooth_l1_reference(difference: float, beta: float = 1.0) -> float:
    """d^2 / (2 beta) for |d| < beta, else |d| - beta / 2."""
    size = abs(float(difference))
    return size * size / (2 * beta) if size < beta else size - beta / 2


def cross_entropy_reference(logits: Sequence[float], label: int, label_smoothing: float = 0.0) -> float:
    """-sum_k q_k log softmax(logits)_k with q = (1 - e) on the label plus e / K on each of the K classes."""
    logits = [float(v) for v in logits]
    top = max(logits)
    log_partition = top + math.log(sum(math.exp(v - top) for v in logits))
    loss = 0.0
    for k, value in enumerate(logits):
        target = (1.0 - label_smoothing) * (k == label) + label_smoothing / len(logits)
        loss -= target * (value - log_partition)
    return loss


def negative_quota_reference(
    positives: int, candidates: int, ratio: float, min_negatives_per_image: int, images: int = 1
) -> int:
    """min(max(floor(ratio x positives), minimum x images), candidates), for one image or a whole batch."""
    return min(max(math.floor(ratio * positives), min_negatives_per_image * images), candidates)


def mine_per_image_reference(
    losses: np.ndarray, candidates: np.ndarray, positives: Sequence[int], ratio: float, min_negatives_per_image: int = 0
) -> np.ndarray:
    """bool [B, A]: the candidates with the highest losses [B, A] of each image; ties are broken by anchor index."""
    chosen = np.zeros(candidates.shape, bool)
    for image in range(len(losses)):
        ranked = sorted(
            (a for a in range(losses.shape[1]) if candidates[image, a]), key=lambda a: (-losses[image, a], a)
        )
        quota = negative_quota_reference(positives[image], len(ranked), ratio, min_negatives_per_image)
        for a in ranked[:quota]:
            chosen[image, a] = True
    return chosen


def mine_global_reference(
    losses: np.ndarray, candidates: np.ndarray, positives: Sequence[int], ratio: float, min_negatives_per_image: int = 0
) -> np.ndarray:
    """bool [B, A]: the candidates with the highest losses [B, A] of the batch; ties: by image, then by anchor."""
    chosen = np.zeros(candidates.shape, bool)
    images, anchors = losses.shape
    ranked = sorted(
        ((b, a) for b in range(images) for a in range(anchors) if candidates[b, a]),
        key=lambda pair: (-losses[pair], *pair),
    )
    quota = negative_quota_reference(sum(positives), len(ranked), ratio, min_negatives_per_image, images)
    for pair in ranked[:quota]:
        chosen[pair] = True
    return chosen


@dataclass(frozen=True)
class ImageTargets:
    """Sparse targets of one image: P positives with labels and offsets [P, 4], and the ignored anchors."""

    anchors: Sequence[int]
    labels: Sequence[int]
    offsets: np.ndarray
    ignored: Sequence[int]


@dataclass(frozen=True)
class MultiboxReference:
    """The loss and its parts.

    Attributes:
      classification: [B], normalized cross-entropy of each image, before the reduction.
      localization: [B], normalized and weighted smooth L1.
      loss: scalar for the reductions `sum` and `mean`, [B] for `none`.
      negatives: bool [B, A], mined.
      positives: [B].
    """

    classification: np.ndarray
    localization: np.ndarray
    loss: np.ndarray
    negatives: np.ndarray
    positives: np.ndarray


def multibox_loss_reference(
    logits: np.ndarray,
    offsets: np.ndarray,
    targets: Sequence[ImageTargets],
    *,
    beta: float = 1.0,
    normalizer: str = "positives",
    normalize_per: str = "batch",
    reduction: str = "sum",
    label_smoothing: float = 0.0,
    localization_weight: float = 1.0,
    ratio: float = 3.0,
    scope: str = "image",
    min_negatives_per_image: int = 0,
) -> MultiboxReference:
    """Multibox loss of a whole global batch (Liu et al. 2016, equations 1 to 3).

    Args:
      logits: [B, A, K], class 0 is background.
      offsets: [B, A, 4], predicted.
      targets: one per image.
      beta: difference from which smooth L1 is linear.
      normalizer: `positives`, `images` or `classified` (positives and mined negatives).
      normalize_per: count over the whole `batch` or over each `image`.
      reduction: over the images: `sum`, `mean` or `none`.
      label_smoothing: label smoothing of the cross-entropy.
      localization_weight: factor on smooth L1.
      ratio: mined negatives per positive.
      scope: `image` or `global` mining.
      min_negatives_per_image: minimum number of negatives per image, also without positives.
    """
    images, anchors, _ = logits.shape
    background = np.zeros((images, anchors))
    candidates = np.zeros((images, anchors), bool)
    for b in range(images):
        taken = {*map(int, targets[b].anchors), *map(int, targets[b].ignored)}
        for a in range(anchors):
            background[b, a] = cross_entropy_reference(logits[b, a], 0, label_smoothing)
            candidates[b, a] = a not in taken
    positives = [len(target.anchors) for target in targets]
    mine = {"image": mine_per_image_reference, "global": mine_global_reference}[scope]
    negatives = mine(background, candidates, positives, ratio, min_negatives_per_image)

    classification, localization = np.zeros(images), np.zeros(images)
    for b, target in enumerate(targets):
        for a in range(anchors):
            if negatives[b, a]:
                classification[b] += background[b, a]
        for a, label, expected in zip(target.anchors, target.labels, target.offsets, strict=True):
            classification[b] += cross_entropy_reference(logits[b, a], int(label), label_smoothing)
            for predicted, true in zip(offsets[b, a], expected, strict=True):
                localization[b] += smooth_l1_reference(float(predicted) - float(true), beta)

    for b in range(images):
        members = [b] if normalize_per == "image" else range(images)
        divisor = {
            "positives": sum(positives[m] for m in members),
            "images": len(members),
            "classified": sum(positives[m] + int(negatives[m].sum()) for m in members),
        }[normalizer]
        classification[b] /= max(1, divisor)
        localization[b] *= localization_weight / max(1, divisor)
    each = classification + localization
    loss = {"sum": each.sum(), "mean": each.mean(), "none": each}[reduction]
    return MultiboxReference(classification, localization, loss, negatives, np.array(positives))


def ema_decay_reference(updates: int, decay: float) -> float:
    """min(d, (1 + n) / (10 + n)) after n updates."""
    return min(decay, (1 + updates) / (10 + updates))


def ema_reference(
    initial: np.ndarray, trajectory: Sequence[np.ndarray], decay: float, update_every: int = 1, warmup_steps: int = 0
) -> list[np.ndarray]:
    """Returns the average after each applied step; trajectory[s - 1] are the weights after step s.

    Up to `warmup_steps` the average equals the weights and n stays 0; only every `update_every`-th step updates it.
    """
    average, updates, averages = np.array(initial, np.float64), 0, []
    for step, weights in enumerate(trajectory, start=1):
        if step % update_every == 0:
            if step <= warmup_steps:
                average = np.array(weights, np.float64)
            else:
                d = ema_decay_reference(updates, decay)
                average = d * average + (1 - d) * np.asarray(weights, np.float64)
                updates += 1
        averages.append(average.copy())
    return averages


def learning_rate_reference(step: int, base_lr: float, min_lr: float, warmup_steps: int, total_steps: int) -> float:
    """The learning rate after `step` applied updates: linear up to `base_lr`, then a half cosine down to `min_lr`."""
    if step < warmup_steps:
        return base_lr * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return min_lr + (base_lr - min_lr) * (1 + math.cos(math.pi * progress)) / 2


def clip_by_global_norm_reference(gradients: Sequence[np.ndarray], clip_norm: float) -> list[np.ndarray]:
    """Gradients scaled to a common norm of at most `clip_norm`; 0 means no clipping."""
    norm = math.sqrt(sum(float(g) ** 2 for gradient in gradients for g in np.ravel(gradient)))
    factor = clip_norm / norm if 0 < clip_norm < norm else 1.0
    return [np.asarray(gradient, np.float64) * factor for gradient in gradients]


@dataclass
class AdamWReference:
    """AdamW on one weight array (Loshchilov and Hutter 2019, algorithm 2; the decay is multiplied by the rate)."""

    weights: np.ndarray
    weight_decay: float = 0.0
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7

    def __post_init__(self) -> None:
        self.weights = np.array(self.weights, np.float64)
        self.first, self.second, self.steps = np.zeros_like(self.weights), np.zeros_like(self.weights), 0

    def step(self, gradient: np.ndarray, rate: float) -> np.ndarray:
        """Applies one gradient; returns the new weights."""
        gradient = np.asarray(gradient, np.float64)
        self.steps += 1
        self.first = self.beta_1 * self.first + (1 - self.beta_1) * gradient
        self.second = self.beta_2 * self.second + (1 - self.beta_2) * gradient**2
        first = self.first / (1 - self.beta_1**self.steps)
        second = self.second / (1 - self.beta_2**self.steps)
        update = first / (np.sqrt(second) + self.epsilon) + self.weight_decay * self.weights
        self.weights = self.weights - rate * update
        return self.weights


@dataclass
class SgdReference:
    """SGD with momentum on one weight array: v = m v + g; w -= rate (g + m v), or rate v; decay decoupled."""

    weights: np.ndarray
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        self.weights = np.array(self.weights, np.float64)
        self.velocity = np.zeros_like(self.weights)

    def step(self, gradient: np.ndarray, rate: float) -> np.ndarray:
        """Applies one gradient; returns the new weights."""
        gradient = np.asarray(gradient, np.float64)
        self.velocity = self.momentum * self.velocity + gradient
        direction = gradient + self.momentum * self.velocity if self.nesterov else self.velocity
        self.weights = self.weights - rate * (direction + self.weight_decay * self.weights)
        return self.weights
