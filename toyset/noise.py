"""Periodic noise fields, computed once per process from fixed seeds and sampled at any position and scale.

The fields are the same for all images. Position, scale and rotation of the sampled part are random per image.
"""

from functools import cache

import numpy as np

from toyset.meshes import Array

SIDE = 1024


@cache
def fractal_field(roughness: float) -> Array:
    """Returns a periodic field [SIDE, SIDE] with amplitude ~ frequency**-roughness, clipped to [-1, 1]."""
    rng = np.random.default_rng(round(1000 * roughness))
    spectrum = np.fft.rfft2(rng.standard_normal((SIDE, SIDE)))
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None])
    frequency[0, 0] = np.inf
    field = np.fft.irfft2(spectrum * np.maximum(frequency, 4 / SIDE) ** -roughness, (SIDE, SIDE))
    return np.asarray(np.clip(field / (2.5 * field.std()), -1, 1).astype(np.float32))


@cache
def grain_field() -> Array:
    """Returns Gaussian noise [3, SIDE, SIDE] like that of a camera sensor: mostly brightness, some color."""
    rng = np.random.default_rng(1)
    brightness, color = rng.standard_normal((1, SIDE, SIDE)), rng.standard_normal((3, SIDE, SIDE))
    return (0.8 * brightness + 0.6 * color).astype(np.float32)


def sample_field(field: Array, x: Array, y: Array) -> Array:
    """Samples the nearest cell of a field at coordinates of any shape, in cells; the field repeats after SIDE cells."""
    column = x.astype(np.int32) & (SIDE - 1)
    row = y.astype(np.int32) & (SIDE - 1)
    return np.asarray(field.reshape(-1)[(row * SIDE + column).ravel()].reshape(x.shape))


def crop_grain(rng: np.random.Generator, height: int, width: int) -> Array:
    """Returns a random part [3, height, width] of the sensor noise; height and width must not exceed SIDE."""
    row, column = int(rng.integers(SIDE - height + 1)), int(rng.integers(SIDE - width + 1))
    return grain_field()[:, row : row + height, column : column + width]
