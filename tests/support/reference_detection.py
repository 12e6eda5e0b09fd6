"""Float64 references for NMS and average precision, written from the formulas as plain loops.

The module does not import the package under test. Sources: SSD (Liu et al. 2016), the VOC devkit.
Boxes are [ymin, xmin, ymax, xmax], normalized.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from support.reference_boxes import decode_reference, iou_reference


def softmax_reference(logits: Sequence[float]) -> list[float]:
    """Computes the probabilities of the classes."""
    logits = [float(v) for v in logits]
    top = max(logits)
    exponentials = [math.exp(v - top) for v in logits]
    return [v / sum(exponentials) for v in exponentials]


def nms_reference(
    boxes: np.ndarray,
    labels: Sequence[int],
    scores: Sequence[float],
    iou_threshold: float,
    score_threshold: float,
    max_detections: int,
) -> list[int]:
    """Returns the indices that greedy NMS within each class keeps, by descending score; ties keep their order.

    A detection is kept if its score exceeds `score_threshold` and its IoU with each kept detection of its class is at
    most `iou_threshold`. Of these, the `max_detections` with the highest scores over all classes are returned.
    """
    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i)):
        others = [k for k in kept if labels[k] == labels[i]]
        if scores[i] > score_threshold and all(iou_reference(boxes[i], boxes[k]) <= iou_threshold for k in others):
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
    """Returns (label, score, box) of the detections on one image, from logits [A, K] and offsets [A, 4], best first.

    The `candidates` (anchor, class) pairs with the highest scores enter NMS; boxes are clipped to the image before.
    """
    pairs = []
    for a in range(len(anchors)):
        probabilities = softmax_reference(logits[a])
        box = np.clip(decode_reference(offsets[a], anchors[a], 0.1, 0.2), 0.0, 1.0)
        pairs += [(label, probabilities[label], box) for label in range(1, len(probabilities))]
    pairs = sorted(pairs, key=lambda pair: -pair[1])[:candidates]
    labels, scores, boxes = zip(*pairs, strict=True)
    kept = nms_reference(np.array(boxes), labels, scores, iou_threshold, score_threshold, max_detections)
    return [pairs[k] for k in kept]


@dataclass(frozen=True)
class VocImage:
    """One image of one class: objects [N, 4] with their difficult flags, detections [D, 4] with scores [D], crowds."""

    objects: np.ndarray
    difficult: Sequence[bool]
    boxes: np.ndarray
    scores: Sequence[float]
    crowds: Sequence[np.ndarray] = ()


def cover_reference(box: np.ndarray, crowd: np.ndarray) -> float:
    """Returns the share of a box that a crowd covers, as COCO's evaluation defines the overlap with a crowd."""
    ymin, xmin, ymax, xmax = map(float, box)
    height = min(ymax, float(crowd[2])) - max(ymin, float(crowd[0]))
    width = min(xmax, float(crowd[3])) - max(xmin, float(crowd[1]))
    area = (ymax - ymin) * (xmax - xmin)
    return max(height, 0.0) * max(width, 0.0) / area if area > 0 else 0.0


def voc_ap_reference(images: Sequence[VocImage], iou_threshold: float = 0.5) -> tuple[float, float] | None:
    """Returns (11-point AP of VOC 2007, area under the envelope of VOC 2010+) of one class; None without objects.

    The loop of the devkit: detections of all images are processed by descending score. Each is compared with the object
    of its image with the highest IoU: below the threshold it is a false positive, on a difficult object it is ignored,
    the first detection on an object is a true positive, further ones are false positives, unless they are in a crowd.
    Ties in the score keep the order of images and of detections.
    """
    queue = [(-float(score), i, d) for i, image in enumerate(images) for d, score in enumerate(image.scores)]
    objects = sum(not flag for image in images for flag in image.difficult)
    if objects == 0:
        return None
    matched: set[tuple[int, int]] = set()
    true_positives = false_positives = 0
    recalls, precisions = [], []
    for _, i, d in sorted(queue):
        best, best_iou = -1, -math.inf
        for n, box in enumerate(images[i].objects):
            overlap = iou_reference(images[i].boxes[d], box)
            if overlap > best_iou:
                best, best_iou = n, overlap
        if best_iou >= iou_threshold and images[i].difficult[best]:
            continue
        if best_iou >= iou_threshold and (i, best) not in matched:
            matched.add((i, best))
            true_positives += 1
        elif any(cover_reference(images[i].boxes[d], crowd) >= iou_threshold for crowd in images[i].crowds):
            continue
        else:
            false_positives += 1
        recalls.append(true_positives / objects)
        precisions.append(true_positives / (true_positives + false_positives))

    eleven = 0.0
    for tenth in range(11):
        # Compares true positives x 10 >= tenth x objects in integers: 0.3 is not 3 x 0.1 in binary.
        reached = [p for r, p in zip(recalls, precisions, strict=True) if round(r * objects) * 10 >= tenth * objects]
        eleven += max(reached, default=0.0) / 11

    recalls, precisions = [0.0, *recalls, 1.0], [0.0, *precisions, 0.0]
    for k in range(len(precisions) - 2, -1, -1):
        precisions[k] = max(precisions[k], precisions[k + 1])
    area = 0.0
    for k in range(len(recalls) - 1):
        area += (recalls[k + 1] - recalls[k]) * precisions[k + 1]
    return eleven, area
