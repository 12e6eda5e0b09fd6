"""Images to records: decode, check, render the views, match them with the anchors.

Image (metadata), bytes -> upright RGB -> checked objects -> for each view: window -> pixels and objects
  -> a batch of views -> targets -> records
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image as PillowImage

from pipelines.annotations import Image, Problem, readable
from pipelines.beam_metrics import Meter
from pipelines.classes import ClassTable
from pipelines.crops import crop_objects, render_crop, sample_crop
from pipelines.transcode import encode_jpeg
from pipelines.validate import CheckedBoxes, check_boxes, check_size
from ssd_dist.core.anchors import generate_anchors
from ssd_dist.core.config import AnchorConfig, AugmentationConfig, Config, MatchingConfig
from ssd_dist.core.images import ImageError, decode_image, stored_size
from ssd_dist.core.manifest import TRAIN_SPLIT
from ssd_dist.core.matching import Matcher, Targets
from ssd_dist.core.records import Objects, Record

# Images matched together: what is called once for several is called with warm caches.
BATCH = 8
# Sixteen hexadecimal digits of a SHA-256: the 64 bits that are compared between splits.
HASH_DIGITS = 16


@dataclass(frozen=True)
class Preparation:
    """How images become records.

    Attributes:
      size: side of the square image, in pixels.
      jpeg_quality: of the stored image.
      views: renderings of each image.
      seed: of the views beyond the first.
      augmentation: how far these may reach beyond the image and into it.
      anchors: the default boxes.
      matching: which of them answer for an object.
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
        """The part of an experiment that decides the records of a split."""
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
    """The records of one image, one a view, the hash of its source bytes and what happened to its boxes."""

    records: tuple[Record, ...]
    digest: str
    checked: CheckedBoxes


@dataclass(frozen=True)
class _View:
    """One rendering: a JPEG and the objects that it shows."""

    encoded: bytes
    objects: Objects


@dataclass(frozen=True)
class _Rendered:
    """An image without its targets: its views, its original's size, the hash of its source bytes, its boxes."""

    image: Image
    views: tuple[_View, ...]
    height: int
    width: int
    digest: str
    checked: CheckedBoxes


def _decode(image: Image, data: bytes) -> PillowImage.Image:
    """The pixels that the boxes lie on: the upright ones, but of a record those it stores, as TensorFlow decodes them.

    A record that claims the size of the upright ones has its boxes there, too.
    """
    if image.span is None:
        return decode_image(data)
    stored = decode_image(data, upright=False)
    return stored if check_size(image, stored.height, stored.width) is None else decode_image(data)


def count_positives(record: Record) -> list[int]:
    """Positives of each object; of crowds none, which have no positives by their nature."""
    counts = np.bincount(record.targets.objects, minlength=len(record.objects.labels))
    return counts[~record.objects.is_crowd].tolist()


class ImagePreparer:
    """Makes records of images; holds what is worth making once."""

    def __init__(self, preparation: Preparation, meter: Meter) -> None:
        self._how = preparation
        self._meter = meter
        anchors = generate_anchors(preparation.anchors, preparation.size)
        self._most_objects = len(anchors)
        self._matcher = Matcher(preparation.anchors, preparation.size, preparation.matching)

    def prepare(
        self, images: Iterable[tuple[Image, bytes | Problem]], classes: ClassTable
    ) -> list[PreparedImage | Problem]:
        """The records of a batch of images and their files' bytes, or why one has none."""
        rendered = [data if isinstance(data, Problem) else self._render(image, data, classes) for image, data in images]
        shown = [view.objects for image in rendered if isinstance(image, _Rendered) for view in image.views]
        matched = iter(self._match(shown))
        return [
            image
            if isinstance(image, Problem)
            else PreparedImage(
                tuple(self._record(image, view, next(matched)) for view in image.views), image.digest, image.checked
            )
            for image in rendered
        ]

    def _render(self, image: Image, data: bytes, classes: ClassTable) -> _Rendered | Problem:
        try:
            with self._meter.time("decode_microseconds"):
                decoded = _decode(image, data)
        except ImageError as error:
            return Problem(error.reason, str(error))
        width, height = decoded.size
        # Looking for a rotation takes time and is needed for the odd image only.
        problem = check_size(image, height, width) and check_size(image, *stored_size(data))
        if problem is not None:
            return problem
        checked = check_boxes(image, height, width, classes)
        height, width = image.original or (height, width)
        count = len(checked.objects.labels)
        if count > self._most_objects:
            return Problem(
                "too_many_boxes", f"{count} objects; there are {self._most_objects} anchors to learn them with"
            )
        views = tuple(self._view(image, decoded, checked.objects, view) for view in range(self._how.views))
        digest = hashlib.sha256(data).hexdigest()[:HASH_DIGITS]
        return _Rendered(image, views, height, width, digest, checked)

    def _view(self, image: Image, decoded: PillowImage.Image, objects: Objects, number: int) -> _View:
        window = sample_crop(self._how.seed, image.image_id, number, objects.boxes, self._how.augmentation)
        with self._meter.time("encode_microseconds"):
            encoded = encode_jpeg(render_crop(decoded, window, self._how.size), self._how.jpeg_quality)
        return _View(encoded, crop_objects(objects, window))

    def _match(self, shown: list[Objects]) -> list[Targets]:
        if not shown:
            return []
        return self._matcher.match_all(
            [objects.boxes for objects in shown],
            [objects.labels for objects in shown],
            [objects.is_crowd for objects in shown],
        )

    def _record(self, image: _Rendered, view: _View, targets: Targets) -> Record:
        return Record(
            encoded=view.encoded,
            height=self._how.size,
            width=self._how.size,
            original_height=image.height,
            original_width=image.width,
            source_id=readable(image.image.image_id),
            filename=readable(image.image.filename),
            objects=view.objects,
            targets=targets,
        )
