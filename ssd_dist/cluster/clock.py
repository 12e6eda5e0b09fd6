"""Reads a clock inside the traced training loop, to measure how long the devices wait for a batch (`data_wait`).

All steps up to the next pause run in one traced `tf.while_loop`. Python code around `next(iterator)` runs only once,
during tracing, so it cannot time the steps. `tf.timestamp` is not available either: TensorFlow refuses it under op
determinism (`train.deterministic`). `tf.numpy_function` therefore calls Python's clock from the graph. A call takes
about 0.15 ms, and a step makes two.
"""

import time
from collections.abc import Sequence

import tensorflow as tf


def read_clock(after: Sequence[tf.Tensor] = ()) -> tf.Tensor:
    """Reads a monotonic clock each time the graph executes.

    TensorFlow orders the reading only by inputs and control dependencies: callers must state what comes before and
    after it. The host does not wait for a GPU: a control dependency on an operation is fulfilled when the operation is
    queued on the GPU, an input only when its value has arrived on the host.

    Args:
      after: values that must be on the host before the clock is read. On a GPU, they arrive when the work that was
        queued there before is done.

    Returns:
      float64 scalar, seconds since an arbitrary point in time.
    """
    seconds = tf.numpy_function(lambda *_: time.perf_counter(), list(after), tf.float64)
    return tf.ensure_shape(seconds, [])
