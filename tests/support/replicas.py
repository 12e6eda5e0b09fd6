"""Running one function on several replicas of one process, each with its share of the rows."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import tensorflow as tf


@cache
def mirrored(replicas: int) -> tf.distribute.MirroredStrategy:
    """A strategy over that many logical CPUs; ask for the fixture `four_cpus` first.

    Each number of replicas has keys of its own for its collectives: with the same ones, two strategies of one process
    take each other's devices for members of their group and abort.
    """
    keys = {"_collective_key_base": 100_000 * replicas}
    kind = type("MirroredStrategy", (tf.distribute.MirroredStrategy,), keys)
    return kind([f"CPU:{i}" for i in range(replicas)])


def share_rows(strategy: tf.distribute.Strategy, values: Any) -> Any:
    """Arrays [B, ...], in any structure, as per-replica tensors of B / R consecutive rows."""
    replicas = strategy.num_replicas_in_sync

    def share(array: np.ndarray) -> Any:
        parts = np.split(np.asarray(array), replicas)
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(parts[context.replica_id_in_sync_group])
        )

    return tf.nest.map_structure(share, values)


def collect_rows(strategy: tf.distribute.Strategy, values: Any) -> Any:
    """The inverse of `share_rows`: arrays of all rows."""
    return tf.nest.map_structure(
        lambda value: np.concatenate([part.numpy() for part in strategy.experimental_local_results(value)]), values
    )


def copies(strategy: tf.distribute.Strategy, variable: tf.Variable) -> list[np.ndarray]:
    """The value of a variable on each replica."""
    return [copy.numpy() for copy in strategy.experimental_local_results(variable)]


def trace(function: Callable[..., Any], replicas: int) -> Callable[..., Any]:
    """`function` as one traced call on all replicas, per-replica values in and out."""
    strategy = mirrored(replicas)
    return tf.function(lambda *args: strategy.run(function, args=args))
