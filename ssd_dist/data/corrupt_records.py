"""Verifies before step one that shards are those that prepare wrote; reports or replaces corrupt records.

    shard -> SHA-256 equal to the manifest's -> read the shard as it is
             SHA-256 differs -> check each record: framing, checksum, schema, JPEG
                 no corrupt record       the file belongs to another dataset: error
                 data.on_corrupt: fail   error that names shard and record
                 data.on_corrupt: skip   read a copy in which each corrupt record is replaced by a valid one

The replacement is the nearest valid record before the corrupt one (the first valid record if there is none before).
All other records keep their positions, so the training order stays a function of seed, epoch and position. Every worker
verifies the shards that it reads, and the workers compare their lists of corrupt records. Verified files are remembered
by size and modification time and verified again only after a change.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from ssd_dist.core.config import DataConfig
from ssd_dist.core.errors import DataError
from ssd_dist.core.images import decode_image
from ssd_dist.core.manifest import Shard, Split
from ssd_dist.core.records import Record
from ssd_dist.core.storage import is_remote, replace_file
from ssd_dist.core.tfrecord_io import frame_record, scan_records
from ssd_dist.data.order import EpochPlan
from ssd_dist.data.shard_files import cache_folder, locate_shard, open_shard
from ssd_dist.data.shard_guard import ShardFile, ShardGuard, compute_checksum, read_identity

_CACHE_NAME = "sound_shards.json"
# Verified files are saved regularly, so that an interrupted start does not repeat all of its work.
_SAVE_SECONDS = 10.0


@dataclass(frozen=True)
class CorruptRecord:
    """A record that cannot be read: its shard's name in the manifest, its index, and the reason."""

    shard: str
    record: int
    reason: str

    def __str__(self) -> str:
        return f"{self.shard}, record {self.record}: {self.reason}"


def verify_plan(
    plan: EpochPlan, split: Split, image_size: int, config: DataConfig, evaluated: Split | None = None
) -> tuple[EpochPlan, tuple[CorruptRecord, ...]]:
    """Verifies all shards that a run reads.

    Args:
      plan: what the run trains on.
      split: the training split.
      image_size: side of the images in pixels.
      config: where the data is, and what to do with corrupt records.
      evaluated: the evaluation split, if the run evaluates; its shards must be complete.

    Returns:
      The plan with files that can be read to their end; its guard checks them, and those of the evaluation split. And
      the corrupt records that were replaced in the training split.

    Raises:
      DataError: for a shard that differs from the manifest, and for a corrupt record with `data.on_corrupt: fail`.
    """
    copies = [verify_shards(view.shards, image_size, config) for view in split.views[: len(plan.files)]]
    files = tuple(tuple(file.path for file, _ in shards) for shards in copies)
    checked = verify_shards(evaluated.views[0].shards, image_size, config, evaluates=True) if evaluated else []
    guard = ShardGuard(file for shards in (*copies, checked) for file, _ in shards)
    corrupt = tuple(record for shards in copies for _, found in shards for record in found)
    return replace(plan, files=files, guard=guard), corrupt


def verify_shards(
    shards: Sequence[Shard], image_size: int, config: DataConfig, evaluates: bool = False
) -> list[tuple[ShardFile, list[CorruptRecord]]]:
    """Returns for each shard a file that can be read to its end, and the corrupt records replaced in it.

    Args:
      shards: the shards.
      image_size: side of the images in pixels.
      config: where the data is, and what to do with corrupt records.
      evaluates: whether the shards are evaluated; then no record is replaced, which would change the metrics.

    Raises:
      DataError: for a shard that differs from the manifest, and for a corrupt record that is not replaced.
    """
    verified = _VerifiedFiles(cache_folder(config))
    skip = config.on_corrupt == "skip" and not evaluates
    fix = "prepare the data again"
    if not evaluates:
        fix += ", or set data.on_corrupt: skip to replace corrupt records"
    try:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            return list(pool.map(lambda shard: _verify_shard(shard, image_size, config, verified, skip, fix), shards))
    finally:
        verified.save()


def explain_failure(plan: EpochPlan, split: Split, image_size: int, config: DataConfig) -> str | None:
    """Returns the shard and record that made reading fail during a run; None if every record is valid.

    In both cases the next start verifies every record.
    """
    verified = _VerifiedFiles(cache_folder(config))
    for path in (path for files in plan.files for path in files):
        verified.mark_suspect(path)
    verified.save()
    for files, view in zip(plan.files, split.views, strict=False):
        for path, shard in zip(files, view.shards, strict=True):
            for record in find_corrupt_records(path, shard, image_size):
                return str(record)
    return None


def _verify_shard(
    shard: Shard, image_size: int, config: DataConfig, verified: "_VerifiedFiles", skip: bool, fix: str
) -> tuple[ShardFile, list[CorruptRecord]]:
    """Returns the file of a shard and the corrupt records replaced in it; `skip` replaces them, `fix` is for errors."""
    path = locate_shard(shard, config, any_size=skip)
    # The identity is read before the content, so that a later change is always noticed.
    file = ShardFile(path, shard.examples, shard.sha256, read_identity(path))
    every_record = skip or verified.is_suspect(path)
    if verified.contains(file, every_record):
        return file, []
    unchanged = compute_checksum(path) == shard.sha256
    if not unchanged and config.cache_dir:
        # The cached copy was damaged; the original may be intact.
        path = locate_shard(shard, config, any_size=skip, refresh=True)
        file = replace(file, path=path, identity=read_identity(path))
        unchanged = compute_checksum(path) == shard.sha256
    corrupt = [] if unchanged and not every_record else find_corrupt_records(path, shard, image_size)
    if corrupt and not skip:
        more = f" (and {len(corrupt) - 1} more)" if len(corrupt) > 1 else ""
        raise DataError(f"shard {path}, record {corrupt[0].record}: {corrupt[0].reason}{more}; {fix}")
    if corrupt:
        return _write_repaired_shard(path, shard, corrupt, cache_folder(config)), corrupt
    if not unchanged:
        raise DataError(
            f"shard {path} differs from the manifest: its records are valid, but its SHA-256 is not the manifest's; "
            "prepare the data again"
        )
    verified.add(file, every_record)
    return file, []


def find_corrupt_records(path: str, shard: Shard, image_size: int) -> list[CorruptRecord]:
    """Returns the corrupt records of a file; all records after broken framing count as corrupt.

    Raises:
      DataError: if the file has more records than the manifest states.
    """
    corrupt = []
    count = 0
    for data, problem in _scan(path):
        reason = problem or _find_fault(data, image_size)
        if reason:
            corrupt.append(CorruptRecord(shard.file, count, reason))
        count += 1
    corrupt += [
        CorruptRecord(shard.file, index, "lost with the end of the file") for index in range(count, shard.examples)
    ]
    if count > shard.examples:
        raise DataError(
            f"shard {path} has {count} records, but the manifest states {shard.examples}; prepare the data again"
        )
    return corrupt


def _scan(path: str) -> Iterator[tuple[bytes, str]]:
    """Yields each record and its checksum error, if any; ends where the framing is broken."""
    with open_shard(path) as file:
        yield from scan_records(file)


def _find_fault(data: bytes, image_size: int) -> str:
    try:
        record = Record.from_bytes(data)
        size = decode_image(record.encoded).size
    except DataError as error:
        return str(error)
    if size != (image_size, image_size):
        return f"its image has {size[0]} x {size[1]} pixels instead of {image_size} x {image_size}"
    return ""


def _write_repaired_shard(path: str, shard: Shard, corrupt: Sequence[CorruptRecord], folder: Path) -> ShardFile:
    """Writes a copy of the shard in which each corrupt record is replaced by a valid one."""
    bad = {record.record for record in corrupt}
    if len(bad) == shard.examples:
        raise DataError(f"shard {path} has no valid record; prepare the data again")
    records = [data for data, _ in _scan(path)]
    first = min(index for index in range(shard.examples) if index not in bad)
    replacement = records[first]
    digest = hashlib.sha256()
    chosen = []
    for index in range(shard.examples):
        replacement = records[index] if index not in bad else replacement
        chosen.append(frame_record(replacement))
        digest.update(chosen[-1])
    target = folder / f"repaired-{digest.hexdigest()}.tfrecord"
    try:
        with replace_file(target) as temporary:
            temporary.write_bytes(b"".join(chosen))
    except OSError as error:
        raise DataError(
            f"a repaired copy of shard {path} cannot be written to {folder} ({error}); "
            "set data.cache_dir to a writable folder"
        ) from None
    return ShardFile(str(target), shard.examples, digest.hexdigest(), read_identity(str(target)))


class _VerifiedFiles:
    """Remembers verified files across starts, keyed by path: the manifest's checksum and the file's identity."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _CACHE_NAME
        self._entries = self._load()
        self._saved = time.monotonic()

    def contains(self, file: ShardFile, every_record: bool) -> bool:
        """Returns whether the file's checksum was verified and, if `every_record`, also each of its records."""
        entry = self._entries.get(file.path, [])
        return entry[:-1] == [file.sha256, *file.identity] and (entry[-1] is True or not every_record)

    def add(self, file: ShardFile, every_record: bool) -> None:
        """Remembers a verified file; saves to disk every few seconds."""
        self._entries[file.path] = [file.sha256, *file.identity, every_record]
        if time.monotonic() - self._saved >= _SAVE_SECONDS:
            self.save()

    def mark_suspect(self, path: str) -> None:
        """Remembers that reading the file failed, so that the next start verifies every record."""
        self._entries[path] = []

    def is_suspect(self, path: str) -> bool:
        """Returns whether reading the file failed and it has not been verified since."""
        return self._entries.get(path) == []

    def save(self) -> None:
        """Saves for the next start; if the file cannot be written, the next start verifies again."""
        self._saved = time.monotonic()
        # Other workers on this host may have saved their files meanwhile; a lost entry only costs another verification.
        entries = {path: entry for path, entry in (self._load() | self._entries).items() if _may_exist(path)}
        with contextlib.suppress(OSError), replace_file(self._path) as temporary:
            temporary.write_text(json.dumps(entries))

    def _load(self) -> dict[str, list[object]]:
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        entries = found.items() if isinstance(found, dict) else ()
        return {path: entry for path, entry in entries if isinstance(entry, list)}


def _may_exist(path: str) -> bool:
    return is_remote(path) or os.path.exists(path)
