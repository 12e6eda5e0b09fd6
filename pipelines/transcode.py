"""From an image file to the small JPEG of a record.

    bytes -> decode, upright, RGB (ssd_dist.core.images) -> square of `input_size` -> JPEG

The square is taken without regard to the aspect ratio, as SSD does; boxes are normalised, so they stay right.
"""

import io
from dataclasses import dataclass

from PIL import Image

from ssd_dist.core.images import resize_image


@dataclass(frozen=True)
class Transcoding:
    """How a record's image is made: side in pixels and JPEG quality."""

    size: int
    quality: int


def encode_image(image: Image.Image, how: Transcoding) -> bytes:
    """The image as a square JPEG, chroma subsampled 4:2:0."""
    return encode_jpeg(resize_image(image, how.size), how.quality)


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """The image as JPEG bytes, without metadata."""
    buffer = io.BytesIO()
    # Pillow would carry the source's comment over.
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0", comment=b"")
    return buffer.getvalue()
