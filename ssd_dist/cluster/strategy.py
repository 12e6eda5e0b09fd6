"""Creates the `tf.distribute.Strategy` of a process from the config and the environment.

TF_CONFIG with several workers -> MultiWorkerMirroredStrategy (NCCL on GPUs, ring on CPUs)
several GPUs, or logical CPUs  -> MirroredStrategy
otherwise                      -> OneDeviceStrategy

Each worker has one replica per GPU or, without GPUs, `cluster.logical_cpus` replicas.
"""

import json
import os
import re
from dataclasses import dataclass

import tensorflow as tf

from ssd_dist.cluster.tensorflow_patches import (
    TESTED_VERSION,
    initialize_variables_locally,
    set_health_check,
    use_logical_cpus,
)
from ssd_dist.core.config import ClusterConfig
from ssd_dist.core.errors import UsageError
from ssd_dist.core.printable import print_warning

# How long workers wait for each other at the start. Hosts may have to download container images first.
START_SECONDS = 600
# A host name, an IPv4 address or an IPv6 address in brackets, and a port.
ADDRESS = r"([^\s:/]+|\[[0-9a-fA-F:]+\]):[0-9]{1,5}"


@dataclass(frozen=True)
class WorkerRole:
    """The position of this process among the workers of a job.

    Attributes:
      index: index of this worker; 0 is the chief.
      addresses: host:port of all workers; one empty string without TF_CONFIG.
    """

    index: int
    addresses: tuple[str, ...] = ("",)

    @property
    def count(self) -> int:
        """Number of workers."""
        return len(self.addresses)

    @property
    def is_chief(self) -> bool:
        """Whether this is the chief, the only worker that writes to shared paths."""
        return self.index == 0


def read_worker_role(environment: dict[str, str] | None = None) -> WorkerRole:
    """Reads the role of this process from TF_CONFIG; without TF_CONFIG it is the only worker.

    Args:
      environment: environment variables; `os.environ` by default.

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
        if not isinstance(address, str) or not re.fullmatch(ADDRESS, address):
            raise UsageError(f"TF_CONFIG: address {address!r} is not valid; write host:port")
        if not 0 < int(address.rsplit(":", 1)[1]) < 1 << 16:
            raise UsageError(f"TF_CONFIG: the port of {address} is not valid; use a port from 1 to 65535")
        if addresses.count(address) > 1:
            raise UsageError(f"TF_CONFIG: {address} is listed twice; give each worker its own port")
    if kind == "evaluator":
        raise UsageError(
            'TF_CONFIG: task type "evaluator" is not supported; start workers only, they also evaluate the model'
        )
    first, peers = {"chief": (0, chiefs), "worker": (len(chiefs), workers)}.get(kind, (0, []))
    if not 0 <= index < len(peers):
        raise UsageError(
            f"TF_CONFIG: task {kind}:{index} is not in the cluster of {len(addresses)} workers; "
            "set task.type and task.index to an entry of cluster"
        )
    return WorkerRole(first + index, tuple(addresses))


def check_strategy(config: ClusterConfig, role: WorkerRole) -> None:
    """Checks that every setting of `cluster` can take effect in this environment; does not contact other workers.

    Raises:
      UsageError: if `cluster.strategy` and the number of workers or `cluster.logical_cpus` do not fit together.
    """
    if config.strategy == "multi_worker" and role.count == 1:
        raise UsageError(
            "cluster.strategy: multi_worker needs TF_CONFIG with several workers; "
            "start the workers with launch/train_multinode.sh"
        )
    if config.strategy in ("one_device", "mirrored") and role.count > 1:
        raise UsageError(
            f"cluster.strategy: {config.strategy} is for one worker, but TF_CONFIG lists {role.count} workers; "
            "use auto or multi_worker"
        )
    if config.logical_cpus > 1 and config.strategy == "one_device":
        raise UsageError(
            f"cluster.logical_cpus: {config.logical_cpus} has no effect with cluster.strategy: one_device, which uses "
            "one replica; set cluster.logical_cpus: 0, or cluster.strategy: auto"
        )


def count_replicas_per_worker(config: ClusterConfig) -> int:
    """Returns the number of replicas that each worker must have: its GPUs or, without GPUs, its logical CPUs."""
    if config.strategy == "one_device":
        return 1
    return len(tf.config.list_physical_devices("GPU")) or max(config.logical_cpus, 1)


def create_strategy(config: ClusterConfig, role: WorkerRole, divide_threads: bool = True) -> tf.distribute.Strategy:
    """Creates the strategy for this role; call before any other code uses a device.

    Args:
      config: strategy, logical CPUs and timeouts.
      role: the worker that this process is.
      divide_threads: whether each of several logical CPUs computes with its share of the threads only. The bits of a
        result depend on the number of threads.

    Raises:
      UsageError: if the environment does not have the workers or devices that the config needs, or if the strategy has
        another number of replicas than the config requests.
    """
    check_strategy(config, role)
    strategy = _create_strategy(config, role, divide_threads)
    replicas, per_worker = strategy.num_replicas_in_sync, count_replicas_per_worker(config)
    if replicas != role.count * per_worker:
        raise UsageError(
            f"cluster.logical_cpus: {config.logical_cpus}: TensorFlow {tf.__version__} created {replicas} replicas "
            f"instead of {role.count * per_worker} ({role.count} workers with {per_worker} each); "
            f"install TensorFlow {TESTED_VERSION}, with which ssd-dist was tested"
        )
    return strategy


def _create_strategy(config: ClusterConfig, role: WorkerRole, divide_threads: bool) -> tf.distribute.Strategy:
    """Creates the strategy without checking its number of replicas."""
    kind = config.strategy
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus and config.logical_cpus > 1:
        _split_cpu(config.logical_cpus, divide_threads)
    elif config.logical_cpus > 1:
        print_warning(
            f"cluster.logical_cpus: {config.logical_cpus} is ignored, because this host has {len(gpus)} GPUs; set "
            "CUDA_VISIBLE_DEVICES=-1 to train on its CPU"
        )
    if role.count > 1:
        communication = tf.distribute.experimental.CommunicationImplementation
        implementation = communication.NCCL if gpus else communication.RING
        options = tf.distribute.experimental.CommunicationOptions(implementation=implementation)
        set_health_check(config.health_timeout, START_SECONDS)
        if not gpus and config.logical_cpus > 1:
            use_logical_cpus(config.logical_cpus)
        strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
        initialize_variables_locally(strategy)
        return strategy
    devices = [f"GPU:{i}" for i in range(len(gpus))] or [f"CPU:{i}" for i in range(max(config.logical_cpus, 1))]
    if kind == "one_device" or (kind == "auto" and len(devices) == 1):
        return tf.distribute.OneDeviceStrategy(devices[0])
    return tf.distribute.MirroredStrategy(devices)


def count_workers(strategy: tf.distribute.Strategy) -> int:
    """Returns the number of workers of a strategy, including the chief."""
    # Strategies of one worker have no cluster resolver, or one without workers.
    resolver = strategy.cluster_resolver
    cluster = {} if resolver is None else resolver.cluster_spec().as_dict()
    return max(len(cluster.get("chief", [])) + len(cluster.get("worker", [])), 1)


def _split_cpu(count: int, divide_threads: bool) -> None:
    """Splits the CPU into `count` logical devices, one per replica; possible only before TensorFlow has started.

    Raises:
      UsageError: if TensorFlow has already started with fewer devices.
    """
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        # Each replica gets its own cores: 70 images per second, compared with 55 if every operation of each replica
        # uses all cores.
        if divide_threads:
            tf.config.threading.set_intra_op_parallelism_threads(max(len(os.sched_getaffinity(0)) // count, 1))
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError:
        existing = len(tf.config.list_logical_devices("CPU"))
        if existing < count:
            raise UsageError(
                f"cluster.logical_cpus: {count}, but TensorFlow has already started with {existing}; "
                "start a new process"
            ) from None
