"""Trains MobileNetV2-SSD detectors from labeled images, on one machine or many hosts.

    import ssd_dist

    ssd_dist.fit("photos", "run", minutes=30)          # as ssd-fit
    detector = ssd_dist.Detector.load("run")           # or the folder of an export
    for found in detector.predict(["cat.jpg"]):
        print(found.names, found.scores, found.boxes)

Importing the package is fast; `Detector` imports TensorFlow when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssd_dist.export.trained_detector import Detector
    from ssd_dist.fitting.fit_dataset import fit

__version__ = "0.1.0"
__all__ = ["Detector", "__version__", "fit"]

_MODULES = {"Detector": "ssd_dist.export.trained_detector", "fit": "ssd_dist.fitting.fit_dataset"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ssd_dist.core.environment_variables import set_tensorflow_defaults

    # Before the import of TensorFlow, as the commands do.
    set_tensorflow_defaults()
    return getattr(importlib.import_module(_MODULES[name]), name)
