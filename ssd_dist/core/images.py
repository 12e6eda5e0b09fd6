"""Decodes image files and resizes them to the model input, identically in prepare and predict.

    bytes -> check the size -> decode -> rotate upright (EXIF) -> RGB -> [resize to size x size]

Pillow is the only codec. All functions treat the bytes as untrusted input.
"""

import io
import warnings

import numpy as np

# Importing the plugins registers them; otherwise Pillow does not open TIFF and WebP.
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin  # noqa: F401

from ssd_dist.core.errors import DataError

# The formats of image datasets; Pillow's other decoders are not exposed to untrusted bytes.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# 201 MB decoded. Without a limit, a file of a few kilobytes could fill the memory of a worker.
MAX_PIXELS = 1 << 26
# The JPEG comment of images into which we drew boxes; a detector trained on them would find the drawn boxes.
DRAWN_BOXES = b"boxes drawn by ssd_dist"


class ImageError(DataError):
    """An image that cannot be used; `reason` is an identifier for statistics, the message has the details."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str]]:
        return type(self), (self.reason, str(self))


def decode_image(data: bytes, upright: bool = True) -> Image.Image:
    """Decodes an image file to RGB with 8 bits per channel.

    Converts CMYK, palette, grayscale and 16-bit images, drops transparency and decodes only the first frame.

    Args:
      data: the bytes of the file.
      upright: whether to rotate the image as its EXIF orientation specifies.

    Raises:
      ImageError: with reason `unreadable`, `unsupported_format`, `git_lfs_pointer`, `truncated`, `too_many_pixels`,
        `no_pixels` or `unsupported_mode`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(*image.size)
                image.load()
                if upright:
                    ImageOps.exif_transpose(image, in_place=True)
                return convert_to_rgb(image)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("too_many_pixels", str(error)) from None
    except UnidentifiedImageError:
        raise _explain_unidentified(data) from None
    except Exception as error:  # Pillow raises many types of errors for invalid bytes
        reason = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise ImageError(reason, f"{type(error).__name__}: {error}") from None


# What other formats have at these offsets.
SIGNATURES = {
    "AVIF": (4, (b"ftypavif", b"ftypavis")),
    "HEIC": (4, (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1")),
    "JPEG XL": (0, (b"\xff\x0a", b"\0\0\0\x0cJXL ")),
    "Photoshop": (0, (b"8BPS",)),
    "SVG": (0, (b"<svg", b"<?xml")),
    "PDF": (0, (b"%PDF",)),
}


def _explain_unidentified(data: bytes) -> ImageError:
    """Returns the error for bytes that no decoder accepts."""
    supported = ", ".join(FORMATS)
    for name, (offset, beginnings) in SIGNATURES.items():
        if data[offset:].startswith(beginnings):
            return ImageError("unsupported_format", f"a {name} file; convert it to one of {supported}")
    if data.startswith(b"version https://git-lfs"):
        return ImageError("git_lfs_pointer", "a Git LFS pointer, not an image; run git lfs pull in the dataset")
    return ImageError("unreadable", f"{len(data)} bytes are not an image in a supported format: {supported}")


def has_drawn_boxes(data: bytes) -> bool:
    """Returns whether `ssd-predict` drew boxes into the image of this file."""
    return DRAWN_BOXES in data[:1024]


def stored_size(data: bytes) -> tuple[int, int]:
    """Returns (height, width) of an image as stored, before the EXIF rotation; `decode_image` must accept the file."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return image.size[1], image.size[0]


def resize_image(image: Image.Image, size: int) -> Image.Image:
    """Resizes the whole image to `size` x `size` pixels, bilinear and anti-aliased."""
    return image.resize((size, size), Image.Resampling.BILINEAR)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError("too_many_pixels", f"{width} x {height} pixels; the limit is {MAX_PIXELS} pixels")
    if width * height == 0:
        raise ImageError("no_pixels", f"{width} x {height} pixels")


def convert_to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image to RGB with 8 bits per channel; drops transparency.

    Raises:
      ImageError: if its samples are floating-point numbers.
    """
    if image.mode == "F":
        raise ImageError("unsupported_mode", "floating-point samples; save the image with 8 or 16 bits per channel")
    if image.mode.startswith("I"):
        # 16 bits per sample; Pillow's conversion would clip them at 255.
        samples = np.clip(np.asarray(image), 0, 65535) // 256
        return Image.fromarray(samples.astype(np.uint8)).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
