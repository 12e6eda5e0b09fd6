"""One image: read, decode, check, render its views, match them with the anchors.

Image (metadata) -> bytes -> upright RGB -> checked objects -> for each view: pixels, objects, targets -> records
"""

import hashlib
from dataclasses import dataclass

from PIL import Image as PillowImage

from pipelines.annotations import Image, Problem
from pipelines.classes import ClassTable
from pipelines.metrics import Meter
from pipelines.transcode import encode_jpeg
from pipelines.validate import CheckedBoxes, check_boxes, check_size
from pipelines.views import choose_window, render_view, see_objects
from ssd_dist.core.anchors import generate_anchors
from ssd_dist.core.config import AnchorConfig, Config, MatchingConfig
from ssd_dist.core.images import ImageError, decode_image, stored_size
from ssd_dist.core.matching import Matcher
from ssd_dist.core.records import Record

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
      anchors: the default boxes.
      matching: which of them answer for an object.
    """

    size: int
    jpeg_quality: int
    views: int
    seed: int
    anchors: AnchorConfig
    matching: MatchingConfig

    @classmethod
    def of(cls, config: Config) -> "Preparation":
        """The part of an experiment that decides the records."""
        return cls(
            size=config.model.input_size,
            jpeg_quality=config.data.jpeg_quality,
            views=config.data.views,
            seed=config.train.seed,
            anchors=config.anchors,
            matching=config.matching,
        )


@dataclass(frozen=True)
class PreparedImage:
    """The records of one image, one a view, the hash of its source bytes and what happened to its boxes."""

    records: tuple[Record, ...]
    digest: str
    checked: CheckedBoxes


class ImagePreparer:
    """Makes records of images; holds what is worth making once."""

    def __init__(self, preparation: Preparation, meter: Meter) -> None:
        self._how = preparation
        self._meter = meter
        anchors = generate_anchors(preparation.anchors, preparation.size)
        self._matcher = Matcher(anchors, preparation.anchors, preparation.matching)

    def prepare(self, image: Image, data: bytes | Problem, classes: ClassTable) -> PreparedImage | Problem:
        """The records of one image and its file's bytes, or why there are none."""
        self._meter.count("images_read")
        result = data if isinstance(data, Problem) else self._prepare(image, data, classes)
        if isinstance(result, Problem):
            self._meter.count("images_rejected")
            self._meter.count(f"image_{result.reason}")
        else:
            self._meter.count("images_written")
            self._meter.count("boxes_written", len(result.checked.objects.labels))
            self._meter.count("boxes_rejected", len(result.checked.rejected))
        return result

    def _prepare(self, image: Image, data: bytes, classes: ClassTable) -> PreparedImage | Problem:
        try:
            with self._meter.time("decode_microseconds"):
                decoded = decode_image(data)
        except ImageError as error:
            return Problem(error.reason, str(error))
        width, height = decoded.size
        # Looking for a rotation takes time and is needed for the odd image only.
        problem = check_size(image, height, width) and check_size(image, *stored_size(data))
        if problem is not None:
            return problem
        checked = check_boxes(image, height, width, classes)
        records = tuple(self._record(image, decoded, checked, view) for view in range(self._how.views))
        return PreparedImage(records, hashlib.sha256(data).hexdigest()[:HASH_DIGITS], checked)

    def _record(self, image: Image, decoded: PillowImage.Image, checked: CheckedBoxes, view: int) -> Record:
        window = choose_window(self._how.seed, image.image_id, view, checked.objects.boxes)
        with self._meter.time("encode_microseconds"):
            encoded = encode_jpeg(render_view(decoded, window, self._how.size), self._how.jpeg_quality)
        objects = see_objects(checked.objects, window)
        with self._meter.time("match_microseconds"):
            targets = self._matcher.match(objects.boxes, objects.labels, objects.is_crowd)
        return Record(
            encoded=encoded,
            height=self._how.size,
            width=self._how.size,
            original_height=decoded.height,
            original_width=decoded.width,
            source_id=image.image_id,
            filename=image.filename,
            objects=objects,
            targets=targets,
        )
