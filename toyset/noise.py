"""Noise to draw with: periodic fields made once in a process from fixed seeds, and looked up at any place and scale.

The fields are the same in every image; which part of them, how large and how turned is drawn with the image.
"""

from functools import cache

import numpy as np

from toyset.meshes import Array

SIDE = 1024


@cache
def fractal_field(roughness: float) -> Array:
    """A periodic field [SIDE, SIDE] with amplitude falling as frequency**-roughness, clipped to [-1, 1]."""
    rng = np.random.default_rng(round(1000 * roughness))
    spectrum = np.fft.rfft2(rng.standard_normal((SIDE, SIDE)))
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None])
    frequency[0, 0] = np.inf
    field = np.fft.irfft2(spectrum * np.maximum(frequency, 4 / SIDE) ** -roughness, (SIDE, SIDE))
    return np.clip(field / (2.5 * field.std()), -1, 1).astype(np.float32)


@cache
def grain_field() -> Array:
    """Normal noise [3, SIDE, SIDE] as of a camera's sensor: mostly of brightness, a little of colour."""
    rng = np.random.default_rng(1)
    brightness, color = rng.standard_normal((1, SIDE, SIDE)), rng.standard_normal((3, SIDE, SIDE))
    return (0.8 * brightness + 0.6 * color).astype(np.float32)


def look_up(field: Array, x: Array, y: Array) -> Array:
    """The field at coordinates of any size and shape, in cells, which repeat after SIDE; the nearest cell."""
    column = x.astype(np.int32) & (SIDE - 1)
    row = y.astype(np.int32) & (SIDE - 1)
    return np.asarray(field.reshape(-1)[(row * SIDE + column).ravel()].reshape(x.shape))


def crop_grain(rng: np.random.Generator, height: int, width: int) -> Array:
    """A piece [3, height, width] of the camera's noise from a random place; at most SIDE high and wide."""
    row, column = int(rng.integers(SIDE - height + 1)), int(rng.integers(SIDE - width + 1))
    return grain_field()[:, row : row + height, column : column + width]
