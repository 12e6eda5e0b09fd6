"""The report of one shard: how many images and boxes were read, written and rejected.

    shard writer -> OUT/train/.parts/00003-of-00008.json -> manifest writer, summary

A report is written after the files of its shard. A shard with a report is therefore complete.
"""

from pydantic import BaseModel

from pipelines import beam_storage
from pipelines.annotations import to_valid_text
from pipelines.image_preparation import count_positives
from pipelines.shard_plan import Member
from pipelines.split_folder import PARTS_FOLDER
from pipelines.suspicious_boxes import SuspiciousBoxes
from pipelines.validate import Rejection
from ssd_dist.core.manifest import Shard
from ssd_dist.core.records import Record
from ssd_dist.core.storage import join


class Rejected(BaseModel):
    """A rejection with the global index of its image, which is the sort key of `rejected.jsonl`."""

    index: int
    source: str
    image: str
    reason: str
    detail: str
    where: str

    @classmethod
    def of(cls, index: int, rejection: Rejection) -> "Rejected":
        """Returns the rejection with an index, its text converted to valid UTF-8."""
        fields = {name: to_valid_text(getattr(rejection, name)) for name in cls.model_fields if name != "index"}
        return cls(index=index, **fields)


class ImageReport(BaseModel):
    """An image that the shard contains, with the first 64 bits of the SHA-256 of its source bytes, in hexadecimal."""

    name: str
    digest: str


class ViewReport(BaseModel):
    """Counts of one file of a shard.

    Attributes:
      shard: name, size and checksum of the file.
      examples: number of records.
      objects: number of objects per class name.
      images_per_class: number of images with an object of each class, without crowds; None in reports of earlier
        versions.
      positives: number of objects per number of positive anchors.
    """

    shard: Shard | None = None
    examples: int = 0
    objects: dict[str, int] = {}
    images_per_class: dict[str, int] | None = None
    positives: dict[int, int] = {}

    def add(self, record: Record) -> None:
        """Counts one record."""
        self.examples += 1
        self.images_per_class = self.images_per_class or {}
        for name in record.objects.names:
            self.objects[name] = self.objects.get(name, 0) + 1
        for name in record.objects.list_classes():
            self.images_per_class[name] = self.images_per_class.get(name, 0) + 1
        for positives in count_positives(record):
            self.positives[positives] = self.positives.get(positives, 0) + 1


class ShardReport(BaseModel):
    """Counts of one shard.

    Attributes:
      key: digest of everything that the shard was made from, see `shards.shard_key`.
      sources: digest of the bytes of all image files that the shard was made from, rejected ones included.
      classes: names of the classes, in the order of their labels.
      images_read, boxes_read: what the annotations contain.
      boxes: what the records contain.
      clipped_boxes: boxes that extended beyond their image.
      reduced_boxes: boxes made from polygons or rotated boxes.
      suspicious: boxes that suggest an error in the annotations.
      images: the images that the shard contains.
      rejected: the rejected images and boxes.
      unknown_classes: classes of rejected boxes that the class table does not contain.
      views: one entry per file of the shard.
    """

    key: str = ""
    sources: str = ""
    classes: tuple[str, ...]
    images_read: int = 0
    boxes_read: int = 0
    boxes: int = 0
    clipped_boxes: int = 0
    reduced_boxes: int = 0
    suspicious: SuspiciousBoxes = SuspiciousBoxes()
    images: list[ImageReport] = []
    rejected: list[Rejected] = []
    unknown_classes: list[str] = []
    views: list[ViewReport] = []

    def count_read(self, member: Member, boxes: int) -> None:
        """Counts a member and its boxes; an orphan counts as boxes without an image."""
        self.images_read += not member.orphan
        self.boxes_read += boxes


def report_path(folder: str, shard: int, shards: int) -> str:
    """Returns the path of the report of a shard, below the folder of the split."""
    return join(folder, PARTS_FOLDER, f"{shard:05d}-of-{shards:05d}.json")


def read_reports(output: str, split: str) -> list[ShardReport]:
    """Returns the reports of all shards of a finished split, in the order of the shards."""
    folder = join(output, split)
    return list(map(read_report, beam_storage.match_below(folder, PARTS_FOLDER, "*-of-*.json")))


def read_report(path: str) -> ShardReport:
    """Returns the report of one shard."""
    return ShardReport.model_validate_json(beam_storage.read_bytes(path))


def map_hashes_to_names(reports: list[ShardReport]) -> dict[int, str]:
    """Returns the file name of each image of a split, keyed by the hash of its source bytes."""
    return {int(image.digest, 16): image.name for report in reports for image in report.images}
