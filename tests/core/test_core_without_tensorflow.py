"""Tests that importing all of core imports neither TensorFlow nor Beam."""

import pkgutil
import subprocess
import sys

import ssd_dist.core

PROGRAM = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
heavy = ("tensorflow", "tf_keras", "keras", "orbit", "official", "apache_beam", "jax", "torch")
print(",".join(name for name in heavy if name in sys.modules))
"""


def test_no_core_module_imports_tensorflow():
    names = [f"ssd_dist.core.{module.name}" for module in pkgutil.iter_modules(ssd_dist.core.__path__)]
    assert "ssd_dist.core.matching" in names
    done = subprocess.run([sys.executable, "-c", PROGRAM, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
