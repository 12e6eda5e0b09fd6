"""What workers tell each other outside of the training step; collective, so all must call.

A number, summed over workers; and, once, the weights they start from.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf


class WorkerSum:
    """Sums a number over the workers of a strategy. Each call is a collective of its own when there are several."""

    def __init__(self, strategy: tf.distribute.Strategy, worker_count: int) -> None:
        self._worker_count = worker_count

        @tf.function(input_signature=[tf.TensorSpec([], tf.float64)], autograph=False)
        def reduce(value: tf.Tensor) -> tf.Tensor:
            def contribute() -> tf.Tensor:
                replica = tf.distribute.get_replica_context().replica_id_in_sync_group
                # The first of each worker's replicas speaks for it: a share of each would round.
                return tf.where(replica % (strategy.num_replicas_in_sync // worker_count) == 0, value, 0.0)

            return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(contribute), axis=None)

        self._reduce = reduce

    def __call__(self, value: float) -> float:
        """The sum of all workers' values."""
        if self._worker_count == 1:
            return float(value)
        return float(self._reduce(tf.constant(value, tf.float64)))

    def any(self, flag: bool) -> bool:
        """Whether any worker's flag is set."""
        return self(float(flag)) > 0

    def from_chief(self, value: float, is_chief: bool) -> float:
        """The chief's value, on every worker."""
        return self(value if is_chief else 0.0)


def share_initial_weights(variables: Sequence[tf.Variable]) -> None:
    """Gives all workers the chief's values of a new model's variables, in one collective; call in strategy scope.

    The seeds are the same everywhere, but a worker with another processor may round its random numbers differently.
    Moving statistics start from constants, and to TensorFlow each look at one is a collective of its own: left alone.
    """
    strategy = tf.distribute.get_strategy()
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return
    variables = [v for v in variables if v.synchronization != tf.VariableSynchronization.ON_READ]
    own = np.concatenate([variable.numpy().ravel() for variable in variables])

    @tf.function(autograph=False)
    def reduce(values: tf.Tensor) -> tf.Tensor:
        def contribute() -> tf.Tensor:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            return tf.where(replica == 0, values, tf.zeros_like(values))

        return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(contribute), axis=None)

    chiefs = reduce(tf.constant(own)).numpy()
    if not np.array_equal(own, chiefs):
        parts = np.split(chiefs, np.cumsum([variable.shape.num_elements() for variable in variables])[:-1])
        for variable, part in zip(variables, parts, strict=True):
            variable.assign(part.reshape(variable.shape))
