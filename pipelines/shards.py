"""One shard: read, validate, transcode, match, serialise, write; the only place where image bytes are.

    (shard, members and plan) -> OUT/train/view00-00003-of-00008.tfrecord and a part report -> path of the report

The report is written after the shard's files: where it is, they are complete.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import apache_beam as beam
import numpy as np

from pipelines import files
from pipelines.annotations import Image, Problem
from pipelines.assemble import Member, ShardPlan
from pipelines.classes import ClassTable
from pipelines.report import ImageReport, Rejected, ShardReport, ViewReport
from pipelines.transcode import Transcoding, encode_image
from pipelines.validate import CheckedBoxes, check_boxes, check_size, reject_image
from ssd_dist.core.anchors import generate_anchors
from ssd_dist.core.config import AnchorConfig, MatchingConfig
from ssd_dist.core.images import ImageError, decode_image, stored_size
from ssd_dist.core.manifest import Shard
from ssd_dist.core.matching import Matcher
from ssd_dist.core.records import Record
from ssd_dist.core.tfrecord import frame_record

# Sixteen hexadecimal digits of a SHA-256: the 64 bits that are compared between splits.
HASH_DIGITS = 16


@dataclass(frozen=True)
class ShardJob:
    """All that decides the bytes of a shard, besides its members and the plan."""

    output: str
    split: str
    transcoding: Transcoding
    anchors: AnchorConfig
    matching: MatchingConfig

    @property
    def folder(self) -> str:
        """Where the split's files go."""
        return files.join(self.output, self.split)


@dataclass(frozen=True)
class PreparedImage:
    """The record of one image, the hash of its source bytes and what happened to its boxes."""

    record: Record
    digest: str
    checked: CheckedBoxes


class WriteShard(beam.DoFn):
    """Writes the files of one shard and yields (0, path of its report)."""

    def __init__(self, job: ShardJob) -> None:
        super().__init__()
        self._job = job
        self._matcher: Matcher | None = None

    def setup(self) -> None:
        """Makes the anchors, once a worker."""
        anchors = generate_anchors(self._job.anchors, self._job.transcoding.size)
        self._matcher = Matcher(anchors, self._job.anchors, self._job.matching)

    def process(self, group: tuple[int, Iterable[object]]) -> Iterator[tuple[int, str]]:
        """Writes one shard; a group without a plan is none."""
        assert self._matcher is not None
        shard, values = group
        members, plan = split_group(values)
        if plan is not None:
            report = write_shard(shard, members, plan, self._job, self._matcher)
            path = report_path(self._job.folder, shard, plan.shards)
            files.write_bytes(path, report.model_dump_json().encode())
            yield 0, path


def split_group(values: Iterable[object]) -> tuple[list[Member], ShardPlan | None]:
    """The members in global order, orphaned boxes after the image of the same index, and the plan."""
    members, plan = [], None
    for value in values:
        if isinstance(value, Member):
            members.append(value)
        elif isinstance(value, ShardPlan):
            plan = value
    return sorted(members, key=lambda member: (member.index, member.orphan, member.image.image_id)), plan


def report_path(folder: str, shard: int, shards: int) -> str:
    """Where the report of a shard goes."""
    return files.join(folder, ".parts", f"{shard:05d}-of-{shards:05d}.json")


def write_shard(shard: int, members: list[Member], plan: ShardPlan, job: ShardJob, matcher: Matcher) -> ShardReport:
    """Writes the shard's file and counts what went into it and what did not."""
    report = ShardReport(classes=plan.classes.names)
    name = f"view00-{shard:05d}-of-{plan.shards:05d}.tfrecord"
    path = files.join(job.folder, name)
    view = ViewReport()
    digest = hashlib.sha256()
    size = 0
    with files.replace_file(path) as file:
        for member in members:
            report.count_read(member)
            prepared = prepare_image(member.image, plan.classes, job.transcoding, matcher)
            if isinstance(prepared, Problem):
                lines = reject_image(member.image, prepared, is_image=not member.orphan)
                report.rejected.extend(Rejected.of(member.index, line) for line in lines)
                continue
            framed = frame_record(prepared.record.to_bytes())
            file.write(framed)
            digest.update(framed)
            size += len(framed)
            report.rejected.extend(Rejected.of(member.index, line) for line in prepared.checked.rejected)
            report.images.append(ImageReport(name=member.image.filename, digest=prepared.digest))
            report.boxes += len(prepared.record.objects.labels)
            report.clipped_boxes += prepared.checked.clipped
            view.add(prepared.record)
    view.shard = Shard(file=f"{job.split}/{name}", examples=view.examples, bytes=size, sha256=digest.hexdigest())
    report.views.append(view)
    return report


def prepare_image(image: Image, classes: ClassTable, how: Transcoding, matcher: Matcher) -> PreparedImage | Problem:
    """The record of one image, or why there is none."""
    if image.problem is not None:
        return image.problem
    data = read_image(image)
    if isinstance(data, Problem):
        return data
    try:
        decoded = decode_image(data)
    except ImageError as error:
        return Problem(error.reason, str(error))
    width, height = decoded.size
    problem = check_size(image, height, width, stored_size(data))
    if problem is not None:
        return problem
    checked = check_boxes(image, height, width, classes)
    objects = checked.objects
    record = Record(
        encoded=encode_image(decoded, how),
        height=how.size,
        width=how.size,
        original_height=height,
        original_width=width,
        source_id=image.image_id,
        filename=image.filename,
        objects=objects,
        targets=matcher.match(objects.boxes, objects.labels, objects.is_crowd),
    )
    return PreparedImage(record, hashlib.sha256(data).hexdigest()[:HASH_DIGITS], checked)


def read_image(image: Image) -> bytes | Problem:
    """The bytes of the first of the image's paths that exists."""
    for path in image.paths:
        try:
            return files.read_bytes(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (IsADirectoryError, PermissionError) as error:
            return Problem("unreadable", str(error))
    return Problem("missing_image", f"{image.paths[0] if image.paths else image.filename} does not exist")


def count_positives(record: Record) -> list[int]:
    """How many anchors answer for each object that is not a crowd."""
    counts = np.bincount(record.targets.objects, minlength=len(record.objects.labels))
    return [int(count) for count in counts[~record.objects.is_crowd]]
