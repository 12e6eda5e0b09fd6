"""Writes one shard: its members in order, one file per augmented copy, and a report with all counts.

    (shard, members and plan) -> OUT/train/view00-00003-of-00008.tfrecord ... -> OUT/train/.parts/00003-of-00008.json

Each file appears complete or not at all. The report is written last, so a shard with a report is finished. The report
contains a key, a digest of everything that the shard was made from, by which a later run decides whether to keep it.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO

import apache_beam as beam
from pydantic import ValidationError

from pipelines import beam_storage
from pipelines.annotations import Image, Problem, to_valid_text
from pipelines.beam_metrics import Meter
from pipelines.classes import ClassTable
from pipelines.image_preparation import BATCH, ImagePreparer, Preparation, PreparedImage, count_positives
from pipelines.image_reading import read_images
from pipelines.missing_classes import reject_members
from pipelines.shard_plan import Member, ShardPlan
from pipelines.shard_reports import ImageReport, Rejected, ShardReport, ViewReport, report_path
from pipelines.split_lock import check_job_id
from pipelines.suspicious_boxes import count_suspicious
from pipelines.validate import reject_image
from ssd_dist.core.boxes import FloatArray
from ssd_dist.core.manifest import FORMAT_VERSION, Shard
from ssd_dist.core.records import Record
from ssd_dist.core.storage import join
from ssd_dist.core.tfrecord_io import frame_record


@dataclass(frozen=True)
class ShardJob:
    """Where and how the shards of one split are written.

    Attributes:
      output: folder of the manifest.
      split: name of the split.
      preparation: how images become records.
      resume: whether finished shards of an earlier run are kept.
      job_id: id of the job, see `split_lock.py`.
    """

    output: str
    split: str
    preparation: Preparation
    resume: bool = False
    job_id: str = ""

    @property
    def folder(self) -> str:
        """The folder of the split's files."""
        return join(self.output, self.split)


class WriteShard(beam.DoFn):
    """Writes the files of one shard and yields (0, (name of its split, path of its report)).

    Args:
      jobs: one per split, in the order of the numbers of the splits.
    """

    def __init__(self, jobs: Sequence[ShardJob]) -> None:
        super().__init__()
        self._jobs = tuple(jobs)
        self._meter: Meter | None = None
        self._preparers: dict[Preparation, ImagePreparer] = {}

    def setup(self) -> None:
        """Generates the anchors, once per worker; splits with the same settings share them."""
        meter = self._meter = Meter()
        self._preparers = {job.preparation: ImagePreparer(job.preparation, meter) for job in self._jobs}

    def process(self, group: tuple[int, Iterable[object]]) -> Iterator[tuple[int, tuple[str, str]]]:
        """Writes one shard; ignores a group without a plan, which is not a shard."""
        assert self._meter is not None
        members, plan = split_group(group[1])
        if plan is None:
            return
        job = self._jobs[plan.split]
        check_job_id(job.output, job.split, job.job_id)
        path = report_path(job.folder, plan.shard, plan.shards)
        key = shard_key(members, plan, job)
        if not (job.resume and is_finished(path, key, members, job.output)):
            # The report of an earlier job must not describe files that this one is replacing when it is interrupted.
            beam_storage.delete_files([path])
            report = write_shard(members, plan, job, self._preparers[job.preparation], self._meter)
            beam_storage.write_bytes(path, report.model_copy(update={"key": key}).model_dump_json().encode())
        yield 0, (job.split, path)


def split_group(values: Iterable[object]) -> tuple[list[Member], ShardPlan | None]:
    """Returns the members in global order, orphans after the image of the same index, and the plan if there is one."""
    members, plan = [], None
    for value in values:
        if isinstance(value, Member):
            members.append(value)
        elif isinstance(value, ShardPlan):
            plan = value
    return sorted(members, key=lambda member: (member.place, member.orphan, member.image.image_id)), plan


def shard_key(members: list[Member], plan: ShardPlan, job: ShardJob) -> str:
    """Returns a digest of everything that the bytes of the shard depend on, except the content of the image files."""
    digest = hashlib.sha256(repr((FORMAT_VERSION, job.split, job.preparation, plan)).encode("utf-8", "surrogatepass"))
    for member in members:
        digest.update(repr(member).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def is_finished(path: str, key: str, members: list[Member], output: str) -> bool:
    """Returns whether the files of a shard are complete and were made from the present annotations and images.

    Reads all images of the shard, which takes a small part of the time of preparing them: an image may have been
    changed, or supplied after it was rejected as missing.

    Args:
      path: path of the report of the shard.
      key: the digest of the annotations and settings, see `shard_key`.
      members: the members of the shard.
      output: folder of the manifest.
    """
    try:
        report = ShardReport.model_validate_json(beam_storage.read_bytes(path))
    except (FileNotFoundError, ValidationError):
        return False
    shards = [view.shard for view in report.views if view.shard is not None]
    if report.key != key or any(beam_storage.size(join(output, shard.file)) != shard.bytes for shard in shards):
        return False
    digest = hashlib.sha256()
    for data in read_images(member.image for member in members):
        digest.update(digest_source(data).encode())
    return report.sources == digest.hexdigest()


def digest_source(data: bytes | Problem) -> str:
    """Returns the SHA-256 of an image file, or of the reason why it could not be read, in hexadecimal."""
    return hashlib.sha256(
        repr(tuple(data)).encode("utf-8", "surrogatepass") if isinstance(data, Problem) else data
    ).hexdigest()


def write_shard(
    members: list[Member], plan: ShardPlan, job: ShardJob, preparer: ImagePreparer, meter: Meter
) -> ShardReport:
    """Writes the files of the shard and returns its report, without the key; writes none if there are no classes."""
    report = ShardReport(classes=plan.classes.names)
    if not plan.classes.names:
        report.rejected.extend(reject_members(members))
        return report
    names = [f"view{view:02d}-{plan.shard:05d}-of-{plan.shards:05d}.tfrecord" for view in range(job.preparation.views)]
    with ExitStack() as stack:
        writers = [
            RecordWriter(
                f"{job.split}/{name}",
                stack.enter_context(beam_storage.replace_file(join(job.folder, name))),
            )
            for name in names
        ]
        images = _read_members(members, digest := hashlib.sha256())
        written: list[tuple[FloatArray, int, int]] = []
        for first in range(0, len(members), BATCH):
            batch = preparer.prepare(islice(images, BATCH), plan.classes)
            for member, prepared in zip(members[first : first + BATCH], batch, strict=True):
                boxes = len(member.image.boxes)
                report.count_read(member, boxes)
                write_image(member, prepared, writers, report, plan.classes)
                count_image(member, boxes, prepared, meter)
                if isinstance(prepared, PreparedImage):
                    record = prepared.records[0]
                    written.append((prepared.checked.objects.boxes, record.original_height, record.original_width))
    report.views.extend(writer.report() for writer in writers)
    report.sources = digest.hexdigest()
    report.suspicious = count_suspicious(written)
    return report


def _read_members(members: list[Member], sources: "hashlib._Hash") -> Iterator[tuple[Image, bytes | Problem, str]]:
    """Yields the images of the members with their bytes and digests, and adds each digest to `sources`."""
    for member, data in zip(members, read_images(member.image for member in members), strict=True):
        digest = digest_source(data)
        sources.update(digest.encode())
        yield member.image, data, digest


def write_image(
    member: Member,
    prepared: PreparedImage | Problem,
    writers: list["RecordWriter"],
    report: ShardReport,
    classes: ClassTable,
) -> None:
    """Appends the records of an image to the files, one record per file, and its rejections to the report."""
    if isinstance(prepared, Problem):
        lines = reject_image(member.image, prepared, is_image=not member.orphan)
        report.rejected.extend(Rejected.of(member.place, line) for line in lines)
        return
    for writer, record in zip(writers, prepared.records, strict=True):
        writer.write(record)
    report.rejected.extend(Rejected.of(member.place, line) for line in prepared.checked.rejected)
    if any(line.reason == "unknown_class" for line in prepared.checked.rejected):
        unknown = classes.unknown(box.category for box in member.image.boxes)
        report.unknown_classes = sorted({*report.unknown_classes, *unknown})
    report.images.append(ImageReport(name=to_valid_text(member.image.filename), digest=prepared.digest))
    report.boxes += len(prepared.checked.objects.labels)
    report.clipped_boxes += prepared.checked.clipped
    report.reduced_boxes += prepared.checked.reduced


def count_image(member: Member, boxes: int, prepared: PreparedImage | Problem, meter: Meter) -> None:
    """Adds an image to the counters that the runner's console shows."""
    images = 0 if member.orphan else 1
    meter.count("images_read", images)
    meter.count("boxes_read", boxes)
    if isinstance(prepared, Problem):
        meter.count("images_rejected", images)
        meter.count(f"images_rejected_{prepared.reason}", images)
        meter.count("boxes_rejected", boxes)
        return
    meter.count("images_written")
    meter.count("boxes_written", len(prepared.checked.objects.labels))
    meter.count("boxes_rejected", len(prepared.checked.rejected))
    for rejection in prepared.checked.rejected:
        meter.count(f"boxes_rejected_{rejection.reason}")
    for record in prepared.records:
        for positives in count_positives(record):
            meter.record("positives_per_object", positives)


class RecordWriter:
    """Appends records to an open file and maintains its checksum and counts."""

    def __init__(self, name: str, file: BinaryIO) -> None:
        self._name = name
        self._file = file
        self._digest = hashlib.sha256()
        self._size = 0
        self._counts = ViewReport()

    def write(self, record: Record) -> None:
        """Appends one record."""
        framed = frame_record(record.to_bytes())
        self._file.write(framed)
        self._digest.update(framed)
        self._size += len(framed)
        self._counts.add(record)

    def report(self) -> ViewReport:
        """Returns the counts with the size and the checksum of the file."""
        shard = Shard(
            file=self._name, examples=self._counts.examples, bytes=self._size, sha256=self._digest.hexdigest()
        )
        return self._counts.model_copy(update={"shard": shard})
