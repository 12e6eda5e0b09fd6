"""The role of a worker is read from TF_CONFIG; an invalid TF_CONFIG is refused with the reason."""

import json
from types import SimpleNamespace

import pytest
import tensorflow as tf

from ssd_dist.cluster import strategy as strategy_module
from ssd_dist.cluster.strategy import (
    WorkerRole,
    check_strategy,
    count_replicas_per_worker,
    count_workers,
    create_strategy,
    read_worker_role,
)
from ssd_dist.core.config import ClusterConfig
from ssd_dist.core.errors import UsageError


def environment(cluster, kind="worker", index=0):
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}


def test_without_tf_config_there_is_one_worker():
    for empty in ({}, {"TF_CONFIG": ""}, {"TF_CONFIG": "  "}):
        role = read_worker_role(empty)
        assert (role.index, role.count, role.is_chief) == (0, 1, True)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_workers_are_numbered_in_the_order_of_the_cluster(index):
    workers = ["a:1", "b:1", "[::1]:7"]
    role = read_worker_role(environment({"worker": workers}, index=index))
    assert role == WorkerRole(index, tuple(workers))
    assert (role.count, role.is_chief) == (3, index == 0)


def test_a_separate_chief_has_index_zero():
    cluster = {"chief": ["c:1"], "worker": ["a:1", "b:1"]}
    assert read_worker_role(environment(cluster, "chief", 0)).index == 0
    role = read_worker_role(environment(cluster, "worker", 1))
    assert (role.index, role.addresses) == (2, ("c:1", "a:1", "b:1"))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{", ["TF_CONFIG is not valid"]),
        ("[]", ["TF_CONFIG is not valid"]),
        ('{"cluster": {"worker": ["a:1"]}}', ["task"]),
        (environment({"worker": ["a:1"]}, index=1)["TF_CONFIG"], ["worker:1", "1 workers"]),
        (environment({"worker": ["a:1", "a:1"]})["TF_CONFIG"], ["a:1", "twice"]),
        (environment({"worker": ["a"]})["TF_CONFIG"], ["'a'", "host:port"]),
        (environment({"worker": [7]})["TF_CONFIG"], ["7", "host:port"]),
        (environment({"worker": ["a:1", "[::1:2"]})["TF_CONFIG"], ["[::1:2", "host:port"]),
        # Digits of another script, which TensorFlow does not read.
        (environment({"worker": ["a:\u0661"]})["TF_CONFIG"], ["host:port"]),
        (environment({"worker": ["a:0", "b:1"]})["TF_CONFIG"], ["a:0", "65535"]),
        (environment({"worker": ["a:1", "b:65536"]})["TF_CONFIG"], ["b:65536", "65535"]),
        (environment({"worker": "a:1"})["TF_CONFIG"], ["host:port"]),
        # Added to the offset of their kind, these indices would be those of the chief and of the worker.
        (environment({"chief": ["c:1"], "worker": ["a:1"]}, "worker", -1)["TF_CONFIG"], ["worker:-1", "2 workers"]),
        (environment({"chief": ["c:1"], "worker": ["a:1"]}, "chief", 1)["TF_CONFIG"], ["chief:1", "2 workers"]),
        (environment({"worker": ["a:1"], "ps": ["p:1"]}, "ps", 0)["TF_CONFIG"], ["ps:0"]),
        (environment({"worker": ["a:1"], "evaluator": ["e:1"]}, "evaluator")["TF_CONFIG"], ["evaluator"]),
    ],
)
def test_an_invalid_tf_config_is_refused(value, words):
    with pytest.raises(UsageError) as caught:
        read_worker_role({"TF_CONFIG": value})
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("strategy", "workers", "fits"),
    [
        ("auto", 1, True), ("auto", 2, True), ("multi_worker", 2, True), ("mirrored", 1, True),
        ("multi_worker", 1, False), ("mirrored", 2, False), ("one_device", 2, False),
    ],
)  # fmt: skip
def test_the_strategy_must_match_the_number_of_workers(strategy, workers, fits):
    role = WorkerRole(0, tuple(f"host:{port}" for port in range(1, workers + 1)))
    config = ClusterConfig(strategy=strategy)
    if fits:
        check_strategy(config, role)
        return
    with pytest.raises(UsageError, match=f"cluster.strategy: {strategy}"):
        check_strategy(config, role)


def set_gpus(monkeypatch, count):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind] * count)


def test_logical_cpus_of_one_device_are_refused():
    with pytest.raises(UsageError, match=r"cluster\.logical_cpus: 2 .*one_device.* cluster\.strategy: auto"):
        check_strategy(ClusterConfig(strategy="one_device", logical_cpus=2), WorkerRole(0))
    # One logical CPU, or none, requests nothing.
    for count in (0, 1):
        check_strategy(ClusterConfig(strategy="one_device", logical_cpus=count), WorkerRole(0))


@pytest.mark.parametrize(("strategy", "gpus"), [("auto", 1), ("mirrored", 4)])
def test_a_host_with_gpus_ignores_logical_cpus(monkeypatch, capsys, strategy, gpus):
    # configs/demo.yaml sets them, and must work on every machine.
    set_gpus(monkeypatch, gpus)
    monkeypatch.setattr(tf.distribute, "OneDeviceStrategy", FakeStrategy)
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", FakeStrategy)
    created = create_strategy(ClusterConfig(strategy=strategy, logical_cpus=2), WorkerRole(0))
    assert created.devices in ("GPU:0", [f"GPU:{number}" for number in range(gpus)])
    assert f"cluster.logical_cpus: 2 is ignored, because this host has {gpus} GPUs" in capsys.readouterr().err


class FakeStrategy:
    """Stores its devices."""

    def __init__(self, devices):
        self.devices = devices
        self.num_replicas_in_sync = 1 if isinstance(devices, str) else len(devices)


@pytest.mark.parametrize(
    ("strategy", "gpus", "cpus", "count"),
    [("auto", 0, 0, 1), ("auto", 0, 3, 3), ("multi_worker", 4, 0, 4), ("one_device", 4, 0, 1)],
)
def test_each_worker_has_a_replica_per_gpu_or_logical_cpu(monkeypatch, strategy, gpus, cpus, count):
    set_gpus(monkeypatch, gpus)
    assert count_replicas_per_worker(ClusterConfig(strategy=strategy, logical_cpus=cpus)) == count


def test_a_strategy_with_another_number_of_replicas_is_refused(monkeypatch):
    # As from a TensorFlow that `use_logical_cpus` cannot change.
    ignoring = SimpleNamespace(num_replicas_in_sync=2)
    monkeypatch.setattr(strategy_module, "_create_strategy", lambda config, role, divide_threads: ignoring)
    role = WorkerRole(0, ("a:1", "b:1"))
    assert create_strategy(ClusterConfig(), role) is ignoring
    with pytest.raises(UsageError, match=r"logical_cpus: 2: .* 2 replicas instead of 4 \(2 workers with 2 each\)"):
        create_strategy(ClusterConfig(logical_cpus=2), role)


@pytest.mark.parametrize(
    ("cluster", "count"),
    [
        ({"worker": ["a:1", "b:1"]}, 2),
        ({"chief": ["c:1"], "worker": ["a:1", "b:1"]}, 3),
        ({"worker": ["a:1"], "evaluator": ["e:1"]}, 1),
        ({}, 1),  # MultiWorkerMirroredStrategy without TF_CONFIG
    ],
)
def test_the_workers_of_a_cluster_are_counted(cluster, count):
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(tf.train.ClusterSpec(cluster))
    assert count_workers(SimpleNamespace(cluster_resolver=resolver)) == count


def test_a_single_process_strategy_has_one_worker_even_in_a_job_of_several(monkeypatch):
    for name, value in environment({"worker": ["a:1", "b:1"]}).items():
        monkeypatch.setenv(name, value)
    assert count_workers(tf.distribute.OneDeviceStrategy("CPU:0")) == 1
    assert count_workers(tf.distribute.get_strategy()) == 1
