"""Simulates a camera: exposure, vignette, blur, noise and gamma curve."""

from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from toyset.meshes import Array
from toyset.noise import crop_grain

# The largest light value that the camera resolves, and the number of steps up to it.
BRIGHTEST, STEPS = 2.5, 1 << 14


def photograph(scene: Array, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Converts linear RGB [3, H, W] to an 8-bit image [H, W, 3], with exposure, vignette, slight blur and noise."""
    _, height, width = scene.shape
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    vignette = 1 - np.float32(rng.uniform(0, 0.18)) * (x[None, :] ** 2 + y[:, None] ** 2)
    exposed = scene * (vignette * np.float32(rng.uniform(0.85, 1.2) * STEPS / BRIGHTEST))
    index = np.minimum(exposed, STEPS - 1, out=exposed).astype(np.uint16)
    developed = _development().take(index)
    blur = float(rng.choice([0.0, rng.uniform(0.3, 1.0)], p=[0.6, 0.4]))
    if blur:
        kernel = ImageFilter.BoxBlur(blur)
        developed = np.stack([np.asarray(Image.fromarray(channel).filter(kernel)) for channel in developed])
    noisy = developed + np.float32(rng.uniform(0.5, 4.5)) * crop_grain(rng, height, width)
    return np.ascontiguousarray(np.clip(noisy, 0, 255, out=noisy).astype(np.uint8).transpose(1, 2, 0))


@cache
def _development() -> npt.NDArray[np.uint8]:
    """Returns the 8-bit value of each step of light up to `BRIGHTEST`."""
    light = np.linspace(0, BRIGHTEST, STEPS, dtype=np.float32)
    # Linear up to 0.7, then approaching 1 without reaching it, so that highlights keep their color.
    rolled = np.where(light < 0.7, light, 1 - 0.3 * np.exp(-(light - 0.7) / 0.3))
    return np.round(255 * rolled ** (1 / 2.2)).astype(np.uint8)
