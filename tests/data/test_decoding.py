"""Compares decoded images with those of another decoder; tests the padding of targets."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ssd_dist.data.decoding import TARGET_FEATURES, decode_jpeg, pad_targets


def encode_jpeg(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()


def test_pixels_equal_those_of_another_decoder():
    y, x = np.mgrid[0:48, 0:48]
    pixels = np.stack([5 * y, 5 * x, 120 + 2 * y - x], -1).astype(np.uint8)
    data = encode_jpeg(pixels)
    decoded = decode_jpeg(tf.constant(data), 48).numpy()
    assert decoded.dtype == np.uint8
    other = np.asarray(Image.open(io.BytesIO(data)))
    assert np.abs(decoded.astype(int) - other).max() <= 2


def test_a_gray_image_has_three_channels():
    decoded = decode_jpeg(tf.constant(encode_jpeg(np.full((32, 32), 77, np.uint8))), 32).numpy()
    assert decoded.shape == (32, 32, 3)
    assert np.abs(decoded.astype(int) - 77).max() <= 1


def test_an_image_of_another_size_is_rejected():
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        decode_jpeg(tf.constant(encode_jpeg(np.zeros((32, 40, 3), np.uint8))), 32)


def test_the_size_is_checked_before_a_pixel_is_decoded(monkeypatch):
    # The header of a small JPEG states 32,768 x 32,768 pixels, which take 3 GB.
    bomb = bytearray(encode_jpeg(np.zeros((32, 32, 3), np.uint8)))
    start = bomb.index(b"\xff\xc0") + 5
    bomb[start : start + 4] = b"\x80\x00\x80\x00"
    decoded, decode = [], tf.io.decode_jpeg

    def record_and_decode(encoded, **options):
        decoded.append(encoded.numpy())
        return decode(encoded, **options)

    monkeypatch.setattr(tf.io, "decode_jpeg", record_and_decode)
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode_jpeg(tf.constant(bytes(bomb)), 32)
    assert decoded == [b""]


def test_targets_of_several_records_are_padded_to_the_longest():
    records = [
        {"anchor": [5, 9], "label": [1, 2], "box": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], "ignored": []},
        {"anchor": [], "label": [], "box": [], "ignored": [3, 4, 8]},
    ]

    def encode(record):
        feature = {
            "target/positive/anchor": tf.train.Feature(int64_list=tf.train.Int64List(value=record["anchor"])),
            "target/positive/label": tf.train.Feature(int64_list=tf.train.Int64List(value=record["label"])),
            "target/positive/box": tf.train.Feature(float_list=tf.train.FloatList(value=record["box"])),
            "target/ignored/anchor": tf.train.Feature(int64_list=tf.train.Int64List(value=record["ignored"])),
        }
        return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()

    padded = pad_targets(tf.io.parse_example([encode(record) for record in records], TARGET_FEATURES))
    np.testing.assert_array_equal(padded.anchors, [[5, 9], [-1, -1]])
    np.testing.assert_array_equal(padded.labels, [[1, 2], [-1, -1]])
    np.testing.assert_allclose(padded.offsets[0], np.reshape(records[0]["box"], (2, 4)))
    np.testing.assert_array_equal(padded.offsets[1], np.zeros((2, 4)))
    np.testing.assert_array_equal(padded.ignored, [[-1, -1, -1], [3, 4, 8]])
    # A batch without any object keeps its shape.
    empty = pad_targets(tf.io.parse_example([encode(records[1]), encode(records[1])], TARGET_FEATURES))
    assert empty.anchors.shape == (2, 0)
    assert empty.offsets.shape == (2, 0, 4)
