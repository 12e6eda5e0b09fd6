"""The optional dependencies, and the message for one that is not installed."""

from importlib.util import find_spec

# The packages of the extras in pyproject.toml that this code imports, each under its import name.
_EXTRAS = {
    "pipelines": ("apache_beam", "defusedxml"),
    "train": (
        "faster_coco_eval",
        "fsspec",
        "h5py",
        "jinja2",
        "markupsafe",
        "official",
        "orbit",
        "tensorflow",
        "tf_keras",
    ),
    "export": ("onnx", "onnxruntime", "tf2onnx"),
    "openvino": ("nncf", "openvino"),
    "video": ("cv2",),
}


def explain_missing_package(error: ModuleNotFoundError) -> str | None:
    """Returns the message for a package of an extra that is not installed; None if no extra contains the package.

    >>> explain_missing_package(ModuleNotFoundError(name="tensorflow.io"))
    "the package tensorflow is not installed; install it with: pip install 'ssd_dist[train]'"
    >>> explain_missing_package(ModuleNotFoundError(name="ssd_dist.datum"))
    """
    package = (error.name or "").partition(".")[0]
    for extra, packages in _EXTRAS.items():
        if package in packages:
            return f"the package {package} is not installed; install it with: pip install 'ssd_dist[{extra}]'"
    return None


def check_installed(*packages: str) -> None:
    """Checks, without importing them, that packages of extras are installed.

    Raises:
      ModuleNotFoundError: for the first one that is not; the commands print its extra.
    """
    for package in packages:
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
