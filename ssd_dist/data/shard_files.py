"""Locates the manifest and shards: local folders, gs:// through TensorFlow, or a local cache filled by gcsfs."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import tensorflow as tf

from ssd_dist.core.config import DataConfig
from ssd_dist.core.errors import DataError
from ssd_dist.core.manifest import MANIFEST_NAME, Manifest, Shard, Split
from ssd_dist.core.records import Record
from ssd_dist.core.storage import LOCK_NAME, is_remote, join, lock_shared, replace_file
from ssd_dist.core.tfrecord_io import read_records


def load_manifest(config: DataConfig) -> Manifest:
    """Reads the manifest of `data.dir`.

    Raises:
      DataError: if it is missing or broken.
    """
    if not config.dir:
        raise DataError("data.dir: not set; set it to the output folder of prepare, e.g. --set data.dir=OUT")
    path = join(config.dir, MANIFEST_NAME)
    return Manifest.from_json(_read_small_file(path, config), path)


@contextmanager
def hold_dataset(config: DataConfig, manifest: Manifest) -> Iterator[None]:
    """Prevents prepare from replacing the splits of a local dataset while the block runs.

    Raises:
      DataError: if prepare is writing one of the splits.
    """
    with ExitStack() as stack:
        for name in manifest.splits:
            folder = join(config.dir, name)
            if not stack.enter_context(lock_shared(join(folder, LOCK_NAME))):
                raise DataError(f"{folder}: prepare is writing this split; start again when it has finished")
        yield


def locate_shards(shards: tuple[Shard, ...], config: DataConfig, any_size: bool = False) -> list[str]:
    """Returns a readable path for each shard: in `data.dir`, or a copy in `data.cache_dir`.

    Shards that are not in `data.cache_dir` yet are copied there.

    Raises:
      DataError: for a shard that is missing or, without `any_size`, whose size differs from the manifest.
    """
    return [locate_shard(shard, config, any_size) for shard in shards]


def locate_shard(shard: Shard, config: DataConfig, any_size: bool = False, refresh: bool = False) -> str:
    """Returns a readable path for one shard, as `locate_shards`; `refresh` replaces the copy in the cache."""
    path = join(config.dir, shard.file)
    if config.cache_dir:
        return _cache_shard(path, shard, Path(config.cache_dir), any_size, refresh)
    _check_size(path, shard, any_size)
    return path


def cache_folder(config: DataConfig) -> Path:
    """Returns the folder of this machine's data about shards: `data.cache_dir`, or the user's cache folder."""
    if config.cache_dir:
        return Path(config.cache_dir)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssd_dist"


@contextmanager
def open_shard(path: str) -> Iterator[BinaryIO]:
    """Opens a located shard for reading.

    Raises:
      DataError: if the storage fails or refuses access.
    """
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            yield file
    except (OSError, tf.errors.OpError) as error:
        raise DataError(f"shard {path} cannot be read ({error}); check its permissions and its storage") from None


def read_split(config: DataConfig, split: Split) -> Iterator[Record]:
    """Yields the records of a split's whole images, shard by shard; skips the augmented copies.

    Raises:
      DataError: for a damaged record; the message names shard and record.
    """
    for path in locate_shards(split.views[0].shards, config):
        with open_shard(path) as file:
            for index, data in enumerate(read_records(file, path)):
                try:
                    yield Record.from_bytes(data)
                except DataError as error:
                    raise DataError(f"{path}: record {index}: {error}") from None


def _check_size(path: str, shard: Shard, any_size: bool) -> None:
    if not tf.io.gfile.exists(path):
        raise DataError(f"shard {path} is in the manifest but does not exist; prepare the data again")
    size = tf.io.gfile.stat(path).length
    if size != shard.bytes and not any_size:
        raise DataError(f"shard {path} has {size} bytes, but the manifest states {shard.bytes}; prepare the data again")


def _cache_shard(path: str, shard: Shard, cache: Path, any_size: bool, refresh: bool) -> str:
    """Copies a shard into the cache, named by the manifest's checksum; several workers may do so at the same time.

    The target file is replaced atomically because other workers may be reading it.
    """
    target = cache / f"{shard.sha256}.tfrecord"
    # The manifest was checked when it was read. This check also covers manifests from any other source.
    if target.parent != cache:
        raise DataError(f"shard {path}: the checksum {shard.sha256!r} is not a SHA-256; prepare the data again")
    if not refresh and target.is_file() and target.stat().st_size == shard.bytes:
        return str(target)
    try:
        with replace_file(target) as temporary:
            with _open_remote(path) as source, temporary.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
            with temporary.open("rb") as copy:
                checksum = hashlib.file_digest(copy, "sha256").hexdigest()
            if checksum != shard.sha256 and not any_size:
                raise DataError(f"shard {path} does not have the manifest's checksum; prepare the data again")
    except DataError:
        raise
    except Exception as error:  # each storage client has its own exception types
        raise DataError(
            f"shard {path} cannot be copied into data.cache_dir {cache}: {type(error).__name__}: {error}; "
            "check that the shard can be read and that the folder is writable and has free space"
        ) from None
    return str(target)


def _read_small_file(path: str, config: DataConfig) -> bytes:
    try:
        if config.cache_dir:
            with _open_remote(path) as file:
                return bytes(file.read())
        with tf.io.gfile.GFile(path, "rb") as file:
            return bytes(file.read())
    except Exception as error:  # each storage client has its own exception types
        missing = isinstance(error, FileNotFoundError | tf.errors.NotFoundError)
        reason = "does not exist" if missing else f"cannot be read ({type(error).__name__}: {error})"
        raise DataError(
            f"{path} {reason}: prepare the data first (python -m pipelines.prepare), or correct data.dir"
        ) from None


def _open_remote(path: str) -> BinaryIO:
    """Opens a binary file; gs:// goes through fsspec and gcsfs, which unlike TensorFlow supports an emulator."""
    if not is_remote(path):
        return open(path, "rb")
    import fsspec

    return fsspec.open(path, "rb").open()
