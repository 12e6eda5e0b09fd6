"""The learning rate: a linear warm-up, then a cosine (Goyal et al. 2017, section 2.2; Loshchilov and Hutter 2017)."""

import math

import tensorflow as tf

from ssd_dist.core.config import ScheduleConfig


def learning_rate(step: tf.Tensor, base_lr: float, total_steps: int, config: ScheduleConfig) -> tf.Tensor:
    """The rate for the update that follows `step` applied updates.

    Warm-up: base_lr * (step + 1) / warmup_steps, so the first update already moves. Then from base_lr down to
    min_lr: min_lr + (base_lr - min_lr) * (1 + cos(pi * progress)) / 2.
    """
    position = tf.cast(step, tf.float32)
    warmup = min(config.warmup_steps, total_steps)
    rising = base_lr * (position + 1.0) / max(warmup, 1)
    progress = tf.clip_by_value((position - warmup) / max(total_steps - warmup, 1), 0.0, 1.0)
    falling = config.min_lr + (base_lr - config.min_lr) * 0.5 * (1.0 + tf.cos(math.pi * progress))
    return tf.where(position < warmup, rising, falling)
