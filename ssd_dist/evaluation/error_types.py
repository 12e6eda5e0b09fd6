"""Classifies detection errors and measures the cost of each error type, after TIDE (Bolya et al. 2020, section 2).

Each false positive gets the first type of this list whose condition holds (the order is ours, not TIDE's):

    `duplicate`      IoU of at least 0.5 with an object of its class that a detection with a higher score has matched
    `class`          IoU of at least 0.5 with an object of another class
    `localisation`   IoU from 0.1 to 0.5 with an object of its class
    `both`           IoU from 0.1 to 0.5 with an object of another class
    `background`     IoU below 0.1 with every counted object

An object is `missed` if it has no true positive and no false positive of type `class` or `localisation`. The cost of a
type is the gain in VOC mAP (area, IoU 0.5) if an oracle corrected only this type: wrong classes and boxes are
corrected, false positives of the other types are deleted, missed objects are removed from the ground truth. The gains
do not add up to 1 - mAP, because one error can hide another.
"""

from dataclasses import dataclass

import numpy as np

from ssd_dist.evaluation.detection_matching import Matches
from ssd_dist.evaluation.voc_metrics import IOU_THRESHOLD, trace_curve

NEAR_IOU = 0.1
TRUE_POSITIVE, IGNORED = "true positive", "ignored"
KINDS = ("localisation", "class", "both", "duplicate", "background", "missed")
# Their names in tables and reports, where they differ from the keys of the metrics files.
NAMES = {"localisation": "localization", "both": "class and localization"}


@dataclass(frozen=True)
class ErrorReport:
    """Cost and number of each error type of `KINDS`.

    Attributes:
      gains: the gain in VOC mAP if all errors of the type were corrected.
      counts: number of errors at the chosen thresholds.
    """

    gains: dict[str, float]
    counts: dict[str, int]


def classify_detections(matches: Matches) -> np.ndarray:
    """Returns the type [D] of each detection: `TRUE_POSITIVE`, `IGNORED` or one of `KINDS` except missed."""
    detections = matches.detections
    return np.select(
        [
            detections.outcomes == 1,
            detections.outcomes == 0,
            detections.same_iou >= IOU_THRESHOLD,
            detections.other_iou >= IOU_THRESHOLD,
            detections.same_iou >= NEAR_IOU,
            detections.other_iou >= NEAR_IOU,
        ],
        [TRUE_POSITIVE, IGNORED, "duplicate", "class", "localisation", "both"],
        "background",
    )


def find_missed(matches: Matches, kinds: np.ndarray) -> np.ndarray:
    """Returns bool [N]: counted objects without a true positive and without a class or localization error."""
    detections = matches.detections
    explained = np.zeros(len(matches.objects.labels), bool)
    explained[detections.same_object[np.isin(kinds, (TRUE_POSITIVE, "localisation"))]] = True
    explained[detections.other_object[kinds == "class"]] = True
    return matches.objects.counted & ~explained


def report_errors(matches: Matches, thresholds: np.ndarray) -> ErrorReport:
    """Measures the gains over all detections and the counts over the detections above `thresholds` [C]."""
    kinds = classify_detections(matches)
    before = _mean_ap(matches, kinds, "")
    shown = matches.above_thresholds(thresholds)
    shown_kinds = classify_detections(shown)
    counts = {kind: int((shown_kinds == kind).sum()) for kind in KINDS}
    counts["missed"] = int(find_missed(shown, shown_kinds).sum())
    return ErrorReport({kind: _mean_ap(matches, kinds, kind) - before for kind in KINDS}, counts)


def _mean_ap(matches: Matches, kinds: np.ndarray, corrected: str) -> float:
    """Computes the VOC mAP after correcting the errors of one type ("" for none); 0 without objects."""
    detections = matches.detections
    keep = kinds != IGNORED
    if corrected in ("both", "duplicate", "background"):
        keep &= kinds != corrected
    # The object that each detection matches, -1 for a false positive.
    matched = np.where(kinds == TRUE_POSITIVE, detections.same_object, -1)
    labels = detections.labels
    if corrected == "localisation":
        matched = np.where(kinds == corrected, detections.same_object, matched)
    if corrected == "class":
        matched = np.where(kinds == corrected, detections.other_object, matched)
        labels = labels.copy()
        labels[kinds == corrected] = matches.objects.labels[detections.other_object[kinds == corrected]]
    counts = matches.count_objects()
    if corrected == "missed":
        missed = matches.objects.labels[find_missed(matches, kinds)]
        counts = counts - np.bincount(missed - 1, minlength=len(counts))
    keep &= ~_find_duplicates(matched, detections.scores)
    outcomes = np.where(matched >= 0, 1, -1).astype(np.int8)
    annotated = matches.count_objects() > 0
    # A class whose objects are all missed has no objects left after their removal: its AP counts as 1.
    aps = []
    for label, count in enumerate(counts.tolist(), start=1):
        if annotated[label - 1]:
            own = keep & (labels == label)
            ap = trace_curve(detections.scores[own], outcomes[own], count).ap
            aps.append(1.0 if ap is None else ap)
    return float(np.mean(aps)) if aps else 0.0


def _find_duplicates(matched: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns bool [D]: detections whose object a detection with a higher score matches; an oracle deletes them."""
    order = np.argsort(-scores, kind="stable")
    order = order[matched[order] >= 0]
    _, first = np.unique(matched[order], return_index=True)
    later = np.zeros(len(matched), bool)
    later[order] = True
    later[order[first]] = False
    return later
