"""Groups the elements of the readers into one group of images per shard, without side inputs or a global sort.

    elements by image id  -> images with their boxes, duplicate ids found          (grouping 1)
    images by bucket      -> global index = start of the listing + row             (grouping 2)
    images by shard       -> global index mod number of shards                     (grouping 3)

All splits of a job pass through the same groupings. The classes of all splits form one table, so that a label means
the same class in each of them.

A bucket is a range of consecutive rows of one listing. One small group receives the lengths of the listings and the
categories. From it, every bucket gets its start index and every shard gets the class table. These values travel as
elements of the same PCollection, for two reasons: some runners (Dask's) mix up side inputs and tagged outputs, and
branches that are merged again encode and decode each element two more times. Only metadata passes through these
groupings, never an image.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import apache_beam as beam

from pipelines.annotations import (
    FILES_PER_SPLIT,
    SUMMARY_KEY,
    BoxGroup,
    Category,
    Image,
    Listing,
    Problem,
    pack_boxes,
    unpack_boxes,
)
from pipelines.classes import ClassRules, ClassTable, build_class_tables
from ssd_dist.core.errors import DataError

BUCKET_ROWS = 1024
# Large datasets get shards of this many images to twice as many: 200 to 400 MB. All boxes of a shard are in memory
# while it is written. Small datasets get shards of at least MIN_IMAGES_PER_SHARD images.
IMAGES_PER_SHARD = 4096
MIN_IMAGES_PER_SHARD = 16
DEFAULT_SHARDS = 8


class Member(NamedTuple):
    """An image of a shard.

    Attributes:
      place: global index of the image.
      image: the image with all its boxes.
      orphan: whether this entry holds only boxes, because no listing contains their image.
    """

    place: int
    image: Image
    orphan: bool


@dataclass(frozen=True)
class ShardPlan:
    """Facts about the whole split that every shard needs.

    Attributes:
      split: number of the split in the job.
      shard: number of the shard in the split; -1 before the shards are made.
      shards: number of shards of the split.
      classes: the class table.
    """

    split: int
    shard: int
    shards: int
    classes: ClassTable


class _ListedImage(NamedTuple):
    """An image with all its boxes; if `orphan`, only the boxes."""

    image: Image
    orphan: bool = False


class _Bucket(NamedTuple):
    """The global index at which a bucket starts; `problem` is set if its listing is broken."""

    start: int
    shards: int
    problem: Problem | None


def choose_shard_count(images: int, requested: int) -> int:
    """Returns the number of shards.

    The result never exceeds the number of images, because a reader that takes one record from each shard in turn would
    get none from an empty shard. An automatic choice is a power of two, so that the number of workers divides it.

    Args:
      images: number of images of the split.
      requested: value of `--shards`; 0 chooses automatically.
    """
    if requested:
        return max(1, min(requested, images))
    count = max(DEFAULT_SHARDS, images // IMAGES_PER_SHARD)
    count = min(count, max(1, images // MIN_IMAGES_PER_SHARD))
    return 1 << (count.bit_length() - 1)


class GroupIntoShards(beam.PTransform):
    """Groups elements into one group per shard: its members and one plan; a group without a plan is not a shard."""

    def __init__(self, shards: int, rules: ClassRules) -> None:
        super().__init__()
        self._shards = shards
        self._rules = rules

    def expand(self, elements: beam.PCollection) -> beam.PCollection:
        """Connects the three groupings."""
        return (
            elements
            | "Group by image" >> beam.GroupByKey()
            | "Assemble images" >> beam.FlatMap(assemble_group, self._shards, self._rules)
            | "Group by bucket" >> beam.GroupByKey()
            | "Number images" >> beam.FlatMap(number_images)
            | "Group by shard" >> beam.GroupByKey()
        )


def assemble_group(
    group: tuple[int, Iterable[object]], shards: int, rules: ClassRules
) -> Iterator[tuple[int, "_ListedImage | _Bucket | ShardPlan"]]:
    """Yields the images of a group, keyed by bucket; for the summary group, the shard plan and the buckets."""
    key, values = group
    if key != SUMMARY_KEY:
        yield from assemble_images(values)
        return
    summary = list(values)
    listings = sorted((value for value in summary if isinstance(value, Listing)), key=lambda listing: listing.file)
    categories = {value for value in summary if isinstance(value, Category)}
    broken = next((listing.problem for listing in listings if listing.problem is not None), None)
    if broken is not None and not categories and not rules.fixed:
        # The broken listing is the cause, so its message helps more than "no classes".
        raise DataError(broken.detail)
    splits = sorted({listing.file // FILES_PER_SPLIT for listing in listings})
    tables = build_class_tables(categories, splits, rules)
    for split in splits:
        own = [listing for listing in listings if listing.file // FILES_PER_SPLIT == split]
        count = choose_shard_count(sum(listing.images for listing in own), shards)
        yield SUMMARY_KEY, ShardPlan(split, -1, count, tables[split])
        yield from start_buckets(own, count)


def assemble_images(values: Iterable[object]) -> Iterator[tuple[int, _ListedImage]]:
    """Joins the images of one key with the boxes that were read separately; yields (bucket, image).

    If several images share an id, the first one in the listings is kept and the others are marked as duplicates. Each
    image keeps the boxes of its own listing, because two datasets may both number their images from 1.
    """
    images: dict[tuple[int, str], list[Image]] = {}
    boxes: dict[tuple[int, str], list[BoxGroup]] = {}
    for value in values:
        if isinstance(value, Image):
            images.setdefault(_split_and_id(value), []).append(value)
        elif isinstance(value, BoxGroup):
            boxes.setdefault(_split_and_id(value), []).append(value)
    for own in sorted({*images, *boxes}):
        groups = sorted(boxes.get(own, []), key=lambda group: (group.file, group.row))
        found = sorted(images.get(own, []), key=lambda image: (image.file, image.row))
        if len(found) == 1:
            pieces = (group.packed for group in groups)
            yield _key_by_bucket(found[0]._replace(packed=_join_boxes(found[0].packed, *pieces)))
        elif found:
            yield from map(_key_by_bucket, _assign_boxes(found, groups))
        else:
            yield _make_orphan(groups)


def start_buckets(listings: Iterable[Listing], shards: int) -> Iterator[tuple[int, _Bucket]]:
    """Yields (bucket key, bucket) for each bucket of each listing, in the order of the listings."""
    start = 0
    for listing in listings:
        # A listing without images also needs a bucket, because orphaned boxes may be in it.
        for row in range(0, max(1, listing.images), BUCKET_ROWS):
            yield _bucket_key(listing.file, row), _Bucket(start + row, shards, listing.problem)
        start += listing.images


def number_images(group: tuple[int, Iterable[object]]) -> Iterator[tuple[int, Member | ShardPlan]]:
    """Yields each image of a bucket, keyed by shard; for the summary group, one plan per shard."""
    values = list(group[1])
    if group[0] == SUMMARY_KEY:
        for plan in values:
            if isinstance(plan, ShardPlan):
                yield from ((_shard_key(plan.split, shard), replace(plan, shard=shard)) for shard in range(plan.shards))
        return
    bucket = next(value for value in values if isinstance(value, _Bucket))
    split = group[0] // _ROWS_PER_FILE // FILES_PER_SPLIT
    first_row = group[0] % _ROWS_PER_FILE * BUCKET_ROWS
    for value in values:
        if isinstance(value, _ListedImage):
            index = bucket.start + (0 if value.orphan else value.image.row - first_row)
            image = value.image if bucket.problem is None else value.image._replace(problem=bucket.problem)
            yield _shard_key(split, index % bucket.shards), Member(index, image, value.orphan)


_ROWS_PER_FILE = 1 << 32
_SHARDS_PER_SPLIT = 1 << 32


def _shard_key(split: int, shard: int) -> int:
    return split * _SHARDS_PER_SPLIT + shard


def _split_and_id(value: Image | BoxGroup) -> tuple[int, str]:
    return value.file // FILES_PER_SPLIT, value.image_id


def _bucket_key(file: int, row: int) -> int:
    return file * _ROWS_PER_FILE + row // BUCKET_ROWS


def _key_by_bucket(image: Image) -> tuple[int, _ListedImage]:
    return _bucket_key(image.file, image.row), _ListedImage(image)


def _assign_boxes(images: list[Image], groups: list[BoxGroup]) -> Iterator[Image]:
    """Yields the images of one id with their boxes; all but at most one are marked as duplicates.

    Boxes of a listing that does not contain the image go to the first image. If one listing gives the id to several
    files, it is unknown which file its boxes belong to, so all these images are rejected.
    """
    first = images[0]
    owners: dict[int, int] = {}
    paths: dict[int, set[str]] = {}
    for place, image in enumerate(images):
        owners.setdefault(image.file, place)
        paths.setdefault(image.file, set()).add(image.path)
    pieces: dict[int, list[bytes]] = {}
    for group in groups:
        pieces.setdefault(owners.get(group.file, 0), []).append(group.packed)
    for place, image in enumerate(images):
        own = pieces.get(place, [])
        detail = f"image id {first.image_id!r} is taken by {first.filename} ({first.source}); give each image its own"
        if own and len(paths[image.file]) > 1:
            detail = (
                f"{image.source}: image id {image.image_id!r} is used by several files, so it is unknown which of them "
                "the boxes belong to; give each image an id of its own"
            )
        elif not place:
            detail = ""
        problem = image.problem or (Problem("duplicate_id", detail) if detail else None)
        yield image._replace(packed=_join_boxes(image.packed, *own), problem=problem)


def _make_orphan(groups: list[BoxGroup]) -> tuple[int, _ListedImage]:
    first = groups[0]
    detail = f"the boxes refer to image id {first.image_id!r}, which no listing contains; add the image or remove them"
    image = Image(
        image_id=first.image_id,
        file=first.file,
        row=0,
        source=first.source,
        filename="",
        path="",
        packed=_join_boxes(*(group.packed for group in groups)),
        problem=Problem("unknown_image", detail),
    )
    return _bucket_key(first.file, 0), _ListedImage(image, orphan=True)


def _join_boxes(*packed: bytes) -> bytes:
    """Joins packed boxes; most images have theirs in a single piece, which is returned as it is."""
    pieces = [piece for piece in packed if piece]
    if len(pieces) == 1:
        return pieces[0]
    return pack_boxes(box for piece in pieces for box in unpack_boxes(piece))
