"""Pictures wherever they lie: files, folders and glob patterns, here or on an object store such as gs://.

fsspec reads the stores (gcsfs for gs://, others if their package is installed); local paths go without it.
"""

import glob
import posixpath
from collections.abc import Sequence
from pathlib import Path

import fsspec
from PIL import Image

from ssd_dist.core.errors import UsageError
from ssd_dist.core.images import decode_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".gif", ".tif", ".tiff", ".webp")


def find_images(sources: Sequence[str]) -> list[str]:
    """The files that paths, folders and glob patterns mean, sorted, each once; of a folder its image files.

    Raises:
      UsageError: naming the source in which there is nothing, or that cannot be looked at.
    """
    found: set[str] = set()
    for source in sources:
        here = _find_remote(source) if is_remote(source) else _find_local(source)
        if not here:
            raise UsageError(
                f"--images={source} is no image file, no folder with images in it, and matches none; "
                "patterns are quoted, e.g. --images='photos/*.jpg', with subfolders 'photos/**/*.jpg'"
            )
        found.update(here)
    return sorted(found)


def read_image(name: str) -> Image.Image:
    """The picture, upright and in RGB.

    Raises:
      ImageError: if its bytes are no image.
      OSError: if it cannot be read.
    """
    if not is_remote(name):
        return decode_image(Path(name).read_bytes())
    try:
        with fsspec.open(name, "rb") as file:
            data = file.read()
    except Exception as error:  # each store's client has errors of its own
        raise OSError(f"{type(error).__name__}: {error}") from None
    return decode_image(data)


def is_remote(name: str) -> bool:
    """Whether the path is on an object store."""
    return "://" in name


def _find_local(source: str) -> list[str]:
    if Path(source).is_file():
        return [source]
    if Path(source).is_dir():
        return [str(path) for path in Path(source).iterdir() if path.suffix.lower() in SUFFIXES]
    return [name for name in glob.glob(source, recursive=True) if Path(name).is_file()]


def _find_remote(source: str) -> list[str]:
    try:
        store, path = fsspec.core.url_to_fs(source)
        if store.isfile(path):
            return [source]
        if store.isdir(path):
            names = [name for name in store.ls(path, detail=False) if posixpath.splitext(name)[1].lower() in SUFFIXES]
        else:
            names = [name for name, facts in store.glob(path, detail=True).items() if facts["type"] == "file"]
        return [store.unstrip_protocol(name) for name in names]
    except Exception as error:  # each store's client has errors of its own
        raise UsageError(f"--images={source} cannot be looked at: {type(error).__name__}: {error}") from None
