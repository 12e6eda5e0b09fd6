"""Why detections are wrong, and what each kind of mistake costs: TIDE (Bolya et al. 2020, section 2).

A miss is put down to the first of these that holds, in an order of our own, with IoU bounds 0.5 (right place) and 0.1
(some place):

    duplicate      its class's object is right there, but a better detection has it
    class          an object of another class is right there
    localisation   its class's object is near, at an IoU between the bounds
    both           an object of another class is near
    background     there is nothing near

An object is `missed` if no detection hits it and none is off by class or place alone. The cost of a kind is what VOC
mAP (area, IoU 0.5) would gain if an oracle mended it, all else equal: class and place put right, the others deleted,
missed objects not asked for. The gains do not add up to what is lacking: mistakes hide one another.
"""

from dataclasses import dataclass

import numpy as np

from ssd_dist.evaluation.detection_matching import Matches
from ssd_dist.evaluation.voc_metrics import IOU_THRESHOLD, trace_curve

NEAR_IOU = 0.1
HIT, IGNORED = "hit", "ignored"
KINDS = ("localisation", "class", "both", "duplicate", "background", "missed")


@dataclass(frozen=True)
class ErrorReport:
    """For each of `KINDS` the gain in mAP if it were mended, and how often it happens at the thresholds in use."""

    gains: dict[str, float]
    counts: dict[str, int]


def classify_detections(matches: Matches) -> np.ndarray:
    """The kind [D] of each detection: `HIT`, `IGNORED` or one of `KINDS` other than missed."""
    found = matches.found
    return np.select(
        [
            found.verdicts == 1,
            found.verdicts == 0,
            found.same_iou >= IOU_THRESHOLD,
            found.other_iou >= IOU_THRESHOLD,
            found.same_iou >= NEAR_IOU,
            found.other_iou >= NEAR_IOU,
        ],
        [HIT, IGNORED, "duplicate", "class", "localisation", "both"],
        "background",
    )


def find_missed(matches: Matches, kinds: np.ndarray) -> np.ndarray:
    """Bool [N]: counted objects that no detection hits, and none is off by class or place alone."""
    found = matches.found
    reached = np.zeros(len(matches.objects.labels), bool)
    reached[found.same_object[np.isin(kinds, (HIT, "localisation"))]] = True
    reached[found.other_object[kinds == "class"]] = True
    return matches.objects.counted & ~reached


def report_errors(matches: Matches, thresholds: np.ndarray) -> ErrorReport:
    """Costs over all detections; counts over those above `thresholds` [C], the ones a user would see."""
    kinds = classify_detections(matches)
    before = _mean_ap(matches, kinds, "")
    shown = matches.above(thresholds)
    shown_kinds = classify_detections(shown)
    counts = {kind: int((shown_kinds == kind).sum()) for kind in KINDS}
    counts["missed"] = int(find_missed(shown, shown_kinds).sum())
    return ErrorReport({kind: _mean_ap(matches, kinds, kind) - before for kind in KINDS}, counts)


def _mean_ap(matches: Matches, kinds: np.ndarray, mended: str) -> float:
    """VOC mAP with the mistakes of one kind mended; 0 without objects."""
    found = matches.found
    keep = kinds != IGNORED
    if mended in ("both", "duplicate", "background"):
        keep &= kinds != mended
    # The object that each detection answers for, -1 for a miss.
    answers = np.where(kinds == HIT, found.same_object, -1)
    labels = found.labels
    if mended == "localisation":
        answers = np.where(kinds == mended, found.same_object, answers)
    if mended == "class":
        answers = np.where(kinds == mended, found.other_object, answers)
        labels = labels.copy()
        labels[kinds == mended] = matches.objects.labels[found.other_object[kinds == mended]]
    counts = matches.count_objects()
    if mended == "missed":
        missed = matches.objects.labels[find_missed(matches, kinds)]
        counts = counts - np.bincount(missed - 1, minlength=len(counts))
    keep &= ~_answered_before(answers, found.scores)
    verdicts = np.where(answers >= 0, 1, -1).astype(np.int8)
    asked = matches.count_objects() > 0
    # A class all of whose objects are missed has nothing left to ask for once they are not: perfect, not absent.
    aps = [
        trace_curve(found.scores[own], verdicts[own], count).ap if count else 1.0
        for label, count in enumerate(counts.tolist(), start=1)
        if asked[label - 1]
        for own in [keep & (labels == label)]
    ]
    return float(np.mean(aps)) if aps else 0.0


def _answered_before(answers: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Bool [D]: detections whose object a better one answers for; an oracle would not leave two."""
    order = np.argsort(-scores, kind="stable")
    order = order[answers[order] >= 0]
    _, first = np.unique(answers[order], return_index=True)
    later = np.zeros(len(answers), bool)
    later[order] = True
    later[order[first]] = False
    return later
