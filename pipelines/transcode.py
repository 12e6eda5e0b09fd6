"""The way back from pixels to the JPEG of a record; the way in is `ssd_dist.core.images`."""

import io

from PIL import Image


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """The image as JPEG bytes, chroma subsampled 4:2:0, without metadata."""
    buffer = io.BytesIO()
    # Pillow would carry the source's comment over.
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0", comment=b"")
    return buffer.getvalue()
