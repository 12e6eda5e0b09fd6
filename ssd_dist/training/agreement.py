"""What workers tell each other outside of the training step: one number, summed; collective, so all must call."""

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
