"""The elements that readers emit: the content of the annotations, without any pixels.

An element is a pair `(key, value)`. Values that belong to one image have a hash of the image id as key, so one grouping
joins an image with boxes that were read separately. Values about the whole dataset have the key `SUMMARY_KEY`. Keys are
integers, because these are cheap to encode and every runner groups them in the same way. The values are named tuples,
because a dataset has millions of them and named tuples cost half as much to create and pickle as dataclasses.
"""

import hashlib
import marshal
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

SUMMARY_KEY = -1
# Listings of one split; the splits of a job number their listings from multiples of this.
FILES_PER_SPLIT = 1 << 20
# Number of boxes that a reader collects and groups by image, because the cost of a shuffle is per element.
BOX_BUFFER_SIZE = 4096
# The class of all objects of annotations without classes.
ONLY_CLASS = "object"
# Suffixes of image files, in the order in which they are tried.
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".jfif", ".ppm",
)  # fmt: skip


class Problem(NamedTuple):
    """Why an image or a box is rejected.

    Attributes:
      reason: one word, by which rejections are counted.
      detail: what a user needs to know to fix it.
    """

    reason: str
    detail: str


class Box(NamedTuple):
    """One annotated object.

    Attributes:
      category: key of its class in the class table.
      corners: ymin, xmin, ymax, xmax; in pixels of the displayed image unless `normalized`.
      where: position of the entry in the annotation, for messages.
      normalized: whether `corners` are fractions of the image.
      difficult: Pascal VOC's flag.
      is_crowd: COCO's flag.
      area: area in pixels of the original image according to the annotation (COCO: area of the segment), or None.
      is_reduced: whether the object is a polygon or a rotated box, and `corners` is the upright box around it.
      problem: set if the entry could not be parsed; the other fields are then meaningless.
    """

    category: str
    corners: tuple[float, float, float, float]
    where: str
    normalized: bool = False
    difficult: bool = False
    is_crowd: bool = False
    area: float | None = None
    is_reduced: bool = False
    problem: Problem | None = None


# As bytes, boxes cost a fifth in the groupings and take a fifth of the memory while they wait for their shard. Version
# 2 of marshal writes no references, so equal boxes give equal bytes.
def pack_boxes(boxes: Iterable[Box]) -> bytes:
    """Returns the boxes as bytes that only the same Python version can read."""
    plain = [(*box[:-1], None if box.problem is None else tuple(box.problem)) for box in boxes]
    return marshal.dumps(plain, 2) if plain else b""


def unpack_boxes(packed: bytes) -> tuple[Box, ...]:
    """Returns the boxes that `pack_boxes` packed."""
    plain = marshal.loads(packed) if packed else ()
    return tuple(Box._make((*fields, problem and Problem(*problem))) for *fields, problem in plain)


class Image(NamedTuple):
    """One annotated image.

    Attributes:
      image_id: unique in the dataset; becomes `image/source_id` of the record.
      file: number of the listing that contains the image, from 0; listings are ordered by it.
      row: position in the listing, from 0 without gaps.
      source: the annotation, for messages.
      filename: file name in the dataset.
      path: path of the image file.
      stems: paths without a suffix; if there is no file at `path`, a file with one of these stems is used.
      size: (height, width) according to the annotation, or None.
      original: (height, width) of the image that this one was made from, if known, as in shards written by prepare.
      packed: the boxes, see `pack_boxes`.
      span: (offset, length) of the record that contains the image, if `path` is a TFRecord file.
      problem: set if the image is already known to be unusable, for example because its annotation is broken.
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
        """The annotated objects."""
        return unpack_boxes(self.packed)


class SeparateBox(NamedTuple):
    """A box that the annotation file lists separately from its image (COCO, CSV)."""

    image_id: str
    file: int
    row: int
    source: str
    box: Box


class BoxGroup(NamedTuple):
    """Several separate boxes of one image; `row` is that of the first one."""

    image_id: str
    file: int
    row: int
    source: str
    packed: bytes


class Category(NamedTuple):
    """A class that occurs in the annotations of a split; classes are sorted by `order`, then by name."""

    key: str
    order: int
    name: str
    split: int = 0


class Listing(NamedTuple):
    """Marks the end of a listing.

    Attributes:
      file: number of the listing.
      images: number of images that it contains.
      source: the annotation file, for messages.
      problem: set if the rest of the listing could not be read.
    """

    file: int
    images: int
    source: str
    problem: Problem | None = None


Element: TypeAlias = tuple[int, Image | BoxGroup | Category | Listing]


def to_valid_text(text: str) -> str:
    """Escapes characters that UTF-8 cannot encode, such as unpaired surrogates.

    They come from JSON escapes and from file names in another encoding.
    """
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def image_key(image_id: str) -> int:
    """Returns a 63-bit hash of the image id; two ids may share a key, so code that groups by it must compare ids."""
    digest = hashlib.blake2b(image_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def make_element(value: Image | BoxGroup | Category | Listing) -> Element:
    """Returns the value with the key by which it is grouped."""
    if isinstance(value, Image | BoxGroup):
        return image_key(value.image_id), value
    return SUMMARY_KEY, value


def assign_to_split(element: Element, split: int) -> Element:
    """Assigns an element to split number `split`, so that one job can process several splits.

    Changes its key and its listing number (of a category: its split), so that equal image ids in different splits stay
    separate. Split 0 is unchanged.
    """
    key, value = element
    if not split:
        return element
    if isinstance(value, Category):
        return key, value._replace(split=split)
    value = value._replace(file=value.file + split * FILES_PER_SPLIT)
    return (key if key == SUMMARY_KEY else key ^ (split << _SPLIT_SHIFT)), value


# A key has 63 bits; the number of a split is added to the highest of them.
_SPLIT_SHIFT = 55


def make_elements(values: Iterable[Image | SeparateBox | Category | Listing]) -> Iterator[Element]:
    """Yields the values as elements, with separate boxes grouped by image within a buffer of `BOX_BUFFER_SIZE`."""
    waiting: dict[str, list[SeparateBox]] = {}
    count = 0
    for value in values:
        if not isinstance(value, SeparateBox):
            yield make_element(value)
            continue
        waiting.setdefault(value.image_id, []).append(value)
        count += 1
        if count == BOX_BUFFER_SIZE:
            yield from map(_group_boxes, waiting.values())
            waiting, count = {}, 0
    yield from map(_group_boxes, waiting.values())


def _group_boxes(boxes: list[SeparateBox]) -> Element:
    first = boxes[0]
    packed = pack_boxes(box.box for box in boxes)
    return make_element(BoxGroup(first.image_id, first.file, first.row, first.source, packed))
