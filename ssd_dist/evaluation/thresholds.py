"""Parses the flag --score_threshold: the lowest score at which detections are shown, per class.

0.4                       one threshold for all classes
0.4,RBC:0.3               another threshold for the class RBC
metrics.json,RBC:0.3      the thresholds of the best F1 from a file of ssd-evaluate (or export.json), except for RBC
"""

import difflib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ssd_dist.core.errors import UsageError

DEFAULT = 0.4
ALLOWED = "a score from 0 to 1, CLASS:SCORE, or a .json file of ssd-evaluate or ssd-export"


def parse_thresholds(text: str, classes: Sequence[str]) -> np.ndarray:
    """Parses comma-separated thresholds; later items override earlier ones.

    Args:
      text: the value of the flag.
      classes: class names in label order.

    Returns:
      float64 [C], the lowest score that is shown, for each class.

    Raises:
      UsageError: if an item is not valid.
    """
    thresholds = np.full(len(classes), DEFAULT)
    if text.endswith(".json") and os.path.isfile(text):
        # A path may contain commas.
        thresholds[:] = _read_thresholds(text, classes)
        return thresholds
    for item in _split_items(text, classes):
        name, colon, score = item.rpartition(":")
        if item.endswith(".json"):
            thresholds[:] = _read_thresholds(item, classes)
        elif not colon:
            thresholds[:] = _parse_score(item, item)
        elif name in classes:
            thresholds[classes.index(name)] = _parse_score(score, item)
        else:
            near = difflib.get_close_matches(name, classes, n=1, cutoff=0.0)
            raise UsageError(f"--score_threshold={item}: unknown class {name!r}; did you mean {near[0]!r}?")
    return thresholds


def _split_items(text: str, classes: Sequence[str]) -> Iterator[str]:
    """Yields the comma-separated items; the name of a class may contain commas."""
    names = sorted((name for name in classes if "," in name), key=len, reverse=True)
    rest = text.strip(", ")
    while rest:
        name = next((name for name in names if rest.startswith(f"{name}:")), "")
        item, _, rest = rest[len(name) :].partition(",")
        yield f"{name}{item}".strip()
        rest = rest.strip(", ")


def _parse_score(text: str, item: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = -1.0
    if not 0 <= score <= 1:
        raise UsageError(f"--score_threshold={item}: not a valid threshold; give {ALLOWED}")
    return score


def _read_thresholds(path: str, classes: Sequence[str]) -> list[float]:
    try:
        content = json.loads(Path(path).read_text())
        points = content["analysis"]["operating_points"] if "analysis" in content else content["operating_points"]
        by_class = {name: float(point["threshold"]) for name, point in points.items()}
    except FileNotFoundError:
        raise UsageError(f"--score_threshold={path}: the file does not exist; give {ALLOWED}") from None
    except OSError as error:
        raise UsageError(f"--score_threshold={path}: cannot be read ({error.strerror}); give {ALLOWED}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(
            f"--score_threshold={path}: not a metrics file: cannot read 'operating_points'; give the file that "
            "ssd-evaluate --output wrote, or export.json of ssd-export"
        ) from None
    if missing := [name for name in classes if name not in by_class]:
        raise UsageError(
            f"--score_threshold={path}: the file has no class {missing[0]!r}; give the file of an "
            "evaluation of this model"
        )
    return [by_class[name] for name in classes]
