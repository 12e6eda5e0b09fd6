"""Reads the bytes of images, from image files or TFRecord files; prefetches images in remote storage."""

import contextlib
import functools
import io
import itertools
import posixpath
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from urllib.parse import unquote

from pipelines import beam_storage
from pipelines.annotations import IMAGE_SUFFIXES, Image, Problem
from pipelines.file_names import fold_name
from ssd_dist.core.errors import DataError
from ssd_dist.core.example_proto import decode_example
from ssd_dist.core.storage import is_remote
from ssd_dist.core.tfrecord_io import read_records

# Number of images read in advance: an object store answers after tens of milliseconds, preparing an image takes 4 ms.
READ_AHEAD = 16


def read_images(images: Iterable[Image]) -> Iterator[bytes | Problem]:
    """Yields the bytes of each image in order, or the problem that prevented reading it.

    Threads prefetch images from an object store, at most `READ_AHEAD` of them, so that the CPU does not wait.
    """
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        waiting: deque[Future[bytes | Problem]] = deque()
        for image in images:
            if not is_remote(image.path):
                # Threads would be slower for local files. The images read in advance come first, to keep the order.
                while waiting:
                    yield waiting.popleft().result()
                yield read_image(image)
                continue
            waiting.append(pool.submit(read_image, image))
            if len(waiting) == READ_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def read_image(image: Image) -> bytes | Problem:
    """Returns the bytes of the image file, or of the image in its record, or the problem that prevented reading it."""
    if image.problem is not None:
        return image.problem
    try:
        if image.span is None:
            return beam_storage.read_item(image.path)
        (data,) = read_records(io.BytesIO(beam_storage.read_span(image.path, *image.span)), image.path)
        encoded = decode_example(data)["image/encoded"][0]
        # The value is an integer if the feature has the wrong type.
        detail = f"{image.path}: image/encoded contains numbers, expected bytes"
        return encoded if isinstance(encoded, bytes) else Problem("unreadable", detail)
    except (FileNotFoundError, NotADirectoryError):
        return _read_by_stem(image)
    except beam_storage.RefusedError:
        raise
    except (IsADirectoryError, PermissionError) as error:
        return Problem("unreadable", str(error))
    except (DataError, KeyError, IndexError, TypeError, ValueError) as error:
        return Problem("unreadable", f"{image.path}: {error}")


def _read_by_stem(image: Image) -> bytes | Problem:
    """Reads a file whose suffix, Unicode form or letter case differs from the name in the annotation.

    The name may be percent-encoded, as in the address of a web page.
    """
    names = [image.path, *(stem + suffix for stem in image.stems for suffix in IMAGE_SUFFIXES)]
    folders = dict.fromkeys(posixpath.dirname(name) for name in (image.path, *image.stems) if name)
    paths = dict.fromkeys(form for name in names if name for form in _unicode_forms(name))
    for path in itertools.chain(paths, _find_other_case(folders, names)):
        with contextlib.suppress(*beam_storage.LASTING, ValueError):
            return beam_storage.read_item(path)
    return Problem("missing_image", f"{image.path or image.filename} does not exist")


def _find_other_case(folders: Iterable[str], names: Iterable[str]) -> Iterator[str]:
    """Yields the files in the folders whose names differ from one of `names` only in letter case."""
    wanted = {fold_name(name) for name in names if name}
    for folder in folders:
        yield from (path for path in _list_folder(folder) if fold_name(path) in wanted)


@functools.lru_cache(maxsize=8)
def _list_folder(folder: str) -> tuple[str, ...]:
    """Returns the files in a folder; caches the list, because thousands of images may be missing."""
    return tuple(beam_storage.list_files(folder))


def _unicode_forms(path: str) -> list[str]:
    """Returns the path with the file name unchanged, in NFC and in NFD, because systems store different forms."""
    folder, name = posixpath.split(path)
    names = dict.fromkeys((name, unquote(name)))
    forms = [unicodedata.normalize(form, name) for name in names for form in ("NFC", "NFD")]
    return [path, *(posixpath.join(folder, form) for form in forms)]
