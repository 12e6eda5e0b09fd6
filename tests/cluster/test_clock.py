"""The clock in the graph is read after the values it is given, and at every execution."""

import time

import tensorflow as tf

from ssd_dist.cluster.clock import read_clock


def delay(seconds: float) -> tf.Tensor:
    """Returns a value that is known after a while."""

    def wait() -> float:
        time.sleep(seconds)
        return 1.0

    return tf.numpy_function(wait, [], tf.float64)


def test_the_clock_is_read_after_the_given_values() -> None:
    @tf.function(autograph=False)
    def read() -> tuple[tf.Tensor, tf.Tensor]:
        start = read_clock()
        with tf.control_dependencies([start]):
            return start, read_clock(after=[delay(0.2)])

    for _ in range(2):
        start, end = read()
        assert end - start >= 0.2


def test_the_clock_advances_from_step_to_step_of_a_loop() -> None:
    @tf.function(autograph=False)
    def read() -> tf.Tensor:
        readings = tf.TensorArray(tf.float64, 3)

        def step(index: tf.Tensor, readings: tf.TensorArray) -> list:
            with tf.control_dependencies([delay(0.05)]):
                return [index + 1, readings.write(index, read_clock(after=[tf.cast(index, tf.float64)]))]

        return tf.while_loop(lambda index, _: index < 3, step, [0, readings], parallel_iterations=1)[1].stack()

    assert all(tf.experimental.numpy.diff(read()) >= 0.05)
