"""The machines: from the config and the environment to a `tf.distribute.Strategy`.

TF_CONFIG with several workers -> MultiWorkerMirroredStrategy (NCCL on GPUs, ring on CPUs)
several GPUs, or logical CPUs  -> MirroredStrategy
otherwise                      -> one device
"""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from tensorflow.python.distribute.collective_all_reduce_strategy import CollectiveAllReduceExtended
from tensorflow.python.trackable.base import CheckpointInitialValue

from ssd_dist.core.config import ClusterConfig
from ssd_dist.core.errors import UsageError

# How long workers wait for each other at the start: a scheduler may pull images on some hosts first.
START_SECONDS = 600


@dataclass(frozen=True)
class WorkerRole:
    """Which of the workers, at `addresses` host:port, this process is; alone it has no address."""

    index: int
    addresses: tuple[str, ...] = ("",)

    @property
    def count(self) -> int:
        """Number of workers."""
        return len(self.addresses)

    @property
    def is_chief(self) -> bool:
        """The one worker that writes to shared paths."""
        return self.index == 0


def read_worker_role(environment: dict[str, str] | None = None) -> WorkerRole:
    """This process's place in TF_CONFIG; alone without one.

    Raises:
      UsageError: if TF_CONFIG is not what TensorFlow expects.
    """
    text = (os.environ if environment is None else environment).get("TF_CONFIG", "")
    if not text.strip():
        return WorkerRole(0)
    try:
        tree = json.loads(text)
        cluster, task = tree["cluster"], tree["task"]
        chiefs, workers = list(cluster.get("chief", [])), list(cluster.get("worker", []))
        kind, index = task["type"], int(task["index"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"TF_CONFIG is not valid ({error!r}); it needs cluster.worker and task.type, task.index"
        ) from None
    addresses = [*chiefs, *workers]
    for address in addresses:
        if not isinstance(address, str) or not re.fullmatch(r"[^\s:/]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}", address):
            raise UsageError(f"TF_CONFIG: {address!r} is not host:port")
        if not 0 < int(address.rsplit(":", 1)[1]) < 1 << 16:
            raise UsageError(f"TF_CONFIG: {address}: a port is from 1 to 65535")
        if addresses.count(address) > 1:
            raise UsageError(f"TF_CONFIG: {address} is there twice; each worker needs a port of its own")
    if kind == "evaluator":
        raise UsageError("TF_CONFIG: task type evaluator has no part here; the workers evaluate themselves")
    first, peers = {"chief": (0, chiefs), "worker": (len(chiefs), workers)}.get(kind, (0, []))
    if not 0 <= index < len(peers):
        raise UsageError(f"TF_CONFIG: task {kind}:{index} is not in its own cluster of {len(addresses)} workers")
    return WorkerRole(first + index, tuple(addresses))


def check_strategy(config: ClusterConfig, role: WorkerRole) -> None:
    """Checks what can be known before the workers meet: whether the environment has the workers the config asks for.

    Raises:
      UsageError: if it has not.
    """
    if config.strategy == "multi_worker" and role.count == 1:
        raise UsageError("cluster.strategy: multi_worker needs TF_CONFIG; start it with launch/train_multinode.sh")
    if config.strategy in ("one_device", "mirrored") and role.count > 1:
        raise UsageError(
            f"cluster.strategy: {config.strategy}, but TF_CONFIG names {role.count} workers; use auto or multi_worker"
        )


def create_strategy(config: ClusterConfig, role: WorkerRole) -> tf.distribute.Strategy:
    """The strategy that the config asks for in this role; call before anything touches a device.

    Raises:
      UsageError: if the config asks for what the environment does not have.
    """
    check_strategy(config, role)
    kind = config.strategy
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus and config.logical_cpus > 1:
        _split_cpu(config.logical_cpus)
    if role.count > 1:
        communication = tf.distribute.experimental.CommunicationImplementation
        implementation = communication.NCCL if gpus else communication.RING
        options = tf.distribute.experimental.CommunicationOptions(implementation=implementation)
        _watch_peers(config.health_timeout)
        strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
        _start_variables_locally(strategy)
        return strategy
    devices = [f"GPU:{i}" for i in range(len(gpus))] or [f"CPU:{i}" for i in range(max(config.logical_cpus, 1))]
    if kind == "one_device" or (kind == "auto" and len(devices) == 1):
        return tf.distribute.OneDeviceStrategy(devices[0])
    return tf.distribute.MirroredStrategy(devices)


def _watch_peers(timeout: float) -> None:
    """Sets how soon a dead or frozen peer is noticed, in seconds; only the strategy's class can be told."""
    # In the worst case a peer dies just after a check: one interval, then two attempts that wait in full.
    CollectiveAllReduceExtended._check_health_interval = timeout / 5
    CollectiveAllReduceExtended._check_health_retry_limit = 2
    CollectiveAllReduceExtended._check_health_timeout = max(1, int(timeout * 2 / 5))
    CollectiveAllReduceExtended._check_health_initial_timeout = START_SECONDS


def _start_variables_locally(strategy: tf.distribute.Strategy) -> None:
    """Each worker starts its variables itself; `share_initial_weights` makes them the chief's, all at once.

    TensorFlow broadcasts the chief's value of each variable as it is made: 390 collectives one after the other, two
    thirds of the time in which two workers build a model.
    """
    extended = strategy.extended
    copy_first_replica = extended._get_variable_creator_initial_value

    def create_initial_value(replica_id: int, device: str, primary_var: tf.Variable, **options: Any) -> Callable:
        if replica_id > 0:
            return copy_first_replica(replica_id=replica_id, device=device, primary_var=primary_var, **options)

        def start() -> tf.Tensor:
            with tf.device(device):
                value = options["initial_value"]
                value = value() if callable(value) else value
                value = value.wrapped_value if isinstance(value, CheckpointInitialValue) else value
                return tf.convert_to_tensor(value, dtype=options.get("dtype"))

        return start

    extended._get_variable_creator_initial_value = create_initial_value


def _split_cpu(wanted: int) -> None:
    """Makes that many replicas' devices of the one CPU; only a process that has not started TensorFlow can."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        # Replicas that share all cores in each operation wait for each other: 55 images a second, with own ones 70.
        tf.config.threading.set_intra_op_parallelism_threads(max(len(os.sched_getaffinity(0)) // wanted, 1))
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * wanted)
    except RuntimeError:
        have = len(tf.config.list_logical_devices("CPU"))
        if have < wanted:
            raise UsageError(
                f"cluster.logical_cpus: {wanted}, but TensorFlow was started with {have}; start a new process"
            ) from None
