"""One shard, written in one place: its members in order, a file a view, a report of every number.

    (shard, members and plan) -> OUT/train/view00-00003-of-00008.tfrecord ... -> OUT/train/.parts/00003-of-00008.json

The files appear complete or not at all, the report after them: where a report is, the shard is finished. It carries a
key of all that the shard was made from, so that a later run knows whether it may keep it.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO

import apache_beam as beam
from pydantic import ValidationError

from pipelines import beam_storage
from pipelines.annotations import Problem, readable
from pipelines.beam_metrics import Meter
from pipelines.classes import ClassTable
from pipelines.image_preparation import BATCH, ImagePreparer, Preparation, PreparedImage, count_positives
from pipelines.image_reading import read_images
from pipelines.shard_plan import Member, ShardPlan
from pipelines.split_report import ImageReport, Rejected, ShardReport, ViewReport, report_path
from pipelines.validate import reject_image
from ssd_dist.core.manifest import FORMAT_VERSION, Shard
from ssd_dist.core.records import Record
from ssd_dist.core.tfrecord_io import frame_record


@dataclass(frozen=True)
class ShardJob:
    """All that decides the bytes of a shard, besides its members and the plan; and whether to keep finished ones."""

    output: str
    split: str
    preparation: Preparation
    resume: bool = False

    @property
    def folder(self) -> str:
        """Where the split's files go."""
        return beam_storage.join(self.output, self.split)


class WriteShard(beam.DoFn):
    """Writes the files of one shard and yields (0, path of its report)."""

    def __init__(self, job: ShardJob) -> None:
        super().__init__()
        self._job = job
        self._meter: Meter | None = None
        self._preparer: ImagePreparer | None = None

    def setup(self) -> None:
        """Makes the anchors, once a worker."""
        self._meter = Meter()
        self._preparer = ImagePreparer(self._job.preparation, self._meter)

    def process(self, group: tuple[int, Iterable[object]]) -> Iterator[tuple[int, str]]:
        """Writes one shard; a group without a plan is none."""
        assert self._preparer is not None
        assert self._meter is not None
        shard, values = group
        members, plan = split_group(values)
        if plan is None:
            return
        path = report_path(self._job.folder, shard, plan.shards)
        key = shard_key(members, plan, self._job)
        if not (self._job.resume and is_finished(path, key, self._job.output)):
            report = write_shard(shard, members, plan, self._job, self._preparer, self._meter)
            beam_storage.write_bytes(path, report.model_copy(update={"key": key}).model_dump_json().encode())
        yield 0, path


def split_group(values: Iterable[object]) -> tuple[list[Member], ShardPlan | None]:
    """The members in global order, orphaned boxes after the image of the same index, and the plan."""
    members, plan = [], None
    for value in values:
        if isinstance(value, Member):
            members.append(value)
        elif isinstance(value, ShardPlan):
            plan = value
    return sorted(members, key=lambda member: (member.place, member.orphan, member.image.image_id)), plan


def shard_key(members: list[Member], plan: ShardPlan, job: ShardJob) -> str:
    """A digest of all that the shard's bytes depend on, but for the images themselves, which must not change."""
    digest = hashlib.sha256(repr((FORMAT_VERSION, job.split, job.preparation, plan)).encode("utf-8", "surrogatepass"))
    for member in members:
        digest.update(repr(member).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def is_finished(path: str, key: str, output: str) -> bool:
    """Whether the report at `path` is of this very shard and its files are there in full."""
    try:
        report = ShardReport.model_validate_json(beam_storage.read_bytes(path))
    except (FileNotFoundError, ValidationError):
        return False
    shards = [view.shard for view in report.views if view.shard is not None]
    return report.key == key and all(
        beam_storage.size(beam_storage.join(output, shard.file)) == shard.bytes for shard in shards
    )


def write_shard(
    shard: int, members: list[Member], plan: ShardPlan, job: ShardJob, preparer: ImagePreparer, meter: Meter
) -> ShardReport:
    """Writes the shard's files and counts what went into them and what did not."""
    report = ShardReport(classes=plan.classes.names)
    names = [f"view{view:02d}-{shard:05d}-of-{plan.shards:05d}.tfrecord" for view in range(job.preparation.views)]
    with ExitStack() as stack:
        writers = [
            RecordWriter(
                f"{job.split}/{name}",
                stack.enter_context(beam_storage.replace_file(beam_storage.join(job.folder, name))),
            )
            for name in names
        ]
        images = (
            (member.image, data)
            for member, data in zip(members, read_images(member.image for member in members), strict=True)
        )
        for first in range(0, len(members), BATCH):
            batch = preparer.prepare(islice(images, BATCH), plan.classes)
            for member, prepared in zip(members[first : first + BATCH], batch, strict=True):
                boxes = len(member.image.boxes)
                report.count_read(member, boxes)
                write_image(member, prepared, writers, report, plan.classes)
                count_image(member, boxes, prepared, meter)
    report.views.extend(writer.report() for writer in writers)
    return report


def write_image(
    member: Member,
    prepared: PreparedImage | Problem,
    writers: list["RecordWriter"],
    report: ShardReport,
    classes: ClassTable,
) -> None:
    """Appends an image's records to the files of their views, or its rejections to the report."""
    if isinstance(prepared, Problem):
        lines = reject_image(member.image, prepared, is_image=not member.orphan)
        report.rejected.extend(Rejected.of(member.place, line) for line in lines)
        return
    for writer, record in zip(writers, prepared.records, strict=True):
        writer.write(record)
    report.rejected.extend(Rejected.of(member.place, line) for line in prepared.checked.rejected)
    if any(line.reason == "unknown_class" for line in prepared.checked.rejected):
        met = classes.unknown(box.category for box in member.image.boxes)
        report.unknown_classes = sorted({*report.unknown_classes, *met})
    report.images.append(ImageReport(name=readable(member.image.filename), digest=prepared.digest))
    report.boxes += len(prepared.checked.objects.labels)
    report.clipped_boxes += prepared.checked.clipped


def count_image(member: Member, boxes: int, prepared: PreparedImage | Problem, meter: Meter) -> None:
    """Shows an image to whoever watches the runner's console."""
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
    """Appends records to an open file and keeps its checksum and counts."""

    def __init__(self, name: str, file: BinaryIO) -> None:
        self._name = name
        self._file = file
        self._digest = hashlib.sha256()
        self._size = 0
        self._view = ViewReport()

    def write(self, record: Record) -> None:
        """Appends one record."""
        framed = frame_record(record.to_bytes())
        self._file.write(framed)
        self._digest.update(framed)
        self._size += len(framed)
        self._view.add(record)

    def report(self) -> ViewReport:
        """The counts, with the file's size and checksum."""
        shard = Shard(file=self._name, examples=self._view.examples, bytes=self._size, sha256=self._digest.hexdigest())
        return self._view.model_copy(update={"shard": shard})
