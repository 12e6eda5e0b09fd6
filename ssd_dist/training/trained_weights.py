"""Builds the detector of a run with the weights that are evaluated, exported, and taken over by other runs.

A checkpoint in RUN/best holds these weights. A training checkpoint also holds the averages (EMA); they are used if
`eval.use_ema` is true.
"""

import tensorflow as tf
import tf_keras

from ssd_dist.core.config import Config
from ssd_dist.core.errors import CheckpointError
from ssd_dist.model.detector import build_detector
from ssd_dist.runs.checkpoints import restore_checkpoint
from ssd_dist.training.ema import ExponentialMovingAverage
from ssd_dist.training.parameter_groups import group_parameters


def build_trained_detector(config: Config, class_count: int, path: str) -> tf_keras.Model:
    """Builds the detector of a run and restores a checkpoint.

    Args:
      config: the config of the run.
      class_count: number of classes without background.
      path: the checkpoint.

    Raises:
      CheckpointError: if the checkpoint is missing, damaged or belongs to a different model.
    """
    # All weights come from the checkpoint, so the file of pretrained weights is not needed.
    backbone = config.backbone.model_copy(update={"weights": "none"})
    model = build_detector(config.model, backbone, config.anchors, class_count, config.quantization)
    if not (config.ema.enabled and config.eval.use_ema and _has_ema(path)):
        restore_checkpoint(tf.train.Checkpoint(model=model), path)
        return model
    ema = ExponentialMovingAverage(group_parameters(model, config.optimizer, backbone), config.ema)
    restore_checkpoint(tf.train.Checkpoint(model=model, ema=ema), path)
    ema.assign_to_model()
    return model


def _has_ema(path: str) -> bool:
    try:
        return any(name.startswith("ema/") for name, _ in tf.train.list_variables(path))
    except (ValueError, tf.errors.OpError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}; use another checkpoint of the run") from None
