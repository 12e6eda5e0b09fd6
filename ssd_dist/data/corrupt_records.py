"""The shards a run is about to read are those that prepare wrote, or the run says what is wrong before step one.

    shard -> SHA-256 -> the manifest's? -> read as it is
                  no -> record by record: framing, checksum, schema, JPEG
                           nothing found           another data set's file: stop
                           data.on_corrupt: fail   stop, with shard and record
                           data.on_corrupt: skip   read a copy in which a good record stands in for each corrupt one

A stand-in, the nearest good record before, keeps every other one at its position: the training order stays a function
of seed, epoch and position. Every worker looks at what it is going to read, and the workers compare what they found.
What was found sound is noted by size and time of the file and looked at again only when these change.
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

import tensorflow as tf

from ssd_dist.core.config import Config, DataConfig
from ssd_dist.core.errors import DataError
from ssd_dist.core.images import decode_image
from ssd_dist.core.manifest import Shard, Split
from ssd_dist.core.records import Record
from ssd_dist.core.tfrecord_io import frame_record, scan_records
from ssd_dist.data.order import EpochPlan
from ssd_dist.data.shard_files import cache_folder, locate_shard, open_shard, written_aside

_CHUNK = 1 << 22
_NOTES = "sound_shards.json"
# A start that is interrupted has not looked at a large data set in vain.
_SAVE_SECONDS = 10.0


@dataclass(frozen=True)
class CorruptRecord:
    """A record that cannot be read: its shard's name in the manifest, its number, and what is wrong."""

    shard: str
    record: int
    reason: str

    def __str__(self) -> str:
        return f"{self.shard}, record {self.record}: {self.reason}"


def verify_plan(plan: EpochPlan, split: Split, config: Config) -> tuple[EpochPlan, tuple[CorruptRecord, ...]]:
    """The plan with files that can be read to their end, and the records for which others stand in.

    Raises:
      DataError: for a shard that is not the manifest's, and with `data.on_corrupt: fail` for a corrupt record.
    """
    views = [
        verify_shards(view.shards, config.model.input_size, config.data) for view in split.views[: len(plan.files)]
    ]
    files = tuple(tuple(path for path, _ in shards) for shards in views)
    return replace(plan, files=files), tuple(record for shards in views for _, found in shards for record in found)


def verify_shards(
    shards: Sequence[Shard], image_size: int, config: DataConfig
) -> list[tuple[str, list[CorruptRecord]]]:
    """For each shard a file that can be read to its end, and what was replaced in it.

    Raises:
      DataError: as `secure_plan`.
    """
    notes = _Notes(cache_folder(config))
    try:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            return list(pool.map(lambda shard: _verify_shard(shard, image_size, config, notes), shards))
    finally:
        notes.save()


def explain_failure(plan: EpochPlan, split: Split, config: Config) -> str | None:
    """Shard and record that made reading fail in the middle of a run; None if all of them are sound.

    Whatever it finds, the next start looks at every record.
    """
    notes = _Notes(cache_folder(config.data))
    for path in (path for files in plan.files for path in files):
        notes.suspect(path)
    notes.save()
    for files, view in zip(plan.files, split.views, strict=False):
        for path, shard in zip(files, view.shards, strict=True):
            for record in find_corrupt_records(path, shard, config.model.input_size):
                return str(record)
    return None


def _verify_shard(
    shard: Shard, image_size: int, config: DataConfig, notes: "_Notes"
) -> tuple[str, list[CorruptRecord]]:
    skip = config.on_corrupt == "skip"
    path = locate_shard(shard, config, any_size=skip)
    every_record = skip or notes.is_suspect(path)
    if notes.know(path, shard, every_record):
        return path, []
    unchanged = _checksum(path) == shard.sha256
    if not unchanged and config.cache_dir:
        # The copy was damaged here; the original may be sound.
        path = locate_shard(shard, config, any_size=skip, refresh=True)
        unchanged = _checksum(path) == shard.sha256
    corrupt = [] if unchanged and not every_record else find_corrupt_records(path, shard, image_size)
    if corrupt and not skip:
        more = f" (and {len(corrupt) - 1} more)" if len(corrupt) > 1 else ""
        raise DataError(
            f"shard {path}, record {corrupt[0].record}: {corrupt[0].reason}{more}; prepare the data again, or set "
            "data.on_corrupt: skip to do without"
        )
    if corrupt:
        return _write_repaired_shard(path, shard, corrupt, cache_folder(config)), corrupt
    if not unchanged:
        raise DataError(
            f"shard {path} is not the one in the manifest: its records are whole, its checksum is another; "
            "prepare the data again"
        )
    notes.add(path, shard, every_record)
    return path, []


def find_corrupt_records(path: str, shard: Shard, image_size: int) -> list[CorruptRecord]:
    """Every record of a file that cannot be read; after broken framing nothing more can."""
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
        raise DataError(f"shard {path} has {count} records, the manifest says {shard.examples}; prepare the data again")
    return corrupt


def _scan(path: str) -> Iterator[tuple[bytes, str]]:
    """Each record and what is wrong with its checksum; ends where the framing is broken."""
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


def _write_repaired_shard(path: str, shard: Shard, corrupt: Sequence[CorruptRecord], folder: Path) -> str:
    """A copy of the shard in which a good record stands in for each corrupt one."""
    bad = {record.record for record in corrupt}
    if len(bad) == shard.examples:
        raise DataError(f"shard {path} has no record left that can be read; prepare the data again")
    records = [data for data, _ in _scan(path)]
    first = min(index for index in range(shard.examples) if index not in bad)
    stand_in = records[first]
    digest = hashlib.sha256()
    chosen = []
    for index in range(shard.examples):
        stand_in = records[index] if index not in bad else stand_in
        chosen.append(frame_record(stand_in))
        digest.update(chosen[-1])
    target = folder / f"mended-{digest.hexdigest()}.tfrecord"
    try:
        with written_aside(target) as partial:
            partial.write_bytes(b"".join(chosen))
    except OSError as error:
        raise DataError(
            f"no mended copy of shard {path} can be written to {folder} ({error}); set data.cache_dir"
        ) from None
    return str(target)


def _checksum(path: str) -> str:
    digest = hashlib.sha256()
    with open_shard(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class _Notes:
    """Which files were found sound: the manifest's checksum and what their system says of them."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NOTES
        self._known = self._load()
        self._saved = time.monotonic()

    def know(self, path: str, shard: Shard, every_record: bool) -> bool:
        """Whether this very file was found to have the manifest's checksum; and every record of it looked at."""
        mine = [shard.sha256, *_identity(path)]
        known = self._known.get(path, [])
        return known[:-1] == mine and (known[-1] is True or not every_record)

    def add(self, path: str, shard: Shard, every_record: bool) -> None:
        """Notes that it was; kept at once every few seconds."""
        self._known[path] = [shard.sha256, *_identity(path), every_record]
        if time.monotonic() - self._saved >= _SAVE_SECONDS:
            self.save()

    def suspect(self, path: str) -> None:
        """Notes that reading the file failed: every record is to be looked at."""
        self._known[path] = []

    def is_suspect(self, path: str) -> bool:
        """Whether reading it failed and nobody has looked since."""
        return self._known.get(path) == []

    def save(self) -> None:
        """Keeps the notes for the next start; where that is not possible it looks again."""
        self._saved = time.monotonic()
        # Another worker of this host may have noted its own in the meantime; what is lost is looked at again.
        known = {path: note for path, note in (self._load() | self._known).items() if _may_exist(path)}
        with contextlib.suppress(OSError), written_aside(self._path) as partial:
            partial.write_text(json.dumps(known))

    def _load(self) -> dict[str, list[object]]:
        try:
            return dict(json.loads(self._path.read_text()))
        except (OSError, ValueError):
            return {}


def _may_exist(path: str) -> bool:
    return "://" in path or os.path.exists(path)


def _identity(path: str) -> list[object]:
    if "://" in path:
        remote = tf.io.gfile.stat(path)
        return [remote.length, remote.mtime_nsec]
    local = os.stat(path)
    # The time of change of the entry cannot be set back, as that of the content can.
    return [local.st_size, local.st_mtime_ns, local.st_ctime_ns, local.st_ino]
