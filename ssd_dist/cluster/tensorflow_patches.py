"""Changes private attributes of TensorFlow; this is the only module that does so.

The attributes may change in any TensorFlow release. Each patch first checks that they exist. If one is missing, the
patch prints a warning with the tested version and leaves TensorFlow as it is: training still works, but without the
improvement that the warning names.
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import tensorflow as tf

from ssd_dist.core.printable import print_warning

TESTED_VERSION = "2.20"
_STRATEGY_MODULE = "tensorflow.python.distribute.collective_all_reduce_strategy"
_TRACKABLE_MODULE = "tensorflow.python.trackable.base"
_CREATE_INITIAL_VALUE = "_get_variable_creator_initial_value"
_LIST_LOCAL_DEVICES = "_initialize_local_devices"
_CONTEXT_MODULE = "tensorflow.python.eager.context"
_CONFIGURE_COORDINATION = "configure_coordination_service"
# Heartbeat timeout as a share of `cluster.health_timeout`. A worker sends a heartbeat every half timeout and waits one
# timeout for the answer, so in the worst case it detects a lost chief after 1.5 timeouts.
_HEARTBEAT_SHARE = 2 / 3


def set_health_check(health_timeout: float, start_timeout: float) -> None:
    """Sets how soon a dead or frozen peer is detected; call before the strategy is created.

    The strategy configures TensorFlow's coordination service, in which the workers exchange heartbeats, but leaves its
    timeouts at their defaults (10 s for a lost peer). No public function sets them, so this function adds them to the
    strategy's call.

    Args:
      health_timeout: seconds within which a lost peer must be detected (`cluster.health_timeout`).
      start_timeout: seconds to wait for all peers at the start.
    """
    context = _import_private(_CONTEXT_MODULE, "context")
    configure = None if context is None else getattr(context(), _CONFIGURE_COORDINATION, None)
    if configure is None:
        _warn(_CONFIGURE_COORDINATION, "cluster.health_timeout has no effect, and TensorFlow's own timeouts apply")
        return
    timeouts = {
        "heartbeat_timeout_in_ms": int(health_timeout * _HEARTBEAT_SHARE * 1000),
        "cluster_register_timeout_in_ms": int(start_timeout * 1000),
    }
    setattr(context(), _CONFIGURE_COORDINATION, partial(configure, **timeouts))


def use_logical_cpus(count: int) -> None:
    """Makes each worker without GPUs use `count` logical CPUs; call before the strategy is created.

    Without GPUs, `tf.distribute.MultiWorkerMirroredStrategy` creates one replica per worker, on CPU:0. It has no public
    argument for the devices of a worker, but it gets them all from one method, which this function replaces. Everything
    else is as with several GPUs per worker.

    Args:
      count: replicas per worker (`cluster.logical_cpus`).
    """
    strategy_class = _import_private(_STRATEGY_MODULE, "CollectiveAllReduceExtended")
    if not hasattr(strategy_class, _LIST_LOCAL_DEVICES):
        _warn(_LIST_LOCAL_DEVICES, "cluster.logical_cpus has no effect with several workers")
        return

    def list_local_devices(_: Any, cluster_resolver: Any, worker_device: str) -> tuple[tuple[str, ...], str]:
        return tuple(f"{worker_device}/device:CPU:{i}" for i in range(count)), "CPU"

    setattr(strategy_class, _LIST_LOCAL_DEVICES, list_local_devices)


def initialize_variables_locally(strategy: tf.distribute.MultiWorkerMirroredStrategy) -> None:
    """Makes each worker initialize its variables itself; `share_initial_weights` then makes them equal.

    TensorFlow broadcasts the chief's initial value of each variable when the variable is created. For the detector
    these are 390 collectives, one after the other: two thirds of the time in which two workers build a model.
    """
    extended = strategy.extended
    copy_first_replica = getattr(extended, _CREATE_INITIAL_VALUE, None)
    wrapper_class = _import_private(_TRACKABLE_MODULE, "CheckpointInitialValue")
    if copy_first_replica is None or wrapper_class is None:
        missing = _CREATE_INITIAL_VALUE if copy_first_replica is None else "CheckpointInitialValue"
        _warn(missing, "building the model on several workers takes longer")
        return

    def create_initial_value(
        replica_id: int, device: str, primary_var: tf.Variable, **options: Any
    ) -> Callable[[], tf.Tensor]:
        if replica_id > 0:
            # Other replicas of this worker copy the first one, as before.
            copy: Callable[[], tf.Tensor] = copy_first_replica(
                replica_id=replica_id, device=device, primary_var=primary_var, **options
            )
            return copy

        def initialize() -> tf.Tensor:
            with tf.device(device):
                value = options["initial_value"]
                value = value() if callable(value) else value
                value = value.wrapped_value if isinstance(value, wrapper_class) else value
                return tf.convert_to_tensor(value, dtype=options.get("dtype"))

        return initialize

    setattr(extended, _CREATE_INITIAL_VALUE, create_initial_value)


def _import_private(module: str, name: str) -> Any:
    """Returns an attribute of a private module; None if either does not exist."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


def _warn(name: str, effect: str) -> None:
    print_warning(
        f"TensorFlow {tf.__version__} has no {name}: {effect}; ssd-dist was tested with TensorFlow {TESTED_VERSION}"
    )
