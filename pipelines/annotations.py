"""The small records that travel between workers: what the annotations say, before any image is opened.

Readers emit elements `(key, value)`. What concerns one image carries the key of its id, so that one grouping brings
together an image and boxes that came apart from it; what concerns the whole data set carries `SUMMARY_KEY`.
Keys are integers: cheap to code, and grouped alike by every runner. The records are named tuples, which are made and
pickled at half the cost of dataclasses; a data set has millions of them.
"""

import hashlib
import marshal
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

SUMMARY_KEY = -1
# Boxes held by a reader to travel together: shuffling costs by the element.
GATHERED_BOXES = 4096
# What an image's file may be called, in the order in which they are tried.
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".jfif", ".ppm",
)  # fmt: skip


class Problem(NamedTuple):
    """Why something cannot be used: one word to count by, and what a person needs to mend it."""

    reason: str
    detail: str


class Box(NamedTuple):
    """One annotated object.

    Attributes:
      category: key of its class in the class table.
      corners: ymin, xmin, ymax, xmax; pixels of the displayed image, or fractions of it if `normalized`.
      where: which entry of the annotation this is, for messages.
      normalized: the unit of `corners`.
      difficult: Pascal VOC's flag.
      is_crowd: COCO's flag.
      area: in pixels of the original, as the annotation claims it (COCO's is that of the segment), or None.
      problem: set if the entry could not be parsed; the other fields then mean nothing.
    """

    category: str
    corners: tuple[float, float, float, float]
    where: str
    normalized: bool = False
    difficult: bool = False
    is_crowd: bool = False
    area: float | None = None
    problem: Problem | None = None


# As bytes boxes pass the groupings at a fifth of the cost, and those that wait for their shard take a fifth of the
# memory. Version 2 of marshal has no references, so that equal boxes are equal bytes.
def pack_boxes(boxes: Iterable[Box]) -> bytes:
    """The boxes as bytes, for workers of the same Python."""
    plain = [(*box[:-1], None if box.problem is None else tuple(box.problem)) for box in boxes]
    return marshal.dumps(plain, 2) if plain else b""


def unpack_boxes(packed: bytes) -> tuple[Box, ...]:
    """The boxes that `pack_boxes` packed."""
    plain = marshal.loads(packed) if packed else ()
    return tuple(Box._make((*fields, problem and Problem(*problem))) for *fields, problem in plain)


class Image(NamedTuple):
    """One annotated image.

    Attributes:
      image_id: unique in the data set; `image/source_id` of the record.
      file: number of the listing that names it, from 0; listings are ordered by it.
      row: its place there, counted from 0 without gaps.
      source: the annotation, for messages.
      filename: name as the data set has it.
      path: where the file lies.
      stems: paths without a suffix; if there is no file at `path`, an image with one of these names is taken.
      size: (height, width) that the annotation claims, if any.
      original: (height, width) of what the image was made from, if that is known to be another, as in our own shards.
      packed: its objects, packed.
      span: (offset, length) of the record that holds the image, where the path is a TFRecord file.
      problem: set if the image is lost already, say by a broken annotation.
    """

    image_id: str
    file: int
    row: int
    source: str
    filename: str
    path: str
    stems: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    original: tuple[int, int] | None = None
    packed: bytes = b""
    span: tuple[int, int] | None = None
    problem: Problem | None = None

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Its objects."""
        return unpack_boxes(self.packed)


class LooseBox(NamedTuple):
    """One box that comes apart from its image (COCO, CSV)."""

    image_id: str
    file: int
    row: int
    source: str
    box: Box


class BoxGroup(NamedTuple):
    """Boxes of one image that come apart from it but near each other; `row` is the first one's."""

    image_id: str
    file: int
    row: int
    source: str
    packed: bytes


class Category(NamedTuple):
    """A class met in the annotations; classes are ordered by `order`, then by name."""

    key: str
    order: int
    name: str


class Listing(NamedTuple):
    """The end of a listing: it named `images` images; `problem` is set if it broke off there."""

    file: int
    images: int
    source: str
    problem: Problem | None = None


Element: TypeAlias = tuple[int, Image | BoxGroup | Category | Listing]


def readable(text: str) -> str:
    """The text as UTF-8 can hold it: JSON's escapes, and file names of another encoding, bring what it cannot."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def image_key(image_id: str) -> int:
    """A 63-bit hash by which to group; whoever groups must still compare ids."""
    digest = hashlib.blake2b(image_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def keyed(value: Image | BoxGroup | Category | Listing) -> Element:
    """The value with the key under which it is grouped."""
    if isinstance(value, Image | BoxGroup):
        return image_key(value.image_id), value
    return SUMMARY_KEY, value


def gather_boxes(values: Iterable[Image | LooseBox | Category | Listing]) -> Iterator[Element]:
    """The values with their keys, loose boxes of one image put together as far as a small buffer reaches."""
    waiting: dict[str, list[LooseBox]] = {}
    count = 0
    for value in values:
        if not isinstance(value, LooseBox):
            yield keyed(value)
            continue
        waiting.setdefault(value.image_id, []).append(value)
        count += 1
        if count == GATHERED_BOXES:
            yield from map(_group_boxes, waiting.values())
            waiting, count = {}, 0
    yield from map(_group_boxes, waiting.values())


def _group_boxes(loose: list[LooseBox]) -> Element:
    first = loose[0]
    packed = pack_boxes(box.box for box in loose)
    return keyed(BoxGroup(first.image_id, first.file, first.row, first.source, packed))
