"""Runs a function on several replicas of one process, each with its share of the rows."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import tensorflow as tf


@cache
def mirrored(replicas: int) -> tf.distribute.MirroredStrategy:
    """Returns a strategy over `replicas` logical CPUs; the test needs the fixture `four_cpus`.

    Each number of replicas has its own collective keys. With equal keys, two strategies of one process would treat each
    other's devices as members of their group and abort.
    """
    keys = {"_collective_key_base": 100_000 * replicas}
    kind = type("MirroredStrategy", (tf.distribute.MirroredStrategy,), keys)
    return kind([f"CPU:{i}" for i in range(replicas)])


def share_rows(strategy: tf.distribute.Strategy, values: Any) -> Any:
    """Splits arrays [B, ...], in any structure, into per-replica tensors of B / R consecutive rows."""
    replicas = strategy.num_replicas_in_sync

    def share(array: np.ndarray) -> Any:
        parts = np.split(np.asarray(array), replicas)
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(parts[context.replica_id_in_sync_group])
        )

    return tf.nest.map_structure(share, values)


def collect_rows(strategy: tf.distribute.Strategy, values: Any) -> Any:
    """Concatenates per-replica tensors to arrays of all rows; the inverse of `share_rows`."""
    return tf.nest.map_structure(
        lambda value: np.concatenate([part.numpy() for part in strategy.experimental_local_results(value)]), values
    )


def copies(strategy: tf.distribute.Strategy, variable: tf.Variable) -> list[np.ndarray]:
    """Returns the value of a variable on each replica."""
    return [copy.numpy() for copy in strategy.experimental_local_results(variable)]


def trace(function: Callable[..., Any], replicas: int) -> Callable[..., Any]:
    """Traces `function` as one call on all replicas, with per-replica values as inputs and outputs."""
    strategy = mirrored(replicas)
    return tf.function(lambda *args: strategy.run(function, args=args))
