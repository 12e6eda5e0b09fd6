"""Applies the rules of `ssd_dist.core.storage` to Beam's file systems: local files and object stores (`gs://`).

Files are written atomically: under a unique temporary name, which is renamed when the file is complete.
"""

import contextlib
import errno
import fcntl
import gzip
import os
import posixpath
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import BinaryIO, cast

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.io.localfilesystem import LocalFileSystem

from pipelines.compressed_input import CompressedInput
from pipelines.local_matching import match_local
from pipelines.text_encoding import decode_text
from ssd_dist.core import storage
from ssd_dist.core.errors import DataError, UsageError
from ssd_dist.core.storage import is_remote, join, temporary_path

# More than the decoded pixels of the largest accepted image.
MAX_ITEM_BYTES = 1 << 28
# Permanent errors, which are not retried. Cloud clients raise their own error classes, with an HTTP code.
LASTING = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
IMPOSSIBLE_NAMES = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EILSEQ)
REFUSALS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)
# Compared by name: the classes are from different libraries that Beam's client uses.
NO_ANSWER = {"RetryError", "TransportError", "ConnectionError"}
# Errors that reading an open file may raise, because of damaged content or of the storage.
UNREADABLE = (OSError, EOFError, ValueError, zlib.error)
UNWRITABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.ENAMETOOLONG),
)


class RefusedError(DataError):
    """The store refused to read a file: the job fails, because data would be omitted that can be read later."""


def check_scheme(path: str) -> None:
    """Checks that a path is local or below a bucket of Google Cloud Storage.

    Raises:
      UsageError: for another object store, a bucket without a folder, or a scheme that lacks a slash.
    """
    scheme = re.match(r"(\w{2,}):/", path)
    if scheme is not None and not is_remote(path):
        raise UsageError(f"{path}: the scheme {scheme[1]}: needs two slashes; write {scheme[1]}://...")
    if path.startswith("gs://") and not re.match("gs://[^/]+/[^/]", path):
        raise UsageError(f"{path}: give a folder or file in a bucket, gs://bucket/folder")
    if is_remote(path) and not path.startswith("gs://"):
        raise UsageError(f"{path}: no file system for such paths is installed; give a local path or gs://...")


def exists(path: str) -> bool:
    """Returns whether a file or folder exists; on an object store, a folder is a prefix of file names."""
    with _explain_store_errors(path):
        return bool(FileSystems.exists(path)) or bool(_match(join(_as_pattern(path), "**"), 1))


def is_file(path: str) -> bool:
    """Returns whether the path is an existing file."""
    if isinstance(FileSystems.get_filesystem(path), LocalFileSystem):
        return os.path.isfile(path)
    return bool(FileSystems.exists(path))


def is_pattern(path: str) -> bool:
    """Returns whether the path contains wildcards and no file has exactly this name."""
    return any(sign in path for sign in "*?[") and not FileSystems.exists(path)


def list_files(folder: str) -> list[str]:
    """Returns the paths of the files directly in `folder`, sorted; empty if the folder does not exist."""
    return match_below(folder, "*")


def match_below(folder: str, *patterns: str) -> list[str]:
    """Returns the paths below a folder that match, sorted; wildcards in the name of the folder are literal."""
    found = match_files(join(_as_pattern(folder), *patterns))
    return [path for path in found if path.startswith(folder.rstrip("/"))]


def match_files(pattern: str) -> list[str]:
    """Returns the paths that match a glob pattern, sorted; includes local linked folders and broken links."""
    return sorted(_match(pattern) if is_remote(pattern) else match_local(pattern))


def open_input(path: str) -> BinaryIO:
    """Opens a file for reading; decompresses files named `.gz` or `.bz2`.

    Raises:
      PermissionError: for a device or a pipe, because reading it might never end.
    """
    _refuse_device(path)
    try:
        file: BinaryIO = FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    except Exception as error:
        raise _explain_refusal(path, error) from None
    suffix = posixpath.splitext(path)[1]
    return cast(BinaryIO, CompressedInput(file, suffix)) if suffix in (".gz", ".bz2") else file


def read_lines(stream: BinaryIO, limit: int) -> Iterator[bytes]:
    """Yields the lines of an open file without line ends; splits lines longer than `limit` bytes into pieces."""
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
    """Returns whether the content of a file, not the storage, caused an error of `UNREADABLE`."""
    if isinstance(error, gzip.BadGzipFile) or not isinstance(error, OSError):
        return True
    # Python's decoders raise a plain OSError without a number.
    return type(error) is OSError and error.errno is None


def require_damage(error: Exception, path: str) -> None:
    """Checks that the content of the file caused an error, so that only the rest of the file is lost.

    Raises:
      DataError: if the storage caused it, because data would be omitted that can be read later.
    """
    if not is_damage(error):
        raise DataError(f"{path} could not be read to its end ({error!r}); run the same command again") from error


def read_bytes(path: str) -> bytes:
    """Returns the content of a file, without decompression.

    Raises:
      FileNotFoundError: if the file does not exist.
    """
    return _retry(path, lambda file: bytes(file.read()))


def read_item(path: str) -> bytes:
    """Returns the content of an image or annotation file.

    A worker holds several in memory, so the size is limited.

    Raises:
      FileNotFoundError: if the file does not exist.
      ValueError: if it has more than `MAX_ITEM_BYTES`.
    """

    def read(file: BinaryIO) -> bytes:
        length = file.seek(0, os.SEEK_END)
        if length > MAX_ITEM_BYTES:
            raise ValueError(f"{path} has {length} bytes; images and annotations may have at most {MAX_ITEM_BYTES}")
        file.seek(0)
        return bytes(file.read())

    return _retry(path, read)


def read_span(path: str, offset: int, length: int) -> bytes:
    """Returns `length` bytes of a file, starting at `offset`.

    Raises:
      FileNotFoundError: if the file does not exist.
    """

    def read(file: BinaryIO) -> bytes:
        file.seek(offset)
        return bytes(file.read(length))

    return _retry(path, read)


def size(path: str) -> int:
    """Returns the size of a file in bytes; -1 if it does not exist."""
    if not is_remote(path):
        # Matching would interpret brackets in the path.
        return os.path.getsize(path) if os.path.isfile(path) else -1
    found = FileSystems.match([path])[0].metadata_list if FileSystems.exists(path) else []
    return int(found[0].size_in_bytes) if found else -1


def read_text(path: str) -> str:
    """Returns the content of a text file.

    Raises:
      DataError: if the file does not exist, cannot be read or is not text.
    """
    try:
        return decode_text(read_bytes(path))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except LASTING as error:
        reason = error.strerror or error
        raise DataError(f"{path} cannot be read: {reason}; check the path and its permissions") from None
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None


@contextlib.contextmanager
def replace_file(path: str) -> Iterator[BinaryIO]:
    """Writes a file atomically: it gets its name when the block ends without an error.

    Yields:
      A temporary file, open for writing.

    Raises:
      DataError: if the file cannot be written for a permanent reason, such as a full disk.
    """
    temporary = temporary_path(path)
    try:
        with FileSystems.create(temporary, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            yield file
        FileSystems.rename([temporary], [path])
    except BaseException as error:
        with contextlib.suppress(OSError):
            delete_files([temporary])
        if getattr(error, "code", None) in REFUSALS:
            raise DataError(f"{path} cannot be written: {error}; check the write permissions") from None
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            raise DataError(f"{path} cannot be written: {error.strerror}; free space or choose another path") from None
        raise


def write_bytes(path: str, data: bytes) -> None:
    """Writes a file atomically."""
    with replace_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """Holds an exclusive lock on a local folder; object stores have no locks."""
    if is_remote(folder):
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems have no locks.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def delete_files(paths: list[str]) -> None:
    """Deletes the files; ignores files that do not exist."""
    # Beam would take brackets and stars in the name of a local file for a pattern.
    for path in paths:
        if not is_remote(path):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.remove(path)
    present = [path for path in paths if is_remote(path) and FileSystems.exists(path)]
    if present:
        FileSystems.delete(present)


def literal_folder(pattern: str) -> str:
    """Returns the deepest folder in a pattern whose name contains no wildcard."""
    literal = re.match(r"[^*?\[]*", pattern)
    assert literal is not None
    return posixpath.dirname(literal[0]) or "."


def path_below(folder: str, path: str) -> str:
    """Returns `path` relative to `folder`, which it begins with."""
    return path[len(folder.rstrip("/")) :].lstrip("/")


def relative_path(name: str) -> str | None:
    """Returns `name` as a normalized relative path with forward slashes; None if it leads out of its folder."""
    clean = posixpath.normpath(name.replace("\\", "/"))
    outside = clean in (".", "..") or clean.startswith(("/", "../")) or "\0" in clean or clean[1:3] == ":/"
    return None if outside else clean


def _retry(path: str, read: Callable[[BinaryIO], bytes]) -> bytes:
    """Returns what `read` returns for the open file; retries transient errors."""

    def open_and_read() -> bytes:
        with open_plain(path) as file:
            return read(file)

    try:
        return storage.retry(open_and_read, path, _is_transient)
    except UnicodeEncodeError:
        raise FileNotFoundError(f"{path:.500} does not exist") from None
    except Exception as error:
        if _has_no_such_file(error):
            raise FileNotFoundError(f"{path:.500} does not exist") from None
        raise _explain_refusal(path, error) from None


def _is_transient(error: Exception) -> bool:
    """Returns whether another attempt to read may succeed."""
    return not isinstance(error, (*LASTING, ValueError)) and not _has_no_such_file(error) and not _is_refused(error)


def _is_refused(error: Exception) -> bool:
    return getattr(error, "code", None) in REFUSALS and not _has_no_such_file(error)


def _explain_refusal(path: str, error: Exception) -> Exception:
    """Returns the error with the fix if the store refused access, otherwise the error itself."""
    if not _is_refused(error):
        return error
    return RefusedError(f"{path:.500}: {type(error).__name__}; check the permissions of the account")


def _has_no_such_file(error: Exception) -> bool:
    return getattr(error, "code", None) == HTTPStatus.NOT_FOUND or getattr(error, "errno", None) in IMPOSSIBLE_NAMES


def open_plain(path: str) -> BinaryIO:
    """Opens a file without decompression.

    Opens local files directly, because opening one through Beam takes as long as reading a small image.

    Raises:
      PermissionError: for a device or a pipe, because reading it might never end.
    """
    _refuse_device(path)
    if not is_remote(path):
        return open(path, "rb")
    file: BinaryIO = FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    return file


def _refuse_device(path: str) -> None:
    if not is_remote(path) and not stat.S_ISREG(mode := os.stat(path).st_mode) and not stat.S_ISDIR(mode):
        raise PermissionError(f"{path}: is a device or a pipe; give a regular file")


def _match(pattern: str, limit: int | None = None) -> list[str]:
    with _explain_store_errors(pattern):
        matched = FileSystems.match([pattern], None if limit is None else [limit])[0].metadata_list
    return [file.path for file in matched]


@contextlib.contextmanager
def _explain_store_errors(path: str) -> Iterator[None]:
    """Converts permanent errors of an object store, such as a wrong bucket name, to an error with the fix.

    Raises:
      DataError: if the store refuses access, has no such bucket, or does not answer.
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
        raise DataError(f"{path}: {type(cause).__name__}; check the name of the bucket and its permissions") from None


def _as_pattern(folder: str) -> str:
    """Returns a pattern that matches the name of the folder: Beam has no escapes, so `?` replaces wildcards."""
    return re.sub(r"[*?\[]", "?", folder.rstrip("/"))
