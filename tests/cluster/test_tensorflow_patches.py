"""The patched private attributes exist in this TensorFlow; if one is missing, a warning reports the effect."""

import inspect

import pytest
import tensorflow as tf
from tensorflow.python.distribute.collective_all_reduce_strategy import CollectiveAllReduceExtended
from tensorflow.python.eager.context import Context

from ssd_dist.cluster import tensorflow_patches
from ssd_dist.cluster.tensorflow_patches import (
    TESTED_VERSION,
    initialize_variables_locally,
    set_health_check,
    use_logical_cpus,
)


def use_strategy_class(monkeypatch: pytest.MonkeyPatch, strategy_class: type) -> None:
    monkeypatch.setattr(tensorflow_patches, "_import_private", lambda module, name: strategy_class)


def test_the_installed_tensorflow_has_the_tested_version():
    assert tf.__version__.startswith(TESTED_VERSION + ".")


def test_the_coordination_service_gets_the_timeouts(monkeypatch, capsys):
    context = Context()
    monkeypatch.setattr(tensorflow_patches, "_import_private", lambda module, name: lambda: context)
    set_health_check(15.0, 600)
    # As the strategy calls it, without timeouts.
    source = inspect.getsource(CollectiveAllReduceExtended._initialize_multi_worker)
    assert "context.context().configure_coordination_service(\n" in source
    assert "timeout" not in source
    context.configure_coordination_service(service_type="standalone", service_leader="/job:worker/task:0")
    found = context.coordination_service
    assert (found.service_type, found.heartbeat_timeout_in_ms) == ("standalone", 10_000)
    assert found.cluster_register_timeout_in_ms == 600_000
    # A worker sends a heartbeat every half timeout, and waits at most one timeout for the chief's answer.
    assert 1.5 * found.heartbeat_timeout_in_ms <= 15_000
    # The strategy's own health check, which has other settings, is not used with the coordination service.
    assert "self._enable_check_health = False" in source
    assert capsys.readouterr().err == ""


def test_the_initial_value_function_has_the_expected_parameters():
    function = CollectiveAllReduceExtended._get_variable_creator_initial_value
    assert {"replica_id", "device", "primary_var"} <= set(inspect.signature(function).parameters)
    wrapper = tensorflow_patches._import_private(tensorflow_patches._TRACKABLE_MODULE, "CheckpointInitialValue")
    assert "self.wrapped_value = " in inspect.getsource(wrapper)


def test_a_missing_coordination_service_is_reported(monkeypatch, capsys):
    monkeypatch.setattr(tensorflow_patches, "_import_private", lambda module, name: object)
    set_health_check(15.0, 600)
    warning = capsys.readouterr().err
    assert "no configure_coordination_service: cluster.health_timeout has no effect" in warning
    assert f"tested with TensorFlow {TESTED_VERSION}" in warning


@pytest.mark.parametrize("missing", ["module", "attribute"])
def test_a_missing_context_is_reported(monkeypatch, capsys, missing):
    value = "tensorflow.python.no_such_module" if missing == "module" else "json"
    monkeypatch.setattr(tensorflow_patches, "_CONTEXT_MODULE", value)
    set_health_check(15.0, 600)
    assert "cluster.health_timeout has no effect" in capsys.readouterr().err


def test_a_worker_uses_its_logical_cpus(monkeypatch, capsys):
    # TensorFlow passes the resolver and the worker's name, and reads the devices and their type.
    original = CollectiveAllReduceExtended._initialize_local_devices
    assert list(inspect.signature(original).parameters) == ["self", "cluster_resolver", "worker_device"]
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    worker = "/job:worker/task:1"
    assert original(None, resolver, worker) == ((f"{worker}/device:CPU:0",), "CPU")
    patched = type("Patched", (CollectiveAllReduceExtended,), {})
    use_strategy_class(monkeypatch, patched)
    use_logical_cpus(2)
    devices, kind = patched._initialize_local_devices(None, resolver, worker)
    assert (devices, kind) == ((f"{worker}/device:CPU:0", f"{worker}/device:CPU:1"), "CPU")
    assert capsys.readouterr().err == ""


def test_a_missing_list_of_local_devices_is_reported(monkeypatch, capsys):
    use_strategy_class(monkeypatch, type("Other", (), {}))
    use_logical_cpus(2)
    warning = capsys.readouterr().err
    assert "no _initialize_local_devices: cluster.logical_cpus has no effect with several workers" in warning


def test_a_missing_initial_value_function_is_reported(capsys):
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    name = "_get_variable_creator_initial_value"
    assert not hasattr(strategy.extended, name)
    initialize_variables_locally(strategy)
    assert f"no {name}: building the model on several workers takes longer" in capsys.readouterr().err
