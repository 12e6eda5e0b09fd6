"""The score from which on a detection is shown, by class: given on the command line, or chosen by an evaluation.

0.4                       for all classes
0.4,RBC:0.3               and another for one of them
metrics.json,RBC:0.3      those of the best F1 that ssd-evaluate wrote, or export.json of an export, but for one
"""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ssd_dist.core.errors import UsageError

DEFAULT = 0.4
ALLOWED = "a score from 0 to 1, CLASS:SCORE, or a .json file of ssd-evaluate or ssd-export"


def parse_thresholds(text: str, classes: Sequence[str]) -> np.ndarray:
    """float64 [C], the lowest score that is shown of each class; of items separated by commas later ones win.

    Raises:
      UsageError: naming the item that is wrong.
    """
    thresholds = np.full(len(classes), DEFAULT)
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, colon, score = item.rpartition(":")
        if item.endswith(".json"):
            _apply_file(item, classes, thresholds)
        elif not colon:
            thresholds[:] = _parse_score(item, item)
        elif name in classes:
            thresholds[classes.index(name)] = _parse_score(score, item)
        else:
            near = difflib.get_close_matches(name, classes, n=1, cutoff=0.0)
            raise UsageError(f"--score_threshold={item}: there is no class {name!r}; did you mean {near[0]!r}?")
    return thresholds


def _parse_score(text: str, item: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = -1.0
    if not 0 <= score <= 1:
        raise UsageError(f"--score_threshold={item}: allowed: {ALLOWED}")
    return score


def _apply_file(path: str, classes: Sequence[str], thresholds: np.ndarray) -> None:
    try:
        content = json.loads(Path(path).read_text())
        points = content["analysis"]["operating_points"] if "analysis" in content else content["operating_points"]
        chosen = {name: float(point["threshold"]) for name, point in points.items()}
    except FileNotFoundError:
        raise UsageError(f"--score_threshold={path}: the file does not exist") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"--score_threshold={path}: not what ssd-evaluate --output or ssd-export writes ({error!r})"
        ) from None
    if missing := [name for name in classes if name not in chosen]:
        raise UsageError(f"--score_threshold={path}: has no class {missing[0]!r}; is it of this model?")
    thresholds[:] = [chosen[name] for name in classes]
