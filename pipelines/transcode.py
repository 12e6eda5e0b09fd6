"""Encodes pixels as the JPEG of a record; `ssd_dist.core.images` decodes images."""

import io

from PIL import Image


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """Returns the image as JPEG bytes, with 4:2:0 chroma subsampling and without metadata."""
    buffer = io.BytesIO()
    # Without an empty comment Pillow copies the comment of the source image.
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0", comment=b"")
    return buffer.getvalue()
