"""The bytes of images: from a file or out of a record, ahead of their use where storage is far away."""

import contextlib
import io
import posixpath
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from pipelines import beam_storage
from pipelines.annotations import IMAGE_SUFFIXES, Image, Problem
from ssd_dist.core.errors import DataError
from ssd_dist.core.example_proto import decode_example
from ssd_dist.core.tfrecord_io import read_records

# An object store takes tens of milliseconds to answer, an image takes four to prepare.
READ_AHEAD = 16


def read_images(images: Iterable[Image]) -> Iterator[bytes | Problem]:
    """The bytes of each image in order, or why there are none.

    Images on an object store are fetched ahead by threads, so that the processor need not wait; at most `READ_AHEAD`
    are held.
    """
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        waiting: deque[Future[bytes | Problem]] = deque()
        for image in images:
            if not beam_storage.is_remote(image.path):
                # Threads would only cost time here, and order must be kept.
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
    """The bytes of the image file, or of the image in its record."""
    if image.problem is not None:
        return image.problem
    try:
        if image.span is None:
            return beam_storage.read_item(image.path)
        (data,) = read_records(io.BytesIO(beam_storage.read_span(image.path, *image.span)), image.path)
        encoded = decode_example(data)["image/encoded"][0]
        # A number would be taken for a length.
        return encoded if isinstance(encoded, bytes) else Problem("unreadable", f"{image.path}: no bytes in it")
    except (FileNotFoundError, NotADirectoryError):
        return _read_by_stem(image)
    except (IsADirectoryError, PermissionError) as error:
        return Problem("unreadable", str(error))
    except (DataError, KeyError, IndexError, TypeError, ValueError) as error:
        return Problem("unreadable", f"{image.path}: {error}")


def _read_by_stem(image: Image) -> bytes | Problem:
    names = [image.path, *(stem + suffix for stem in image.stems for suffix in IMAGE_SUFFIXES)]
    for path in dict.fromkeys(spelling for name in names if name for spelling in _spellings(name)):
        with contextlib.suppress(*beam_storage.LASTING, ValueError):
            return beam_storage.read_item(path)
    return Problem("missing_image", f"{image.path or image.filename} does not exist")


def _spellings(path: str) -> list[str]:
    """The path with its file's name as it is, composed and decomposed: an annotation may be of another system."""
    folder, name = posixpath.split(path)
    return [path, *(posixpath.join(folder, unicodedata.normalize(form, name)) for form in ("NFC", "NFD"))]
