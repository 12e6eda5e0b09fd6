"""From what the readers emit to one group of images a shard, without a side input or a global sort.

    elements by image id  -> images with their boxes, duplicate ids found          (grouping 1)
    images by bucket      -> global index = where the listing starts + row         (grouping 2)
    images by shard       -> index mod shards                                      (grouping 3)

A bucket is a run of rows of one listing. The listings' lengths and the categories meet in one small group, from which
every bucket gets its start and every shard the class table: as elements of the same chain, because side inputs and
tagged outputs are not kept apart by every runner (Dask's), and branches that meet again cost each element two more
trips through its coder. Only metadata passes here, never an image.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import apache_beam as beam

from pipelines.annotations import SUMMARY_KEY, BoxGroup, Category, Image, Listing, Problem, pack_boxes, unpack_boxes
from pipelines.classes import ClassRules, ClassTable, build_class_table
from ssd_dist.core.errors import DataError

BUCKET_ROWS = 1024
# Large sets get shards of this many images to twice as many, 200 to 400 MB, whose boxes are all in memory while one
# is written; small ones this many at least.
IMAGES_A_SHARD = 4096
FEWEST_IMAGES_A_SHARD = 16
USUAL_SHARDS = 8


class Member(NamedTuple):
    """An image of a shard with its place in the global order; `orphan` marks boxes whose image no listing names."""

    place: int
    image: Image
    orphan: bool


@dataclass(frozen=True)
class ShardPlan:
    """What every shard must know of the whole: how many shards there are, and the classes."""

    shards: int
    classes: ClassTable


class _Listed(NamedTuple):
    """An image with all its boxes, or boxes alone."""

    image: Image
    orphan: bool = False


class _Bucket(NamedTuple):
    """Where a run of rows starts in the global order; `problem` is set if its listing is broken."""

    start: int
    shards: int
    problem: Problem | None


def choose_shard_count(images: int, asked: int) -> int:
    """How many shards hold so many images; `asked` is the flag, 0 for a choice of ours.

    Never more than images: an empty shard would stall whoever reads one record of each. Our choice is a power of
    two, so that it divides among workers.
    """
    if asked:
        return max(1, min(asked, images))
    wanted = max(USUAL_SHARDS, images // IMAGES_A_SHARD)
    wanted = min(wanted, max(1, images // FEWEST_IMAGES_A_SHARD))
    return 1 << (wanted.bit_length() - 1)


class GroupIntoShards(beam.PTransform):
    """Elements -> (shard, members and one plan); a group without a plan is no shard."""

    def __init__(self, shards: int, rules: ClassRules) -> None:
        super().__init__()
        self._shards = shards
        self._rules = rules

    def expand(self, elements: beam.PCollection) -> beam.PCollection:
        """Wires the three groupings."""
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
) -> Iterator[tuple[int, "_Listed | _Bucket | ShardPlan"]]:
    """What the first grouping brought together: the images of one key, or what is known of the whole."""
    key, values = group
    if key != SUMMARY_KEY:
        yield from assemble_images(values)
        return
    summary = list(values)
    listings = sorted((value for value in summary if isinstance(value, Listing)), key=lambda listing: listing.file)
    categories = {value for value in summary if isinstance(value, Category)}
    broken = next((listing.problem for listing in listings if listing.problem is not None), None)
    if broken is not None and not categories and not rules.fixed:
        # Where it broke says more than what is missing for it.
        raise DataError(broken.detail)
    count = choose_shard_count(sum(listing.images for listing in listings), shards)
    yield SUMMARY_KEY, ShardPlan(count, build_class_table(categories, rules))
    yield from start_buckets(listings, count)


def assemble_images(values: Iterable[object]) -> Iterator[tuple[int, _Listed]]:
    """(bucket, listed) of the values of one key: an image with the boxes that came apart from it.

    Of several images of one id the first in the listings stays, the others are marked as duplicates; each keeps the
    boxes of its own listing, for two data sets may both count from 1.
    """
    images: dict[str, list[Image]] = {}
    boxes: dict[str, list[BoxGroup]] = {}
    for value in values:
        if isinstance(value, Image):
            images.setdefault(value.image_id, []).append(value)
        elif isinstance(value, BoxGroup):
            boxes.setdefault(value.image_id, []).append(value)
    for image_id in sorted({*images, *boxes}):
        loose = sorted(boxes.get(image_id, []), key=lambda box: (box.file, box.row))
        found = sorted(images.get(image_id, []), key=lambda image: (image.file, image.row))
        if len(found) == 1:
            pieces = (group.packed for group in loose)
            yield _in_bucket(found[0]._replace(packed=_join_boxes(found[0].packed, *pieces)))
        elif found:
            yield from map(_in_bucket, _share_boxes(found, loose))
        else:
            yield _orphan(loose)


def start_buckets(listings: Iterable[Listing], shards: int) -> Iterator[tuple[int, _Bucket]]:
    """(bucket, start) for each bucket of each listing, in their order."""
    start = 0
    for listing in listings:
        # A listing of no images still needs a bucket: orphaned boxes may lie in it.
        for row in range(0, max(1, listing.images), BUCKET_ROWS):
            yield _bucket_key(listing.file, row), _Bucket(start + row, shards, listing.problem)
        start += listing.images


def number_images(group: tuple[int, Iterable[object]]) -> Iterator[tuple[int, Member | ShardPlan]]:
    """(shard, member) for each image of a bucket; (shard, plan) for each shard."""
    values = list(group[1])
    if group[0] == SUMMARY_KEY:
        (plan,) = (value for value in values if isinstance(value, ShardPlan))
        yield from ((shard, plan) for shard in range(plan.shards))
        return
    bucket = next(value for value in values if isinstance(value, _Bucket))
    first_row = group[0] % _ROWS_A_FILE * BUCKET_ROWS
    for value in values:
        if isinstance(value, _Listed):
            index = bucket.start + (0 if value.orphan else value.image.row - first_row)
            image = value.image if bucket.problem is None else value.image._replace(problem=bucket.problem)
            yield index % bucket.shards, Member(index, image, value.orphan)


_ROWS_A_FILE = 1 << 32


def _bucket_key(file: int, row: int) -> int:
    return file * _ROWS_A_FILE + row // BUCKET_ROWS


def _in_bucket(image: Image) -> tuple[int, _Listed]:
    return _bucket_key(image.file, image.row), _Listed(image)


def _share_boxes(found: list[Image], loose: list[BoxGroup]) -> Iterator[Image]:
    """Several images of one id with their boxes, and why most of them are lost.

    Boxes of a listing that does not name the image go to the first of all. Where a listing gives the id to several
    files, nobody knows which of them its boxes show, and none is kept.
    """
    first = found[0]
    owners: dict[int, int] = {}
    paths: dict[int, set[str]] = {}
    for place, image in enumerate(found):
        owners.setdefault(image.file, place)
        paths.setdefault(image.file, set()).add(image.path)
    pieces: dict[int, list[bytes]] = {}
    for group in loose:
        pieces.setdefault(owners.get(group.file, 0), []).append(group.packed)
    for place, image in enumerate(found):
        own = pieces.get(place, [])
        detail = f"image id {first.image_id!r} is taken by {first.filename} ({first.source}); give each image its own"
        if own and len(paths[image.file]) > 1:
            detail = (
                f"{image.source} gives image id {image.image_id!r} to several files; whose boxes these are is unknown"
            )
        elif not place:
            detail = ""
        problem = image.problem or (Problem("duplicate_id", detail) if detail else None)
        yield image._replace(packed=_join_boxes(image.packed, *own), problem=problem)


def _orphan(loose: list[BoxGroup]) -> tuple[int, _Listed]:
    first = loose[0]
    detail = f"no image of id {first.image_id!r} is listed"
    image = Image(
        image_id=first.image_id,
        file=first.file,
        row=0,
        source=first.source,
        filename="",
        path="",
        packed=_join_boxes(*(group.packed for group in loose)),
        problem=Problem("unknown_image", detail),
    )
    return _bucket_key(first.file, 0), _Listed(image, orphan=True)


def _join_boxes(*packed: bytes) -> bytes:
    """All the boxes together; most images have theirs in one piece."""
    pieces = [piece for piece in packed if piece]
    if len(pieces) == 1:
        return pieces[0]
    return pack_boxes(box for piece in pieces for box in unpack_boxes(piece))
