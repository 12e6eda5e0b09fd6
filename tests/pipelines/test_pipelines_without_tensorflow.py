"""Tests the import boundaries: pipelines does not import TensorFlow; ssd_dist.core imports neither it nor Beam."""

import pkgutil
import subprocess
import sys

import pipelines


def is_loaded_after(imports: list[str], package: str) -> bool:
    program = "import sys\n" + "".join(f"import {name}\n" for name in imports)
    program += f"sys.exit(any(name.split('.')[0] == {package!r} for name in sys.modules))"
    return bool(subprocess.run([sys.executable, "-c", program], check=False).returncode)


def test_no_module_of_pipelines_imports_tensorflow():
    modules = [module.name for module in pkgutil.walk_packages(pipelines.__path__, "pipelines.")]
    assert "pipelines.readers.coco" in modules
    assert not is_loaded_after(modules, "tensorflow")


def test_core_imports_neither_tensorflow_nor_beam():
    modules = ["ssd_dist.core.images", "ssd_dist.core.commands", "ssd_dist.core.records", "ssd_dist.core.manifest"]
    assert not is_loaded_after(modules, "tensorflow")
    assert not is_loaded_after(modules, "apache_beam")
