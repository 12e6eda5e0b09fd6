"""Files, local or on an object store such as `gs://`, through Beam's file systems.

Nothing is ever visible half written: a file gets a temporary name of its own and is renamed when it is complete.
"""

import contextlib
import errno
import fcntl
import gzip
import os
import posixpath
import re
import stat
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import BinaryIO

from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileSystem
from apache_beam.io.filesystems import FileSystems
from apache_beam.io.localfilesystem import LocalFileSystem

from ssd_dist.core.errors import DataError, UsageError

TEMPORARY = ".tmp-"
ATTEMPTS = 4
PAUSE_SECONDS = 0.5
# More than the largest image that is taken has as plain pixels.
MAX_ITEM_BYTES = 1 << 28
# What another attempt would not change. Cloud clients raise errors of their own, which share the code of HTTP.
LASTING = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
IMPOSSIBLE_NAMES = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EILSEQ)
REFUSALS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)
# By name: each comes from another of the libraries below Beam's client.
NO_ANSWER = {"RetryError", "TransportError", "ConnectionError"}
# What reading on in a file may raise, for whatever reason.
UNREADABLE = (OSError, EOFError, ValueError, zlib.error)
UNWRITABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.ENAMETOOLONG),
)


def is_remote(path: str) -> bool:
    """Whether the path is on an object store."""
    return "://" in path


def check_scheme(path: str) -> None:
    """Refuses a path on a store other than Google's, a bucket without a folder, or a scheme that lacks a slash.

    Raises:
      UsageError: naming it.
    """
    scheme = re.match(r"(\w{2,}):/", path)
    if scheme is not None and not is_remote(path):
        raise UsageError(f"{path} would be a folder called {scheme[1]}: here; write {scheme[1]}://...")
    if path.startswith("gs://") and not re.match("gs://[^/]+/[^/]", path):
        raise UsageError(f"{path}: name a folder or file in a bucket, gs://bucket/folder")
    if is_remote(path) and not path.startswith("gs://"):
        raise UsageError(f"{path}: no file system for such paths is installed; give a local path or gs://...")


def join(folder: str, *names: str) -> str:
    """A path below `folder`, local or on an object store."""
    return posixpath.join(folder, *names)


def exists(path: str) -> bool:
    """Whether a file or folder is there; on an object store a folder is what its files' names begin with."""
    with _refusals(path):
        return bool(FileSystems.exists(path)) or bool(_match(join(_as_pattern(path), "**"), 1))


def is_file(path: str) -> bool:
    """Whether there is a file, rather than a folder or nothing."""
    if isinstance(FileSystems.get_filesystem(path), LocalFileSystem):
        return os.path.isfile(path)
    return bool(FileSystems.exists(path))


def is_pattern(path: str) -> bool:
    """Whether the path has signs of a pattern and is not, as it stands, there."""
    return any(sign in path for sign in "*?[") and not FileSystems.exists(path)


def list_files(folder: str) -> list[str]:
    """Paths of the files directly in `folder`, sorted; empty if there is no such folder."""
    return match_below(folder, "*")


def match_below(folder: str, *patterns: str) -> list[str]:
    """Paths below a folder that match, sorted; the folder's own name is no pattern."""
    found = match_files(join(_as_pattern(folder), *patterns))
    return [path for path in found if path.startswith(folder.rstrip("/"))]


def match_files(pattern: str) -> list[str]:
    """Paths that match a glob pattern, sorted; on this machine linked folders count, and links that lead nowhere."""
    return sorted(_match(pattern) if is_remote(pattern) else _match_here(pattern))


def open_input(path: str) -> BinaryIO:
    """Opens a file for reading; one named `.gz` or `.bz2` is decompressed on the way."""
    file: BinaryIO = FileSystems.open(path)
    return file


def read_lines(stream: BinaryIO, limit: int) -> Iterator[bytes]:
    """The lines of an open file without their ends; a line longer than `limit` comes in pieces."""
    rest = b""
    while chunk := stream.read(limit):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
        if len(rest) > limit:
            yield rest
            rest = b""
    if rest:
        yield rest


def is_damage(error: Exception) -> bool:
    """Whether a file's own bytes cause an error of `UNREADABLE`, a broken compressed file say, and not its storage."""
    if isinstance(error, gzip.BadGzipFile) or not isinstance(error, OSError):
        return True
    # What Python's own decoders raise.
    return type(error) is OSError and error.errno is None


def require_damage(error: Exception, path: str) -> None:
    """Passes if the file itself is at fault, whose rest is lost then; what storage did in passing spoils no data.

    Raises:
      DataError: for the latter.
    """
    if not is_damage(error):
        raise DataError(f"{path} could not be read to its end ({error!r}); run the same command again") from error


def read_bytes(path: str) -> bytes:
    """The whole of a file as it is.

    Raises:
      FileNotFoundError: if there is none.
    """
    return _retry(path, lambda file: bytes(file.read()))


def read_item(path: str) -> bytes:
    """The whole of an image or of its annotation, of which a worker holds several.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is too large to be one.
    """

    def read(file: BinaryIO) -> bytes:
        length = file.seek(0, os.SEEK_END)
        if length > MAX_ITEM_BYTES:
            raise ValueError(f"{path} has {length} bytes; no image or annotation has more than {MAX_ITEM_BYTES}")
        file.seek(0)
        return bytes(file.read())

    return _retry(path, read)


def read_span(path: str, offset: int, length: int) -> bytes:
    """A part of a file.

    Raises:
      FileNotFoundError: if there is no file.
    """

    def read(file: BinaryIO) -> bytes:
        file.seek(offset)
        return bytes(file.read(length))

    return _retry(path, read)


def size(path: str) -> int:
    """Bytes of a file; -1 if there is none."""
    found = FileSystems.match([path])[0].metadata_list if FileSystems.exists(path) else []
    return int(found[0].size_in_bytes) if found else -1


def read_text(path: str) -> str:
    """The whole of a text file.

    Raises:
      DataError: if it is missing or not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except LASTING as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from None


@contextlib.contextmanager
def replace_file(path: str) -> Iterator[BinaryIO]:
    """Writes a file that appears under `path` complete, when the block ends without an error, or not at all.

    Raises:
      DataError: if the place takes no file, or no more of it.
    """
    folder, name = posixpath.split(path)
    temporary = posixpath.join(folder, f".{name}{TEMPORARY}{uuid.uuid4().hex}")
    try:
        with FileSystems.create(temporary, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            yield file
        FileSystems.rename([temporary], [path])
    except BaseException as error:
        with contextlib.suppress(OSError):
            delete_files([temporary])
        if getattr(error, "code", None) in REFUSALS:
            raise DataError(f"{path} cannot be written: {error}; check who may write there") from None
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            raise DataError(f"{path} cannot be written: {error.strerror}; make room or choose another place") from None
        raise


def write_bytes(path: str, data: bytes) -> None:
    """Writes a whole file, complete or not at all."""
    with replace_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """Keeps other processes out of the same block for the same local folder; object stores know no locks."""
    if is_remote(folder):
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems have none either.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def delete_files(paths: list[str]) -> None:
    """Deletes those of the files that exist."""
    present = [path for path in paths if FileSystems.exists(path)]
    if present:
        FileSystems.delete(present)


def path_below(folder: str, path: str) -> str:
    """The rest of a path that begins with `folder`."""
    return path[len(folder.rstrip("/")) :].lstrip("/")


def relative_path(name: str) -> str | None:
    """`name` as a clean relative path with forward slashes, or None if it would lead out of its folder."""
    clean = posixpath.normpath(name.replace("\\", "/"))
    outside = clean in (".", "..") or clean.startswith(("/", "../")) or "\0" in clean or clean[1:3] == ":/"
    return None if outside else clean


def _retry(path: str, read: Callable[[BinaryIO], bytes]) -> bytes:
    """Reads from a file, again after a pause if storage fails; what cannot change is raised at once."""
    for attempt in range(ATTEMPTS):
        try:
            with open_plain(path) as file:
                return read(file)
        except UnicodeEncodeError:
            raise FileNotFoundError(f"{path:.500} does not exist") from None
        except (*LASTING, ValueError):
            raise
        except Exception as error:
            if (
                getattr(error, "code", None) == HTTPStatus.NOT_FOUND
                or getattr(error, "errno", None) in IMPOSSIBLE_NAMES
            ):
                raise FileNotFoundError(f"{path:.500} does not exist") from None
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(PAUSE_SECONDS * 2**attempt)
    raise AssertionError("unreachable")


def open_plain(path: str) -> BinaryIO:
    """Opens a file as it is; without Beam's detour, which takes as long as reading a small image, where it is local.

    Raises:
      PermissionError: for a device or a pipe, at which a worker would wait for ever.
    """
    if not is_remote(path):
        if not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):
            raise PermissionError(f"{path} is a device or a pipe, not a file")
        return open(path, "rb")
    file: BinaryIO = FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    return file


def _match(pattern: str, limit: int | None = None) -> list[str]:
    with _refusals(pattern):
        matched = FileSystems.match([pattern], None if limit is None else [limit])[0].metadata_list
    return [file.path for file in matched]


def _match_here(pattern: str) -> list[str]:
    """As Beam matches, which walks past links without a word."""
    pattern = f"{pattern}*" if pattern.endswith("/") else pattern
    literal = re.match(r"[^*?\[]*", pattern)
    assert literal is not None
    if literal[0] == pattern:
        return [pattern] if os.path.exists(pattern) else []
    folder = posixpath.dirname(literal[0])
    levels = None if "**" in pattern else path_below(folder, pattern).count("/")
    matches = re.compile(FileSystem.translate_pattern(pattern)).match
    return [path for path in _walk(folder, levels) if matches(path)]


def _walk(folder: str, levels: int | None) -> Iterator[str]:
    """The files below a local folder, as many levels down; a link into a folder above it is not followed."""
    above: dict[str, tuple[tuple[int, int], ...]] = {folder: ()}
    for here, folders, names in os.walk(folder, followlinks=True):
        trail = above.pop(here)
        status = os.stat(here)
        place = (status.st_dev, status.st_ino)
        if place in trail:
            folders.clear()
            continue
        yield from (posixpath.join(here, name) for name in names)
        if len(trail) == levels:
            folders.clear()
        above.update((posixpath.join(here, name), (*trail, place)) for name in folders)


@contextlib.contextmanager
def _refusals(path: str) -> Iterator[None]:
    """Tells an object store's refusal, a mistyped bucket say, from its failures.

    Raises:
      DataError: naming the path.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException = error
        while isinstance(cause, BeamIOError) and cause.exception_details:
            cause = next(iter(cause.exception_details.values()))
        if {kind.__name__ for kind in type(cause).__mro__} & NO_ANSWER:
            raise DataError(f"{path}: the store does not answer ({type(cause).__name__}); check the network") from None
        if getattr(cause, "code", None) not in REFUSALS:
            raise
        raise DataError(f"{path}: {type(cause).__name__}; check the bucket's name and who may use it") from None


def _as_pattern(folder: str) -> str:
    """A pattern that the folder's name matches: Beam's patterns know no escape, but any sign matches `?`."""
    return re.sub(r"[*?\[]", "?", folder.rstrip("/"))
