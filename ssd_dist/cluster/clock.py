"""Reads a clock inside the traced training loop, to measure how long each step waits for its batch (`data_wait`).

All steps up to the next pause run in one traced `tf.while_loop`. Python code around `next(iterator)` runs only once,
during tracing, so it cannot time the steps. `tf.timestamp` is not available either: TensorFlow refuses it under op
determinism (`train.deterministic`). `tf.numpy_function` therefore calls Python's clock from the graph. A call takes
about 0.15 ms, and a step makes two.
"""

import time

import tensorflow as tf


def read_clock() -> tf.Tensor:
    """Reads a monotonic clock each time the graph executes.

    TensorFlow orders the reading only by control dependencies: callers must state what comes before and after it.

    Returns:
      float64 scalar, seconds since an arbitrary point in time.
    """
    seconds = tf.numpy_function(time.perf_counter, [], tf.float64)
    return tf.ensure_shape(seconds, [])
