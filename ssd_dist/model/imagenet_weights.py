"""Downloads the ImageNet weights of MobileNetV2 that Keras provides, into the cache of the user, and verifies them.

    storage -> temporary file -> size and MD5 that the storage states -> SHA-256 beside the file -> rename
    cached file -> the SHA-256 beside it, which its first use has written

The SHA-256 detects a file that was damaged or replaced after its first use. The file is never taken from a folder that
other users may write to: Keras would use /tmp/.keras if the home directory is not writable.
"""

import base64
import hashlib
import shutil
import urllib.request
from pathlib import Path

from tf_keras.src.applications import mobilenet_v2

from ssd_dist.core.errors import CheckpointError
from ssd_dist.core.storage import replace_file, write_text

# Keras provides ImageNet weights for these widths and sizes; other image sizes use the weights of size 224.
IMAGENET_WIDTHS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
IMAGENET_SIZES = (96, 128, 160, 192, 224)
# Seconds without data after which a download fails.
_TIMEOUT = 60.0


def fetch_imagenet_weights(width: float, input_size: int) -> Path:
    """Returns the verified weight file of a width; downloads it if it is not in Keras's cache of this user.

    Raises:
      CheckpointError: if there are no weights of this width, the download fails, or the file has changed.
    """
    fix = "set backbone.weights to the path of a weight file, or to none"
    if width not in IMAGENET_WIDTHS:
        widths = ", ".join(map(str, IMAGENET_WIDTHS))
        raise CheckpointError(
            f"backbone.weights: imagenet has no weights of model.width {width}; it must be one of {widths}; or {fix}"
        )
    size = input_size if input_size in IMAGENET_SIZES else 224
    name = f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{float(width)}_{size}_no_top.h5"
    path = Path.home() / ".keras" / "models" / name
    try:
        if not path.exists():
            _download(mobilenet_v2.BASE_WEIGHT_PATH + name, path)
        checksum_file = _checksum_file(path)
        found = _compute_sha256(path)
        if not checksum_file.exists():  # downloaded by Keras
            write_text(checksum_file, found + "\n")
        expected = checksum_file.read_text().strip()
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"backbone.weights: cannot load the ImageNet weights of width {width} ({error}); {fix}"
        ) from None
    if found != expected:
        raise CheckpointError(
            f"backbone.weights: the SHA-256 of {path} is not that of its first use; delete {path} if it is damaged, or "
            f"{fix}"
        )
    return path


def _download(origin: str, path: Path) -> None:
    """Downloads a file atomically.

    Other workers on this host may download at the same time, and a worker may be killed while it downloads.

    Raises:
      OSError: if the download fails.
      ValueError: if the file is not the one that the storage sent.
    """
    with replace_file(path) as temporary:
        with urllib.request.urlopen(origin, timeout=_TIMEOUT) as response, temporary.open("wb") as file:
            shutil.copyfileobj(response, file)
            length, hashes = response.headers.get("Content-Length"), response.headers.get_all("x-goog-hash", [])
        with temporary.open("rb") as file:
            md5 = base64.b64encode(hashlib.file_digest(file, "md5").digest()).decode()
        stated = [part.strip() for value in hashes for part in value.split(",")]
        if length is not None and temporary.stat().st_size != int(length):
            raise ValueError(f"{origin}: got {temporary.stat().st_size} bytes instead of {length}")
        if any(part.startswith("md5=") and part != f"md5={md5}" for part in stated):
            raise ValueError(f"{origin}: the file does not have the MD5 that the storage states")
        write_text(_checksum_file(path), _compute_sha256(temporary) + "\n")


def _checksum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _compute_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
