"""What all tests share: quiet TensorFlow on four logical CPUs, and where the real data is."""

import gc
import os
import signal
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says something of the machine, nothing of the code.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# What a shell starts in the background ignores SIGINT, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# As the commands do: traced graphs are objects that stay, and looking through them again and again takes time.
gc.set_threshold(50_000, 20, 50)


def pytest_configure(config: pytest.Config) -> None:
    """Keeps the tests, and all that they start, out of the user's own cache.

    Before any module is read, for some copy the environment there; xdist's workers have it from their parent.
    """
    if not hasattr(config, "workerinput"):
        cache = tempfile.TemporaryDirectory(prefix="ssd_dist_tests_")
        config.add_cleanup(cache.cleanup)
        os.environ["XDG_CACHE_HOME"] = cache.name


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and weights; a test that needs it is skipped where there is none."""
    folder = Path(os.environ.get("SSD_DIST_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data at {folder}; set SSD_DIST_SHARED")
    return folder


def pytest_collection_finish() -> None:
    """Splits the CPU before any test runs an operation: TensorFlow takes the setting only then."""
    if "tensorflow" in sys.modules:
        _split_cpu()


@pytest.fixture(scope="session")
def four_cpus() -> list[str]:
    """Four logical CPU devices, replicas without GPUs."""
    import tensorflow as tf

    _split_cpu()
    return [device.name for device in tf.config.list_logical_devices("CPU")]


def _split_cpu() -> None:
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    if tf.config.get_logical_device_configuration(cpu) is None:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
