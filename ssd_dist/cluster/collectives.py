"""Collective operations between workers outside of the training step. All workers must call each of them.

`WorkerCollectives` exchanges single numbers; `share_initial_weights` copies the chief's weights of a new model once.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf


class WorkerCollectives:
    """Sums and broadcasts numbers between the workers of a strategy.

    Each call is one collective operation; with one worker nothing is communicated.
    """

    def __init__(self, strategy: tf.distribute.Strategy, worker_count: int) -> None:
        self._worker_count = worker_count

        @tf.function(input_signature=[tf.TensorSpec([], tf.float64)], autograph=False)
        def reduce(value: tf.Tensor) -> tf.Tensor:
            def contribute() -> tf.Tensor:
                replica = tf.distribute.get_replica_context().replica_id_in_sync_group
                # Only the first replica of each worker contributes: equal shares of all replicas would be rounded.
                return tf.where(replica % (strategy.num_replicas_in_sync // worker_count) == 0, value, 0.0)

            return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(contribute), axis=None)

        self._reduce = reduce

    def sum(self, value: float) -> float:
        """Returns the sum of the values of all workers."""
        if self._worker_count == 1:
            return float(value)
        return float(self._reduce(tf.constant(value, tf.float64)))

    def any(self, flag: bool) -> bool:
        """Returns whether the flag of any worker is set."""
        return self.sum(float(flag)) > 0

    def broadcast_from_chief(self, value: float, is_chief: bool) -> float:
        """Returns the chief's value on every worker."""
        return self.sum(value if is_chief else 0.0)


def share_initial_weights(variables: Sequence[tf.Variable]) -> None:
    """Assigns the chief's values of a new model's variables on all workers; call in strategy scope.

    All workers use the same seeds, but workers with different processors may round their random numbers differently.
    Variables that synchronize on read (moving statistics) are skipped, because reading each of them would be a
    collective of its own; `run_checks.check_same_statistics` compares them. All other variables are sent in one
    collective.
    """
    strategy = tf.distribute.get_strategy()
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return
    variables = [v for v in variables if v.synchronization != tf.VariableSynchronization.ON_READ]
    own_values = np.concatenate([variable.numpy().ravel() for variable in variables])

    @tf.function(autograph=False)
    def reduce(values: tf.Tensor) -> tf.Tensor:
        def contribute() -> tf.Tensor:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            return tf.where(replica == 0, values, tf.zeros_like(values))

        return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(contribute), axis=None)

    chief_values = reduce(tf.constant(own_values)).numpy()
    if not np.array_equal(own_values, chief_values):
        parts = np.split(chief_values, np.cumsum([variable.shape.num_elements() for variable in variables])[:-1])
        for variable, part in zip(variables, parts, strict=True):
            variable.assign(part.reshape(variable.shape))
