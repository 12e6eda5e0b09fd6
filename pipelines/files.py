"""Files, local or on an object store such as `gs://`, through Beam's file systems.

Nothing is ever visible half written: a file gets a temporary name of its own and is renamed when it is complete.
"""

import posixpath
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from ssd_dist.core.errors import DataError

TEMPORARY = ".tmp-"


def join(folder: str, *names: str) -> str:
    """A path below `folder`, local or on an object store."""
    return str(FileSystems.join(folder, *names)) if names else folder


def exists(path: str) -> bool:
    """Whether a file, or a folder that holds something, is there."""
    return bool(FileSystems.exists(path)) or bool(list_files(path))


def is_pattern(path: str) -> bool:
    """Whether the path has signs of a pattern and is not, as it stands, there."""
    return any(sign in path for sign in "*?[") and not FileSystems.exists(path)


def list_files(folder: str) -> list[str]:
    """Paths of the files directly in `folder`, sorted; empty if there is no such folder."""
    return match_below(folder, "*")


def match_below(folder: str, *patterns: str) -> list[str]:
    """Paths below a folder that match, sorted; the folder's own name is no pattern."""
    folder = folder.rstrip("/")
    # Beam's patterns know no escape, but any sign matches `?`.
    wide = re.sub(r"[*?\[]", "?", folder)
    return [path for path in match_files(join(wide, *patterns)) if path.startswith(folder)]


def match_files(pattern: str) -> list[str]:
    """Paths that match a glob pattern, sorted."""
    matched = FileSystems.match([pattern])[0].metadata_list
    return sorted(file.path for file in matched)


def open_input(path: str) -> BinaryIO:
    """Opens a file for reading; one named `.gz` or `.bz2` is decompressed on the way."""
    file: BinaryIO = FileSystems.open(path)
    return file


def read_bytes(path: str) -> bytes:
    """The whole of a file as it is."""
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        return bytes(file.read())


def read_text(path: str) -> str:
    """The whole of a text file.

    Raises:
      DataError: if it is missing or not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from None


@contextmanager
def replace_file(path: str) -> Iterator[BinaryIO]:
    """Writes a file that appears under `path` complete, when the block ends without an error, or not at all."""
    folder, name = posixpath.split(path)
    temporary = posixpath.join(folder, f".{name}{TEMPORARY}{uuid.uuid4().hex}")
    file = FileSystems.create(temporary, compression_type=CompressionTypes.UNCOMPRESSED)
    try:
        with file:
            yield file
        FileSystems.rename([temporary], [path])
    except BaseException:
        delete_files([temporary])
        raise


def write_bytes(path: str, data: bytes) -> None:
    """Writes a whole file, complete or not at all."""
    with replace_file(path) as file:
        file.write(data)


def delete_files(paths: list[str]) -> None:
    """Deletes those of the files that exist."""
    present = [path for path in paths if FileSystems.exists(path)]
    if present:
        FileSystems.delete(present)


def relative_path(name: str) -> str | None:
    """`name` as a clean relative path with forward slashes, or None if it would lead out of its folder."""
    clean = posixpath.normpath(name.replace("\\", "/"))
    outside = clean in (".", "..") or clean.startswith(("/", "../")) or "\0" in clean or clean[1:3] == ":/"
    return None if outside else clean
