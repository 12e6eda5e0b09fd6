"""A clock that a traced training loop may read.

TensorFlow refuses its own `tf.timestamp` under op determinism, and a Python clock would halt the loop each step. The
kernel's uptime is a file; its ticks of 10 ms cancel out over the steps of a report.
"""

from pathlib import Path

import tensorflow as tf

_UPTIME = "/proc/uptime"


class LoopClock(tf.Module):
    """Seconds since boot, in graph; always 0 where the system has no /proc."""

    def __init__(self) -> None:
        super().__init__(name="clock")
        # A variable, not a constant: a file read at a constant path would be folded into the graph. Of code points:
        # strings cannot be sent to other workers, as the first value of a mirrored variable is.
        codes = [ord(letter) for letter in _UPTIME]
        self._path = tf.Variable(codes, trainable=False, dtype=tf.int32) if Path(_UPTIME).exists() else None

    def read(self) -> tf.Tensor:
        """float64 scalar; runs when the surrounding control dependencies are met."""
        if self._path is None:
            return tf.zeros([], tf.float64)
        path = tf.strings.unicode_encode(self._path.read_value(), "UTF-8")
        words = tf.strings.split(tf.io.read_file(path), " ")
        return tf.strings.to_number(words[0], tf.float64)
