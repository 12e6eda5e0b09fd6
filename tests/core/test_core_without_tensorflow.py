"""Tests that importing all of core imports neither TensorFlow nor Beam."""

import pkgutil
import subprocess
import sys

import pytest

import ssd_dist
import ssd_dist.core

PROGRAM = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
heavy = ("tensorflow", "tf_keras", "keras", "orbit", "official", "apache_beam", "jax", "torch")
print(",".join(name for name in heavy if name in sys.modules))
"""


def test_the_package_imports_nothing_heavy_until_a_detector_is_used():
    heavy = "[name for name in ('tensorflow', 'apache_beam') if name in sys.modules]"
    program = f"import sys, ssd_dist; ssd_dist.fit; print(*{heavy})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
    new = "{name.split('.')[0] for name in set(sys.modules) - before}"
    program = f"import sys; before = set(sys.modules); import ssd_dist; print(*{new})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert set(done.stdout.split()) <= {"ssd_dist", *sys.stdlib_module_names}
    with pytest.raises(AttributeError, match="Detectro"):
        _ = ssd_dist.Detectro


def test_no_core_module_imports_tensorflow():
    names = [f"ssd_dist.core.{module.name}" for module in pkgutil.iter_modules(ssd_dist.core.__path__)]
    assert "ssd_dist.core.matching" in names
    done = subprocess.run([sys.executable, "-c", PROGRAM, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
