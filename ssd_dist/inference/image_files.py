"""Finds and reads image files: paths, folders and glob patterns, local or on an object store such as gs://.

fsspec reads object stores (gcsfs for gs://, others if their package is installed). Local paths do not need it.
"""

import glob
import os
import posixpath
from collections.abc import Sequence
from pathlib import Path

import fsspec
from PIL import Image

from ssd_dist.core.errors import UsageError
from ssd_dist.core.images import decode_image
from ssd_dist.core.storage import is_remote

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".jfif")


def find_images(sources: Sequence[str]) -> list[str]:
    """Finds the image files of all sources.

    Args:
      sources: paths of files, folders (the image files directly in them) or glob patterns.

    Returns:
      The files, sorted, without duplicates.

    Raises:
      UsageError: if a source has no image file or cannot be listed.
    """
    found: set[str] = set()
    for source in sources:
        files = _find_remote(source) if is_remote(source) else _find_local(source)
        if not files:
            raise UsageError(
                f"--images={source}: no image found; give an image file, a folder with images, or a quoted pattern, "
                "e.g. --images='photos/*.jpg' or, with subfolders, 'photos/**/*.jpg'"
            )
        found.update(files)
    return sorted(found)


def read_image(name: str) -> Image.Image:
    """Reads an image in RGB and rotates it according to its EXIF orientation.

    Raises:
      ImageError: if the file is not an image.
      OSError: if the file cannot be read.
    """
    if not is_remote(name):
        return decode_image(Path(name).read_bytes())
    try:
        with fsspec.open(name, "rb") as file:
            data = file.read()
    except Exception as error:  # each store's client has its own error classes
        raise OSError(f"{type(error).__name__}: {error}") from None
    return decode_image(data)


def _find_local(source: str) -> list[str]:
    if os.path.isfile(source):
        return [source]
    if os.path.isdir(source):
        try:
            return [str(path) for path in Path(source).iterdir() if path.suffix.lower() in SUFFIXES]
        except OSError as error:
            raise UsageError(f"--images={source}: cannot list the images: {error.strerror}; check the path") from None
    return list(filter(os.path.isfile, glob.glob(source, recursive=True)))


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
    except Exception as error:  # each store's client has its own error classes
        raise UsageError(
            f"--images={source}: cannot list the images: {type(error).__name__}: {error}; check the path"
        ) from None
