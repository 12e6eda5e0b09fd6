"""Noise to draw with: periodic fields made once in a process from fixed seeds, and looked up at any place and scale.

The fields are the same in every image; which part of them, how large and how turned is drawn with the image.
"""

from functools import cache

import numpy as np
import numpy.typing as npt

from pipelines.scenes.meshes import Array

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
    """Normal noise [SIDE, SIDE, 3] as of a camera's sensor: mostly of brightness, a little of colour."""
    rng = np.random.default_rng(1)
    brightness, color = rng.standard_normal((SIDE, SIDE, 1)), rng.standard_normal((SIDE, SIDE, 3))
    return (0.8 * brightness + 0.6 * color).astype(np.float32)


def look_up(field: Array, x: Array, y: Array) -> Array:
    """The field at coordinates of any size and shape, in cells, which repeat after SIDE; the nearest cell."""
    column = x.astype(np.int32) & (SIDE - 1)
    row = y.astype(np.int32) & (SIDE - 1)
    return np.asarray(field.reshape(-1)[(row * SIDE + column).ravel()].reshape(x.shape))


def crop_grain(rng: np.random.Generator, height: int, width: int) -> npt.NDArray[np.float32]:
    """A piece [height, width, 3] of the camera's noise from a random place."""
    field = grain_field()
    row, column = int(rng.integers(SIDE)), int(rng.integers(SIDE))
    return field.take(np.arange(row, row + height), axis=0, mode="wrap").take(
        np.arange(column, column + width), axis=1, mode="wrap"
    )
