"""Tests that every image file decodes to upright RGB or raises an ImageError with a reason."""

import contextlib
import io
import zlib

import numpy as np
import pytest
from PIL import Image

from ssd_dist.core.errors import DataError
from ssd_dist.core.images import MAX_PIXELS, ImageError, decode_image, resize_image

ROTATE_90_CLOCKWISE_TO_SHOW = 6


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(height: int = 24, width: int = 32) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([y * 8, x * 7, y + x], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    image = gradient().convert(mode)
    decoded = decode_image(encode(image, "TIFF" if mode in ("CMYK", "LA") else "PNG"))
    assert decoded.mode == "RGB"
    np.testing.assert_allclose(np.asarray(decoded), np.asarray(image.convert("RGB")), atol=1)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
def test_formats_are_detected_from_the_content(kind):
    assert decode_image(encode(gradient(), kind)).size == (32, 24)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_the_high_byte(kind):
    samples = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    decoded = np.asarray(decode_image(encode(Image.fromarray(samples), kind)))
    np.testing.assert_array_equal(decoded, np.repeat((samples >> 8)[..., None], 3, axis=-1))


def test_palette_with_transparency_keeps_its_colors():
    image = gradient().quantize(16)
    decoded = decode_image(encode(image, transparency=bytes([0] * 8 + [255] * 8)))
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG"])
def test_orientation_is_applied_once(orientation, kind):
    # EXIF 2.3, tag 0x0112: where the stored rows and columns are in the displayed image.
    shown = np.asarray(gradient(16, 32))
    stored = {
        1: shown, 2: shown[:, ::-1], 3: shown[::-1, ::-1], 4: shown[::-1],
        5: shown.transpose(1, 0, 2), 6: np.rot90(shown), 7: np.rot90(shown, 2).transpose(1, 0, 2),
        8: np.rot90(shown, -1),
    }[orientation]  # fmt: skip
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = image.getexif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    decoded = np.asarray(decode_image(encode(image, kind, exif=exif, **options)))
    np.testing.assert_allclose(decoded.astype(int), shown.astype(int), atol=6 if kind == "JPEG" else 0)


def make_decompression_bomb() -> bytes:
    # A PNG whose header states a size of 30,000 x 30,000 pixels.
    data = bytearray(encode(gradient()))
    data[16:24] = (30000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "unreadable"),
        (b"not an image", "unreadable"),
        (encode(gradient())[:20], "truncated"),
        (encode(gradient(200, 200), "JPEG")[:-200], "truncated"),
        (encode(gradient(200, 200), "PNG")[:-100], "truncated"),
        (make_decompression_bomb(), "too_many_pixels"),
        (encode(Image.new("1", (MAX_PIXELS // 1024 + 1, 1024))), "too_many_pixels"),
        (encode(Image.new("F", (4, 4)), "TIFF"), "unsupported_mode"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unreadable"),
    ],
)
def test_invalid_images_raise_an_error_with_a_reason(data, reason):
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    assert caught.value.reason == reason
    assert isinstance(caught.value, DataError)


def test_every_prefix_and_every_flipped_byte_decodes_or_raises_an_image_error():
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP"):
        data = encode(gradient(), kind)
        for _ in range(60):
            broken = bytearray(data)
            broken[rng.integers(len(data))] ^= 1 << rng.integers(8)
            for candidate in (bytes(broken), data[: rng.integers(len(data))]):
                with contextlib.suppress(ImageError):
                    assert decode_image(candidate).mode == "RGB"


def test_resizing_averages_pixels_instead_of_skipping_them():
    stripes = np.zeros((300, 300, 3), np.uint8)
    stripes[:, ::2] = 255
    small = np.asarray(resize_image(Image.fromarray(stripes), 50))
    assert small.shape == (50, 50, 3)
    np.testing.assert_allclose(small, 127, atol=8)
