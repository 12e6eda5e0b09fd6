"""Converts images to records: decodes, checks, renders the augmented copies, assigns anchors.

Image (metadata), bytes -> upright RGB -> checked objects -> for each augmented copy: crop -> pixels and objects
-> a batch of copies -> targets -> records
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image as PillowImage

from pipelines.annotations import Image, Problem, to_valid_text
from pipelines.beam_metrics import Meter
from pipelines.classes import ClassTable
from pipelines.crops import crop_objects, render_crop, sample_crop
from pipelines.transcode import encode_jpeg
from pipelines.validate import CheckedBoxes, check_boxes, check_rotation, check_size
from ssd_dist.core.anchors import generate_anchors
from ssd_dist.core.config import AnchorConfig, AugmentationConfig, Config, MatchingConfig
from ssd_dist.core.images import ImageError, decode_image, has_drawn_boxes, stored_size
from ssd_dist.core.manifest import TRAIN_SPLIT
from ssd_dist.core.matching import Matcher, Targets
from ssd_dist.core.records import Objects, Record

# Images that are matched together, which is faster because the caches stay warm.
BATCH = 8
# Hexadecimal digits of a SHA-256 that are kept: 64 bits, compared between splits to find leakage.
HASH_DIGITS = 16


@dataclass(frozen=True)
class Preparation:
    """How images become records.

    Attributes:
      size: side of the square image, in pixels.
      jpeg_quality: JPEG quality of the stored image, 1 to 100.
      views: number of augmented copies of each image, including the plain one.
      seed: seed of the random crops.
      augmentation: limits of expansion and crop.
      anchors: the anchor layout.
      matching: how anchors are assigned to objects.
    """

    size: int
    jpeg_quality: int
    views: int
    seed: int
    augmentation: AugmentationConfig
    anchors: AnchorConfig
    matching: MatchingConfig

    @classmethod
    def of(cls, config: Config, split: str) -> "Preparation":
        """Takes the settings that the records of a split depend on from a config."""
        return cls(
            size=config.model.input_size,
            jpeg_quality=config.data.jpeg_quality,
            views=config.data.views if split == TRAIN_SPLIT else 1,
            seed=config.train.seed,
            augmentation=config.data.augmentation,
            anchors=config.anchors,
            matching=config.matching,
        )


@dataclass(frozen=True)
class PreparedImage:
    """The records of one image.

    Attributes:
      records: one per augmented copy.
      digest: hash of the source bytes, in hexadecimal.
      checked: the objects and the rejected boxes.
    """

    records: tuple[Record, ...]
    digest: str
    checked: CheckedBoxes


@dataclass(frozen=True)
class _Copy:
    """An augmented copy: a JPEG and the objects that it shows."""

    encoded: bytes
    objects: Objects


@dataclass(frozen=True)
class _Rendered:
    """An image before matching: its copies, the size of the original, the hash of its source bytes and its boxes."""

    image: Image
    copies: tuple[_Copy, ...]
    height: int
    width: int
    digest: str
    checked: CheckedBoxes


def _decode(image: Image, data: bytes) -> PillowImage.Image:
    """Decodes the pixels that the boxes refer to.

    For an image file these are the upright pixels. For an image in a TFRecord they are the stored pixels, as TensorFlow
    decodes them, unless the record gives the size of the upright image.

    """
    if image.span is None:
        return decode_image(data)
    stored = decode_image(data, upright=False)
    return stored if check_size(image, stored.height, stored.width) is None else decode_image(data)


def count_positives(record: Record) -> list[int]:
    """Returns the number of positive anchors of each object; omits crowds, which never get any."""
    counts = np.bincount(record.targets.objects, minlength=len(record.objects.labels))
    return counts[~record.objects.is_crowd].tolist()


class ImagePreparer:
    """Converts images to records; builds the anchors and the matcher once."""

    def __init__(self, preparation: Preparation, meter: Meter) -> None:
        self._preparation = preparation
        self._meter = meter
        anchors = generate_anchors(preparation.anchors, preparation.size)
        self._max_objects = len(anchors)
        self._matcher = Matcher(preparation.anchors, preparation.size, preparation.matching)

    def prepare(
        self, images: Iterable[tuple[Image, bytes | Problem, str]], classes: ClassTable
    ) -> list[PreparedImage | Problem]:
        """Returns the records of each image of a batch, or the reason why it has none.

        Args:
          images: each image with the bytes of its file, or with the reason why the file could not be read, and with
            the SHA-256 of the bytes, in hexadecimal.
          classes: the class table.
        """
        rendered = [
            data if isinstance(data, Problem) else self._render(image, data, digest, classes)
            for image, data, digest in images
        ]
        objects = [copy.objects for image in rendered if isinstance(image, _Rendered) for copy in image.copies]
        targets = iter(self._match(objects))
        return [
            image
            if isinstance(image, Problem)
            else PreparedImage(
                tuple(self._make_record(image, copy, next(targets)) for copy in image.copies),
                image.digest,
                image.checked,
            )
            for image in rendered
        ]

    def _render(self, image: Image, data: bytes, digest: str, classes: ClassTable) -> _Rendered | Problem:
        if has_drawn_boxes(data):
            return Problem(
                "drawn_boxes", "ssd-predict drew boxes into it; give the folder of the images as --image_dir"
            )
        try:
            with self._meter.time("decode_microseconds"):
                decoded = _decode(image, data)
        except ImageError as error:
            return Problem(error.reason, str(error))
        width, height = decoded.size
        problem = check_size(image, height, width)
        if problem is not None:
            # The stored size is read only if needed, because finding a rotation takes time. Some tools write it, but
            # their boxes refer to the upright image.
            stored = stored_size(data)
            problem = check_size(image, *stored) or check_rotation(image, (height, width), stored)
        if problem is not None:
            return problem
        checked = check_boxes(image, height, width, classes)
        height, width = image.original or (height, width)
        count = len(checked.objects.labels)
        if count > self._max_objects:
            return Problem(
                "too_many_boxes", f"{count} objects, but only {self._max_objects} anchors; use fewer boxes per image"
            )
        copies = tuple(
            self._render_copy(image, decoded, checked.objects, view) for view in range(self._preparation.views)
        )
        return _Rendered(image, copies, height, width, digest[:HASH_DIGITS], checked)

    def _render_copy(self, image: Image, decoded: PillowImage.Image, objects: Objects, number: int) -> _Copy:
        crop = sample_crop(
            self._preparation.seed, image.image_id, number, objects.boxes, self._preparation.augmentation
        )
        with self._meter.time("encode_microseconds"):
            encoded = encode_jpeg(render_crop(decoded, crop, self._preparation.size), self._preparation.jpeg_quality)
        return _Copy(encoded, crop_objects(objects, crop))

    def _match(self, batch: list[Objects]) -> list[Targets]:
        if not batch:
            return []
        return self._matcher.match_all(
            [objects.boxes for objects in batch],
            [objects.labels for objects in batch],
            [objects.is_crowd for objects in batch],
        )

    def _make_record(self, image: _Rendered, copy: _Copy, targets: Targets) -> Record:
        return Record(
            encoded=copy.encoded,
            height=self._preparation.size,
            width=self._preparation.size,
            original_height=image.height,
            original_width=image.width,
            source_id=to_valid_text(image.image.image_id),
            filename=to_valid_text(image.image.filename),
            objects=copy.objects,
            targets=targets,
        )
