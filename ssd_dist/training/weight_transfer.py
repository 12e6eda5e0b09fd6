"""Starts a new model from the weights of a trained detector (`model.init_from`).

backbone        taken over as a whole; it must have the same width
extra levels    layers of equal shape
class heads     the rows of background and of each class that the source has under the same name
box heads       all rows, scaled if the variances of the anchors differ

The convolution of a head has one row per anchor shape and class (or box coordinate). Each anchor shape takes the rows
of the shape of the source with the nearest aspect ratio on the same level, so the anchors may differ.
"""

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tf_keras

from ssd_dist.core.config import AnchorConfig
from ssd_dist.core.errors import CheckpointError
from ssd_dist.model.layer_names import layers_by_part, name_variables
from ssd_dist.model.quantization import LIMITS_NAME
from ssd_dist.training.source_weights import SourceWeights

# Layers, and classes, that a line of the report lists by name.
_SHOWN_NAMES = 5


class _MisfitError(Exception):
    """A layer of the source that is missing or has another shape; the text is the reason."""


def transfer_weights(
    model: tf_keras.Model, classes: Sequence[str], anchors: AnchorConfig, source: SourceWeights
) -> list[str]:
    """Assigns the weights of `source` to a new model; call in strategy scope.

    Args:
      model: the detector; layers, and rows of its heads, that have no counterpart keep their values.
      classes: its class names in label order.
      anchors: its anchors.
      source: the weights to take over.

    Returns:
      Lines that state, for each part of the network, what was taken over and what starts fresh.

    Raises:
      CheckpointError: if the backbone does not fit.
    """
    taken: dict[str, int] = defaultdict(int)
    fresh: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for part, layer in layers_by_part(model):
        # Limits that the source does not have are set by the first step.
        variables = {
            name: variable
            for name, variable in name_variables(layer).items()
            if name in source.values or not name.endswith(f"/{LIMITS_NAME}")
        }
        try:
            values = [_find_value(name, variable, classes, anchors, source) for name, variable in variables.items()]
        except _MisfitError as reason:
            if part == "backbone":
                width = "the width of the source" if source.width is None else f"{source.width:g}"
                raise CheckpointError(
                    f"model.init_from: the backbone of {source.origin} does not fit: layer {layer.name} {reason}; set "
                    f"model.width to {width}"
                ) from None
            fresh[part][str(reason)].append(layer.name)
            continue
        taken[part] += bool(variables)
        for variable, value in zip(variables.values(), values, strict=True):
            variable.assign(value)
    lines = [f"initial weights from {source.origin}"]
    for part in dict.fromkeys(part for part, _ in layers_by_part(model)):
        new = [f"{_list_names(layers)} {reason}" for reason, layers in fresh[part].items()]
        total = taken[part] + sum(map(len, fresh[part].values()))
        lines.append(
            f"  {part}: {taken[part]} of {total} layers taken over" + "".join(f"; starts fresh: {text}" for text in new)
        )
    return [*lines, *(f"  {line}" for line in _describe_rows(classes, anchors, source))]


def _find_value(
    name: str, variable: tf.Variable, classes: Sequence[str], anchors: AnchorConfig, source: SourceWeights
) -> np.ndarray:
    """Returns the value that a variable takes over; raises `_MisfitError` if it starts fresh."""
    if name not in source.values:
        raise _MisfitError("is not in the source")
    value = source.values[name]
    head = re.fullmatch(r"(class|box)_(\d)/\w+", name)
    if head is None or (head[1] == "box" and source.anchors is None):
        return _check_shape(value, tuple(variable.shape))
    if source.classes is None or source.anchors is None:
        raise _MisfitError("needs class names, which the source does not have")
    level, depth = int(head[2]), (len(source.classes) + 1 if head[1] == "class" else 4)
    shapes = match_shapes(source.anchors.aspect_ratios[level], anchors.aspect_ratios[level])
    rows = value.reshape(*value.shape[:-1], -1, depth)[..., shapes, :]
    if head[1] == "box":
        rows = rows * _scale_offsets(source.anchors, anchors)
        return _check_shape(rows.reshape(*value.shape[:-1], -1), variable.shape)
    current = variable.numpy()
    placed = current.reshape(*current.shape[:-1], len(shapes), len(classes) + 1)
    _check_shape(rows[..., 0], placed.shape[:-1])
    for label, other in match_labels(source.classes, classes).items():
        placed[..., label] = rows[..., other]
    return placed.reshape(current.shape)


def match_labels(source: Sequence[str], classes: Sequence[str]) -> dict[int, int]:
    """Returns the label in the source of each label that it has too; label 0 is background.

    >>> match_labels(("cat", "dog"), ("dog", "fox"))
    {0: 0, 1: 2}
    """
    return {0: 0} | {label: source.index(name) + 1 for label, name in enumerate(classes, 1) if name in source}


def match_shapes(source: Sequence[float], ratios: Sequence[float]) -> list[int]:
    """Returns, for each anchor shape of a level, the shape of the source with the nearest aspect ratio.

    Args:
      source: the ratios above 1 of the source's level; with them it has the shapes 1, 1 (larger), a, 1/a, ...
      ratios: those of the new model's level.

    >>> match_shapes((2.0, 3.0), (2.0, 4.0))
    [0, 1, 2, 3, 4, 5]
    >>> match_shapes((2.0, 3.0), (3.0,))
    [0, 1, 4, 5]
    """
    logs = _list_log_ratios(source)
    nearest = [int(np.argmin(np.abs(logs - log))) for log in _list_log_ratios(ratios)]
    # The two square shapes differ only in size.
    return [0, 1, *nearest[2:]]


def _list_log_ratios(ratios: Sequence[float]) -> np.ndarray:
    return np.array([0.0, 0.0, *(sign * np.log(ratio) for ratio in ratios for sign in (1.0, -1.0))])


def _scale_offsets(source: AnchorConfig, anchors: AnchorConfig) -> np.ndarray:
    """Returns float32 [4], by which offsets in units of the source's variances are multiplied."""
    center = source.center_variance / anchors.center_variance
    size = source.size_variance / anchors.size_variance
    return np.array([center, center, size, size], np.float32)


def _check_shape(value: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    if value.shape != tuple(shape):
        raise _MisfitError(f"has shape {list(value.shape)} in the source instead of {list(shape)}")
    return value


def _describe_rows(classes: Sequence[str], anchors: AnchorConfig, source: SourceWeights) -> list[str]:
    """Returns lines about the rows of the heads: classes and anchors that differ from the source's."""
    if source.classes is None or source.anchors is None:
        return []
    new = [name for name in classes if name not in source.classes]
    kept = [name for name in classes if name in source.classes]
    lines = [
        f"class rows: background and {len(kept)} of {len(classes)} classes taken over"
        + (f"; not in the source, starts fresh: {_list_names(new)}" if new else "")
    ]
    changed = sum(a != b for a, b in zip(source.anchors.aspect_ratios, anchors.aspect_ratios, strict=True))
    if changed:
        lines.append(f"anchors: {changed} levels have other aspect ratios; each shape starts from the nearest one")
    return lines


def _list_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN_NAMES} others" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(names[:_SHOWN_NAMES]) + more
