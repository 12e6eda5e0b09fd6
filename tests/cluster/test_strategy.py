"""Who a worker is, out of TF_CONFIG; and a TF_CONFIG that cannot be right is refused with the reason."""

import inspect
import json

import pytest
from tensorflow.python.distribute import collective_all_reduce_strategy

from ssd_dist.cluster import strategy as cluster_module
from ssd_dist.cluster.strategy import WorkerRole, check_strategy, read_worker_role
from ssd_dist.core.config import ClusterConfig
from ssd_dist.core.errors import UsageError


def environment(cluster, kind="worker", index=0):
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}


def test_alone_without_tf_config():
    for empty in ({}, {"TF_CONFIG": ""}, {"TF_CONFIG": "  "}):
        role = read_worker_role(empty)
        assert (role.index, role.count, role.is_chief) == (0, 1, True)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_workers_are_numbered_as_listed(index):
    workers = ["a:1", "b:1", "[::1]:7"]
    role = read_worker_role(environment({"worker": workers}, index=index))
    assert role == WorkerRole(index, tuple(workers))
    assert (role.count, role.is_chief) == (3, index == 0)


def test_a_chief_of_its_own_comes_first():
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
        (environment({"worker": ["a:0", "b:1"]})["TF_CONFIG"], ["a:0", "65535"]),
        (environment({"worker": ["a:1", "b:65536"]})["TF_CONFIG"], ["b:65536", "65535"]),
        (environment({"worker": "a:1"})["TF_CONFIG"], ["host:port"]),
        # Counted on from the chief these would be the chief, and the worker.
        (environment({"chief": ["c:1"], "worker": ["a:1"]}, "worker", -1)["TF_CONFIG"], ["worker:-1", "2 workers"]),
        (environment({"chief": ["c:1"], "worker": ["a:1"]}, "chief", 1)["TF_CONFIG"], ["chief:1", "2 workers"]),
        (environment({"worker": ["a:1"], "ps": ["p:1"]}, "ps", 0)["TF_CONFIG"], ["ps:0"]),
        (environment({"worker": ["a:1"], "evaluator": ["e:1"]}, "evaluator")["TF_CONFIG"], ["evaluator"]),
    ],
)
def test_what_cannot_be_is_refused(value, words):
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
def test_a_strategy_needs_the_workers_it_is_for(strategy, workers, fits):
    role = WorkerRole(0, tuple(f"host:{port}" for port in range(1, workers + 1)))
    config = ClusterConfig(strategy=strategy)
    if fits:
        check_strategy(config, role)
        return
    with pytest.raises(UsageError, match=f"cluster.strategy: {strategy}"):
        check_strategy(config, role)


def test_tensorflow_has_what_it_is_told_about_its_peers(monkeypatch):
    """Private names: under another one they would be set, and nobody would read them."""
    told = type("Told", (), {})
    monkeypatch.setattr(cluster_module, "CollectiveAllReduceExtended", told)
    cluster_module._watch_peers(15.0)
    values = {name: value for name, value in vars(told).items() if name.startswith("_check_health")}
    assert len(values) == 4
    strategy = collective_all_reduce_strategy.CollectiveAllReduceExtended
    source = inspect.getsource(strategy)
    for name in values:
        # Defined for the class and read by its instances; what another test has set is not in the source.
        assert f"  {name} = " in source
        assert f"self.{name}" in source
    # A peer that dies just after a check: one interval, then all attempts in full.
    interval, tries, each = (values[f"_check_health_{name}"] for name in ("interval", "retry_limit", "timeout"))
    assert interval + tries * each <= 15


def test_tensorflow_starts_variables_where_we_step_in():
    strategy = collective_all_reduce_strategy.CollectiveAllReduceExtended
    taken = inspect.signature(strategy._get_variable_creator_initial_value).parameters
    assert {"replica_id", "device", "primary_var"} <= set(taken)
