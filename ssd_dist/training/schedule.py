"""The learning-rate schedule: linear warm-up, then cosine decay.

Goyal et al. 2017, section 2.2 (warm-up); Loshchilov and Hutter 2017 (cosine).
"""

import math
from dataclasses import dataclass

import tensorflow as tf

from ssd_dist.core.config import ScheduleConfig


@dataclass(frozen=True)
class CosineWarmupSchedule:
    """Maps the number of applied updates to the learning rate of the next update.

    Warm-up: base_lr * (step + 1) / warmup_steps, so the first update already has a rate above 0. After warm-up:
    min_lr + (base_lr - min_lr) * (1 + cos(pi * progress)) / 2, where progress runs from 0 to 1 at `total_steps`.

    Attributes:
      base_lr: the learning rate at the end of warm-up.
      total_steps: steps of the whole run; afterwards the rate stays at `min_lr`. Limits the length of the warm-up.
      config: `warmup_steps` and `min_lr`.
    """

    base_lr: float
    total_steps: int
    config: ScheduleConfig

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the learning rate, a float32 scalar, of the update that follows `step` applied updates."""
        base_lr, min_lr = self.base_lr, self.config.min_lr
        position = tf.cast(step, tf.float32)
        warmup = min(self.config.warmup_steps, self.total_steps)
        warmup_lr = base_lr * (position + 1.0) / max(warmup, 1)
        progress = tf.clip_by_value((position - warmup) / max(self.total_steps - warmup, 1), 0.0, 1.0)
        cosine_lr = min_lr + (base_lr - min_lr) * 0.5 * (1.0 + tf.cos(math.pi * progress))
        return tf.where(position < warmup, warmup_lr, cosine_lr)
