"""Environment variables that TensorFlow reads when it is imported."""

import os

_TENSORFLOW_DEFAULTS = {
    # orbit and tf-models-official need Keras 2; importing Keras 3 as well would add 4 s to every start.
    "TF_USE_LEGACY_KERAS": "1",
    # Keeps freed activations for the next step; returning them to the system costs a page fault per 4 KiB.
    "TF_CPU_ALLOCATOR_USE_BFC": "true",
    # Hides the libraries' log messages.
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def set_tensorflow_defaults() -> None:
    """Sets the variables that the user has not set; processes started later inherit them.

    Must be called before TensorFlow is imported.
    """
    for name, value in _TENSORFLOW_DEFAULTS.items():
        os.environ.setdefault(name, value)
