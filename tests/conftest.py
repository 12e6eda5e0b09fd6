"""Shared fixtures: TensorFlow on four logical CPUs with few log messages, and the folder of real data."""

import gc
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from ssd_dist.core.environment_variables import set_tensorflow_defaults

# Before any test module imports TensorFlow; processes that the tests start inherit the variables.
set_tensorflow_defaults()

# The time of an example depends on the machine, not on the code.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# Background jobs of a shell ignore SIGINT, and nohup ignores SIGHUP; processes that the tests start would inherit this.
for ignored, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(ignored) == signal.SIG_IGN:
        signal.signal(ignored, handler)

# As in the commands: traced graphs are never freed, and garbage collection would repeatedly visit all of them.
gc.set_threshold(50_000, 20, 50)


def pytest_configure(config: pytest.Config) -> None:
    """Gives the tests and the processes that they start a cache folder of their own.

    This must happen before any module is imported, because some modules copy the environment at import. The workers of
    xdist inherit the variable from their parent.
    """
    if not hasattr(config, "workerinput"):
        cache = tempfile.TemporaryDirectory(prefix="ssd_dist_tests_")
        config.add_cleanup(cache.cleanup)
        os.environ["XDG_CACHE_HOME"] = cache.name


@pytest.fixture(scope="session")
def shared() -> Path:
    """Returns the folder of real data and weights; skips the test if it does not exist."""
    folder = Path(os.environ.get("SSD_DIST_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data at {folder}; set SSD_DIST_SHARED")
    return folder


@pytest.fixture(scope="module")
def small_backbone() -> Iterator[None]:
    """Replaces the backbone by a few blocks, for modules that test more than the network; it is traced faster."""
    from support.small_backbone import build_few_blocks

    from ssd_dist.model import detector

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector, "build_backbone", build_few_blocks)
        yield


def pytest_collection_finish() -> None:
    """Splits the CPU before any test runs an operation; TensorFlow ignores the setting afterwards."""
    if "tensorflow" in sys.modules:
        _split_cpu()


@pytest.fixture(scope="session")
def four_cpus() -> list[str]:
    """Returns the names of four logical CPU devices, to create replicas without GPUs."""
    import tensorflow as tf

    _split_cpu()
    return [device.name for device in tf.config.list_logical_devices("CPU")]


def _split_cpu() -> None:
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    if tf.config.get_logical_device_configuration(cpu) is None:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
