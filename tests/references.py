"""Float64 NumPy references of the method, written from its formulas in plain loops, one thing at a time.

Sources: DESIGN.md section 3, SSD (Liu et al. 2016), Fast R-CNN (Girshick 2015), Adam (Kingma and Ba 2015), AdamW and
the cosine schedule (Loshchilov and Hutter 2017, 2019), Nesterov momentum (Sutskever et al. 2013), the VOC devkit.
Nothing here imports the package under test. Boxes are [ymin, xmin, ymax, xmax], normalised.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Numbers closer than this are one number: float32 coordinates carry about 1e-7.
TIE = 1e-6


# --- Anchors -------------------------------------------------------------------------------------------------------


def anchors_reference(
    sizes: Sequence[float], aspect_ratios: Sequence[Sequence[float]], feature_sizes: Sequence[int]
) -> np.ndarray:
    """Anchors [A, 4] in the order level, row, column, shape; `sizes` has one entry more than there are levels."""
    anchors = []
    for level, cells in enumerate(feature_sizes):
        size, following = sizes[level], sizes[level + 1]
        widths_and_heights = [(size, size), (math.sqrt(size * following), math.sqrt(size * following))]
        for ratio in aspect_ratios[level]:
            widths_and_heights.append((size * math.sqrt(ratio), size / math.sqrt(ratio)))
            widths_and_heights.append((size / math.sqrt(ratio), size * math.sqrt(ratio)))
        for row in range(cells):
            for column in range(cells):
                cy, cx = (row + 0.5) / cells, (column + 0.5) / cells
                for width, height in widths_and_heights:
                    anchors.append([cy - height / 2, cx - width / 2, cy + height / 2, cx + width / 2])
    return np.array(anchors, np.float64)


# --- Boxes ---------------------------------------------------------------------------------------------------------


def area_reference(box: Sequence[float]) -> float:
    """Area of one box; 0 if it is reversed."""
    return max(0.0, float(box[2]) - float(box[0])) * max(0.0, float(box[3]) - float(box[1]))


def intersection_reference(a: Sequence[float], b: Sequence[float]) -> float:
    """Area that two boxes share."""
    height = min(float(a[2]), float(b[2])) - max(float(a[0]), float(b[0]))
    width = min(float(a[3]), float(b[3])) - max(float(a[1]), float(b[1]))
    return height * width if height > 0 and width > 0 else 0.0


def iou_reference(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes; 0 where the union is empty."""
    shared = intersection_reference(a, b)
    union = area_reference(a) + area_reference(b) - shared
    return shared / union if union > 0 else 0.0


def center_distance_reference(a: Sequence[float], b: Sequence[float]) -> float:
    """Euclidean distance between the centres of two boxes."""
    dy = (float(a[0]) + float(a[2]) - float(b[0]) - float(b[2])) / 2
    dx = (float(a[1]) + float(a[3]) - float(b[1]) - float(b[3])) / 2
    return math.hypot(dy, dx)


def encode_reference(box: Sequence[float], anchor: Sequence[float], center_variance: float, size_variance: float):
    """[ty, tx, th, tw] of one box from one anchor (Liu et al. 2016, equation 2, divided by the variances)."""
    box, anchor = [float(v) for v in box], [float(v) for v in anchor]
    out = []
    for axis in (0, 1):
        anchor_size = anchor[axis + 2] - anchor[axis]
        shift = (box[axis] + box[axis + 2]) / 2 - (anchor[axis] + anchor[axis + 2]) / 2
        out.append(shift / anchor_size / center_variance)
    for axis in (0, 1):
        ratio = (box[axis + 2] - box[axis]) / (anchor[axis + 2] - anchor[axis])
        out.append(math.log(ratio) / size_variance)
    return np.array(out, np.float64)


def decode_reference(offsets: Sequence[float], anchor: Sequence[float], center_variance: float, size_variance: float):
    """The box whose encoding is `offsets`."""
    offsets, anchor = [float(v) for v in offsets], [float(v) for v in anchor]
    box = [0.0] * 4
    for axis in (0, 1):
        anchor_size = anchor[axis + 2] - anchor[axis]
        center = (anchor[axis] + anchor[axis + 2]) / 2 + offsets[axis] * center_variance * anchor_size
        size = anchor_size * math.exp(offsets[axis + 2] * size_variance)
        box[axis], box[axis + 2] = center - size / 2, center + size / 2
    return np.array(box, np.float64)


# --- Matching ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MatchReference:
    """`positives` maps each positive anchor to its object; `ignored` are the anchors of no class."""

    positives: dict[int, int]
    ignored: set[int]


def match_reference(
    boxes: np.ndarray,
    anchors: np.ndarray,
    policy: str = "multi",
    positive_iou: float = 0.5,
    negative_iou: float = 0.4,
    is_crowd: Sequence[bool] | None = None,
) -> MatchReference:
    """Positives, ignored and (the rest) negatives, as DESIGN section 3 has them.

    Above `positive_iou` an anchor is positive (policy `multi`), below `negative_iou` negative, ignored between. An
    anchor goes to the object with the highest IoU. Every object gets one anchor of its own by greedy bipartite
    assignment on the global maximum, and that one is positive whatever its IoU. Ties go to the nearer centre, then to
    the lower index. A crowd makes anchors ignored of which it covers `negative_iou` or more, never positive.
    """
    crowd = [False] * len(boxes) if is_crowd is None else list(is_crowd)
    objects = [n for n in range(len(boxes)) if not crowd[n]]
    iou = {n: [iou_reference(boxes[n], anchor) for anchor in anchors] for n in objects}
    distance = {n: [center_distance_reference(boxes[n], anchor) for anchor in anchors] for n in objects}

    positives: dict[int, int] = {}
    ignored: set[int] = set()
    for a in range(len(anchors)):
        if any(
            intersection_reference(boxes[n], anchors[a]) / area_reference(anchors[a]) >= negative_iou - TIE
            for n in range(len(boxes))
            if crowd[n]
        ):
            ignored.add(a)
        if not objects:
            continue
        top = max(iou[n][a] for n in objects)
        if top >= negative_iou - TIE:
            ignored.add(a)
        if policy == "multi" and top > positive_iou + TIE:
            tied = [n for n in objects if iou[n][a] >= top - TIE]
            nearest = min(distance[n][a] for n in tied)
            positives[a] = min(n for n in tied if distance[n][a] <= nearest + TIE)

    for a, n in assign_one_each_reference(iou, distance, len(anchors)).items():
        positives[a] = n
    return MatchReference(positives, ignored - set(positives))


def assign_one_each_reference(
    iou: dict[int, list[float]], distance: dict[int, list[float]], anchor_count: int
) -> dict[int, int]:
    """Greedy bipartite matching: again and again the best pair of an unserved object and a free anchor."""
    waiting, free, owner = set(iou), set(range(anchor_count)), {}
    while waiting and free:
        pairs = [(iou[n][a], n, a) for n in waiting for a in free]
        top = max(pair[0] for pair in pairs)
        pairs = [(distance[n][a], n, a) for value, n, a in pairs if value >= top - TIE]
        nearest = min(pair[0] for pair in pairs)
        n, a = min((n, a) for value, n, a in pairs if value <= nearest + TIE)
        owner[a] = n
        waiting.remove(n)
        free.remove(a)
    return owner


# --- Losses --------------------------------------------------------------------------------------------------------


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
    """min(max(floor(ratio x positives), minimum x images), candidates): negatives of one image or of a whole batch."""
    return min(max(math.floor(ratio * positives), min_negatives_per_image * images), candidates)


def mine_per_image_reference(
    losses: np.ndarray, candidates: np.ndarray, positives: Sequence[int], ratio: float, min_negatives_per_image: int = 0
) -> np.ndarray:
    """bool [B, A]: of each image the candidates of highest loss [B, A], equal ones by anchor index."""
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
    """bool [B, A]: the candidates of highest loss [B, A] of the whole batch, equal ones by image, then by anchor."""
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
      classification: [B], normalised cross-entropy of each image, before the reduction.
      localization: [B], normalised and weighted smooth L1.
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
      targets: one for each image.
      beta: where smooth L1 turns linear.
      normalizer: `positives`, `images` or `classified` (positives and mined negatives).
      normalize_per: count over the whole `batch` or over each `image`.
      reduction: over the images: `sum`, `mean` or `none`.
      label_smoothing: of the cross-entropy.
      localization_weight: factor on smooth L1.
      ratio: mined negatives for each positive.
      scope: `image` or `global` mining.
      min_negatives_per_image: even without positives.
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
        for a, label, wanted in zip(target.anchors, target.labels, target.offsets, strict=True):
            classification[b] += cross_entropy_reference(logits[b, a], int(label), label_smoothing)
            for predicted, true in zip(offsets[b, a], wanted, strict=True):
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


# --- Optimisation --------------------------------------------------------------------------------------------------


def ema_decay_reference(updates: int, decay: float) -> float:
    """min(d, (1 + n) / (10 + n)) after n updates."""
    return min(decay, (1 + updates) / (10 + updates))


def ema_reference(
    initial: np.ndarray, trajectory: Sequence[np.ndarray], decay: float, update_every: int = 1, warmup_steps: int = 0
) -> list[np.ndarray]:
    """The average after each applied step; trajectory[s - 1] are the weights after step s.

    Up to `warmup_steps` the average is the weights themselves and n stays 0; only every `update_every`-th step counts.
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
    """The rate of the update after `step` applied ones: up in a line to `base_lr`, down a half cosine to `min_lr`."""
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
    """AdamW on one weight array, step by step (Loshchilov and Hutter 2019, algorithm 2, decay times the rate)."""

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


# --- Detection -----------------------------------------------------------------------------------------------------


def softmax_reference(logits: Sequence[float]) -> list[float]:
    """Probabilities of the classes."""
    logits = [float(v) for v in logits]
    top = max(logits)
    exponentials = [math.exp(v - top) for v in logits]
    return [v / sum(exponentials) for v in exponentials]


def suppress_reference(
    boxes: np.ndarray,
    labels: Sequence[int],
    scores: Sequence[float],
    iou_threshold: float,
    score_threshold: float,
    max_detections: int,
) -> list[int]:
    """Greedy non-maximum suppression in each class: indices of what is kept, best first, equal scores in their order.

    A detection is kept if its score exceeds `score_threshold` and it overlaps no better one of its class that was
    kept by more than `iou_threshold`; of those the best `max_detections` over all classes.
    """
    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i)):
        rivals = [k for k in kept if labels[k] == labels[i]]
        if scores[i] > score_threshold and all(iou_reference(boxes[i], boxes[k]) <= iou_threshold for k in rivals):
            kept.append(i)
    return kept[:max_detections]


def detect_reference(
    logits: np.ndarray,
    offsets: np.ndarray,
    anchors: np.ndarray,
    iou_threshold: float,
    score_threshold: float,
    max_detections: int,
    candidates: int,
) -> list[tuple[int, float, np.ndarray]]:
    """(label, score, box) of the detections in one image, from logits [A, K] and offsets [A, 4], best first.

    The `candidates` best pairs of anchor and class go into suppression; boxes are clipped to the image before it.
    """
    pairs = []
    for a in range(len(anchors)):
        probabilities = softmax_reference(logits[a])
        box = np.clip(decode_reference(offsets[a], anchors[a], 0.1, 0.2), 0.0, 1.0)
        pairs += [(label, probabilities[label], box) for label in range(1, len(probabilities))]
    pairs = sorted(pairs, key=lambda pair: -pair[1])[:candidates]
    labels, scores, boxes = zip(*pairs, strict=True)
    kept = suppress_reference(np.array(boxes), labels, scores, iou_threshold, score_threshold, max_detections)
    return [pairs[k] for k in kept]


# --- Pascal VOC ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VocImage:
    """One image of one class: objects [N, 4] with their difficult flags, and detections [D, 4] with scores [D]."""

    objects: np.ndarray
    difficult: Sequence[bool]
    boxes: np.ndarray
    scores: Sequence[float]


def voc_ap_reference(images: Sequence[VocImage], iou_threshold: float = 0.5) -> tuple[float, float] | None:
    """(11-point AP of VOC 2007, area under the envelope of VOC 2010+) of one class; None without objects.

    The devkit's loop: detections of all images by falling score; each goes to the object of its image it overlaps most;
    below the threshold it is a miss, a difficult object makes it nothing, the first on an object is a hit, the next
    ones are misses. Equal scores keep the order of images and of detections.
    """
    queue = [(-float(score), i, d) for i, image in enumerate(images) for d, score in enumerate(image.scores)]
    objects = sum(not flag for image in images for flag in image.difficult)
    if objects == 0:
        return None
    found: set[tuple[int, int]] = set()
    hits = misses = 0
    recalls, precisions = [], []
    for _, i, d in sorted(queue):
        best, best_iou = -1, -math.inf
        for n, box in enumerate(images[i].objects):
            overlap = iou_reference(images[i].boxes[d], box)
            if overlap > best_iou:
                best, best_iou = n, overlap
        if best_iou >= iou_threshold and images[i].difficult[best]:
            continue
        if best_iou >= iou_threshold and (i, best) not in found:
            found.add((i, best))
            hits += 1
        else:
            misses += 1
        recalls.append(hits / objects)
        precisions.append(hits / (hits + misses))

    eleven = 0.0
    for tenth in range(11):
        # Compared as hits x 10 >= tenth x objects would be: 0.3 is not 3 x 0.1 in binary.
        reached = [p for r, p in zip(recalls, precisions, strict=True) if round(r * objects) * 10 >= tenth * objects]
        eleven += max(reached, default=0.0) / 11

    recalls, precisions = [0.0, *recalls, 1.0], [0.0, *precisions, 0.0]
    for k in range(len(precisions) - 2, -1, -1):
        precisions[k] = max(precisions[k], precisions[k + 1])
    area = 0.0
    for k in range(len(recalls) - 1):
        area += (recalls[k + 1] - recalls[k]) * precisions[k + 1]
    return eleven, area
