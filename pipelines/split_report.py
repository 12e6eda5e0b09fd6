"""The numbers: counted by each shard, added up at the end, written as manifest, rejections and image hashes.

part reports of all shards -> OUT/train/rejected.jsonl, OUT/train/image_hashes.npy -> OUT/dataset.json, last
"""

import contextlib
import io
import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from pipelines import beam_storage
from pipelines.annotations import readable
from pipelines.image_preparation import count_positives
from pipelines.shard_plan import Member
from pipelines.validate import Rejection
from ssd_dist.core.config import Config
from ssd_dist.core.errors import DataError
from ssd_dist.core.manifest import (
    MANIFEST_NAME,
    CropSettings,
    Leakage,
    Manifest,
    PositivesPerObject,
    Shard,
    Split,
    View,
    fingerprint,
    target_spec,
)
from ssd_dist.core.records import Record

PARTS_FOLDER = ".parts"
REJECTED_NAME = "rejected.jsonl"
HASHES_NAME = "image_hashes.npy"
LEAKAGE_EXAMPLES = 5
OF_A_SHARD = re.compile(r"(view\d{2,}-\d{5,}-of-\d{5,}\.tfrecord|\d{5,}-of-\d{5,}\.json)")


class Rejected(BaseModel):
    """A rejection with the global index of its image, by which the lines are ordered."""

    index: int
    source: str
    image: str
    reason: str
    detail: str
    where: str

    @classmethod
    def of(cls, index: int, rejection: Rejection) -> "Rejected":
        """The rejection at its place."""
        told = {name: readable(getattr(rejection, name)) for name in cls.model_fields if name != "index"}
        return cls(index=index, **told)


class ImageReport(BaseModel):
    """An image that is in the shard, with the first 64 bits of the SHA-256 of its source bytes."""

    name: str
    digest: str


class ViewReport(BaseModel):
    """What one file of a shard holds."""

    shard: Shard | None = None
    examples: int = 0
    objects: dict[str, int] = {}
    positives: dict[int, int] = {}

    def add(self, record: Record) -> None:
        """Counts one record."""
        self.examples += 1
        for name in record.objects.names:
            self.objects[name] = self.objects.get(name, 0) + 1
        for positives in count_positives(record):
            self.positives[positives] = self.positives.get(positives, 0) + 1


class ShardReport(BaseModel):
    """What one shard read, wrote and rejected; `key` tells what it was made from."""

    key: str = ""
    classes: tuple[str, ...]
    images_read: int = 0
    boxes_read: int = 0
    boxes: int = 0
    clipped_boxes: int = 0
    images: list[ImageReport] = []
    rejected: list[Rejected] = []
    unknown_classes: list[str] = []
    views: list[ViewReport] = []

    def count_read(self, member: Member, boxes: int) -> None:
        """Counts what a member brings; an orphan brings boxes without an image."""
        self.images_read += not member.orphan
        self.boxes_read += boxes


def report_path(folder: str, shard: int, shards: int) -> str:
    """Where the report of a shard goes, below the split's folder."""
    return beam_storage.join(folder, PARTS_FOLDER, f"{shard:05d}-of-{shards:05d}.json")


def read_parts(output: str, split: str) -> list[ShardReport]:
    """The reports of a finished split's shards, in their order."""
    return list(map(read_part, beam_storage.match_below(beam_storage.join(output, split), PARTS_FOLDER, "*-of-*.json")))


def read_part(path: str) -> ShardReport:
    """The report of one shard."""
    return ShardReport.model_validate_json(beam_storage.read_bytes(path))


def name_images(parts: list[ShardReport]) -> dict[int, str]:
    """The file names of a split's images by their hashes."""
    return {int(image.digest, 16): image.name for part in parts for image in part.images}


@dataclass(frozen=True)
class ReportJob:
    """Where the numbers go and what the manifest says besides them."""

    output: str
    split: str
    config: Config
    max_rejected_fraction: float


class WriteReport(beam.DoFn):
    """Adds up the parts of all shards, writes the manifest and yields its path."""

    def __init__(self, job: ReportJob) -> None:
        super().__init__()
        self._job = job

    def process(self, group: tuple[int, Iterable[str]]) -> Iterator[str]:
        """Takes the one group of report paths."""
        yield write_report(sorted(group[1]), self._job)


def write_report(paths: list[str], job: ReportJob) -> str:
    """Writes rejections, hashes and then the manifest, into which the split is laid; returns the manifest's path.

    Raises:
      DataError: if nothing usable was found or too much of it was rejected.
    """
    parts = list(map(read_part, paths))
    folder = beam_storage.join(job.output, job.split)
    rejected = sorted((line for part in parts for line in part.rejected), key=lambda line: line.index)
    lines = [json.dumps(line.model_dump(exclude={"index"}), ensure_ascii=False) for line in rejected]
    beam_storage.write_bytes(beam_storage.join(folder, REJECTED_NAME), "".join(f"{line}\n" for line in lines).encode())
    names = name_images(parts)
    windows = CropSettings.from_config(job.config.data.augmentation) if len(parts[0].views) > 1 else None
    split = merge_parts(parts, f"{job.split}/{HASHES_NAME}", rejected, windows)
    check_split(split, job)
    beam_storage.write_bytes(beam_storage.join(folder, HASHES_NAME), save_array(np.array(sorted(names), np.uint64)))
    path = beam_storage.join(job.output, MANIFEST_NAME)
    with beam_storage.locked(job.output):
        before = read_manifest(job.output)
        if before is not None and {*before.splits} - {job.split} and before.classes != parts[0].classes:
            # Its labels would mean other classes than these.
            raise DataError(f"{path} was written by another run meanwhile and has other classes; run this one again")
        manifest = add_split(before, split, parts[0].classes, names, job)
        beam_storage.write_bytes(path, manifest.to_json().encode())
    sweep(folder, [*paths, *(shard.file for view in split.views for shard in view.shards)])
    return path


def sweep(folder: str, kept: list[str]) -> None:
    """Deletes what killed or repeated attempts left behind, and shards of an earlier run that cut the data otherwise.

    A trainer that reads every shard it finds would meet the images twice.
    """
    names = {posixpath.basename(path) for path in kept}
    # No deeper, where a link may lead out of the folder.
    found = [*beam_storage.list_files(folder), *beam_storage.list_files(beam_storage.join(folder, PARTS_FOLDER))]
    stale = [
        path
        for path, name in zip(found, map(posixpath.basename, found), strict=True)
        if beam_storage.storage.TEMPORARY in name or (OF_A_SHARD.fullmatch(name) and name not in names)
    ]
    beam_storage.delete_files(stale)


def merge_parts(parts: list[ShardReport], hashes: str, rejected: list[Rejected], windows: CropSettings | None) -> Split:
    """The manifest's entry of a split."""
    images = Counter(line.reason for line in rejected if not line.where)
    boxes = Counter(line.reason for line in rejected if line.where)
    return Split(
        images_read=sum(part.images_read for part in parts),
        images=sum(len(part.images) for part in parts),
        boxes_read=sum(part.boxes_read for part in parts),
        boxes=sum(part.boxes for part in parts),
        rejected_images=dict(sorted(images.items())),
        rejected_boxes=dict(sorted(boxes.items())),
        clipped_boxes=sum(part.clipped_boxes for part in parts),
        image_hashes=hashes,
        views=tuple(_merge_views(view, parts[0].classes) for view in zip(*(part.views for part in parts), strict=True)),
        windows=windows,
    )


def _merge_views(views: tuple[ViewReport, ...], classes: tuple[str, ...]) -> View:
    objects = sum((Counter(view.objects) for view in views), Counter())
    positives = sum((Counter(view.positives) for view in views), Counter())
    count = sum(positives.values())
    return View(
        examples=sum(view.examples for view in views),
        shards=tuple(view.shard for view in views if view.shard is not None),
        objects_per_class={name: objects.get(name, 0) for name in classes},
        positives_per_object=PositivesPerObject(
            mean=sum(number * objects_ for number, objects_ in positives.items()) / max(1, count),
            minimum=min(positives, default=0),
            maximum=max(positives, default=0),
            histogram=dict(sorted(positives.items())),
        ),
    )


def check_split(split: Split, job: ReportJob) -> None:
    """Refuses a split that is empty, that lost all its boxes, or of which more was rejected than the flag allows.

    Raises:
      DataError: saying how much and where the reasons are.
    """
    where = f"the reasons are in {beam_storage.join(job.output, job.split, REJECTED_NAME)}"
    if not split.images_read:
        raise DataError(f"split {job.split!r}: the source lists no images; check --input and --source_split")
    if not split.images:
        raise DataError(f"split {job.split!r}: all {split.images_read} images were rejected; {where}")
    if split.boxes_read and not split.boxes:
        raise DataError(f"split {job.split!r}: all {split.boxes_read} boxes were rejected; {where}")
    for what, rejected, read in (
        ("images", split.images_read - split.images, split.images_read),
        ("boxes", split.boxes_read - split.boxes, split.boxes_read),
    ):
        if rejected > job.max_rejected_fraction * read:
            raise DataError(
                f"split {job.split!r}: {rejected} of {read} {what} were rejected, more than "
                f"--max_rejected_fraction={job.max_rejected_fraction:g} allows; {where}"
            )


def read_manifest(output: str) -> Manifest | None:
    """The manifest in a folder, if there is one."""
    path = beam_storage.join(output, MANIFEST_NAME)
    return Manifest.from_json(beam_storage.read_text(path), path) if beam_storage.exists(path) else None


def add_split(
    manifest: Manifest | None, split: Split, classes: tuple[str, ...], names: dict[int, str], job: ReportJob
) -> Manifest:
    """The manifest with this split in it, new or in place of an older one, and its leakage with the others."""
    config = job.config
    spec = target_spec(config.anchors, config.matching, config.model.input_size)
    others = {} if manifest is None else {name: old for name, old in manifest.splits.items() if name != job.split}
    kept = () if manifest is None else tuple(leak for leak in manifest.leakage if job.split not in leak.splits)
    found = (find_leakage(job, name, old, names) for name, old in others.items())
    return Manifest(
        classes=classes,
        image_size=spec["image_size"],
        anchors=spec["anchors"],
        matching=spec["matching"],
        fingerprint=fingerprint(config.anchors, config.matching, config.model.input_size),
        splits=dict(sorted({**others, job.split: split}.items())),
        leakage=tuple(sorted((*kept, *filter(None, found)), key=lambda leak: leak.splits)),
    )


def find_leakage(job: ReportJob, other: str, split: Split, names: dict[int, str]) -> Leakage | None:
    """The images of this split, `names` by hash, whose bytes are also in another split."""
    path = beam_storage.join(job.output, split.image_hashes)
    shared = np.intersect1d(load_hashes(path), np.array(sorted(names), np.uint64))
    if not len(shared):
        return None
    first, second = sorted((job.split, other))
    if first == other:
        # Whichever is prepared last, the manifest is the same. While the other is being made again its parts may go.
        with contextlib.suppress(FileNotFoundError):
            names = {**names, **name_images(read_parts(job.output, other))}
    examples = sorted(names[int(digest)] for digest in shared)[:LEAKAGE_EXAMPLES]
    return Leakage(splits=(first, second), images=len(shared), examples=tuple(examples))


def save_array(array: npt.NDArray[np.uint64]) -> bytes:
    """The array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def load_hashes(path: str) -> npt.NDArray[np.uint64]:
    """The sorted hashes of a split's images.

    Raises:
      DataError: if the file is missing or damaged.
    """
    try:
        return np.asarray(np.load(io.BytesIO(beam_storage.read_bytes(path)), allow_pickle=False), np.uint64)
    except FileNotFoundError:
        raise DataError(f"{path} is missing though the manifest names it; prepare that split again first") from None
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}); prepare that split again first") from None
