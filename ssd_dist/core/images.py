"""From the bytes of an image file to the square the network sees: the same way in prepare and in predict.

    bytes -> decode (sized first) -> upright (EXIF) -> RGB -> [resize to size x size]

Pillow is the only codec. Everything here treats the bytes as hostile.
"""

import io
import warnings

import numpy as np

# The plugins are imported to be registered: Pillow opens TIFF and WebP only then.
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin  # noqa: F401

from ssd_dist.core.errors import DataError

# What a data set is made of; Pillow's other readers stay shut to bytes from outside.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# 201 MB decoded: beyond it a few kilobytes could fill the memory of a worker.
MAX_PIXELS = 1 << 26


class ImageError(DataError):
    """An image that cannot be used; `reason` is one word for counting, the message says the rest."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str]]:
        return type(self), (self.reason, str(self))


def decode_image(data: bytes, upright: bool = True) -> Image.Image:
    """Decodes an image file into RGB, 8 bits a channel, upright unless the pixels are wanted as they are stored.

    Upright is as EXIF's orientation says. CMYK, palette, grayscale and 16-bit images are converted; transparency is
    dropped; of several frames the first is taken.

    Raises:
      ImageError: with reason `unreadable`, `truncated`, `too_many_pixels`, `no_pixels` or `unsupported_mode`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(*image.size)
                image.load()
                if upright:
                    ImageOps.exif_transpose(image, in_place=True)
                return _convert_to_rgb(image)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("too_many_pixels", str(error)) from None
    except UnidentifiedImageError:
        raise ImageError("unreadable", f"{len(data)} bytes that are no image of {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow's parsers raise whatever the bytes provoke
        reason = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise ImageError(reason, f"{type(error).__name__}: {error}") from None


def stored_size(data: bytes) -> tuple[int, int]:
    """(height, width) of an image that `decode_image` takes, as it lies in its file, before EXIF turns it."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return image.size[1], image.size[0]


def resize_image(image: Image.Image, size: int) -> Image.Image:
    """The whole image as a square of `size` pixels: bilinear with support for shrinking, so without aliasing."""
    return image.resize((size, size), Image.Resampling.BILINEAR)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError("too_many_pixels", f"{width} x {height} pixels, the limit is {MAX_PIXELS}")
    if width * height == 0:
        raise ImageError("no_pixels", f"{width} x {height} pixels")


def _convert_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ImageError("unsupported_mode", "floating-point samples; save the image with 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        # 16 bits a sample; Pillow's own conversion would clip them at 255.
        samples = np.clip(np.asarray(image), 0, 65535) // 256
        return Image.fromarray(samples.astype(np.uint8)).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
