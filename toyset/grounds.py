"""Textures of the background: floors in perspective, walls and gardens out of focus.

    pixel -> coordinates on the ground -> texture -> albedo; the wall is drawn upright, in the image plane

Coordinates on the ground are in pixels of the middle row. All colors are linear RGB, channels first.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from toyset.meshes import Array
from toyset.noise import fractal_field, sample_field
from toyset.paints import linear

Rng: TypeAlias = np.random.Generator
# Albedo [3, H, W] from coordinates [H, W].
Texture: TypeAlias = Callable[[Array, Array, Rng], Array]

# Focal length as a multiple of the longer side. Large values flatten the perspective.
FOCAL_LENGTH = 1.7


def ground_coordinates(width: int, height: int, pitch: float, horizon_margin: float = 0.12) -> tuple[Array, Array]:
    """Returns the ground coordinates of each pixel, across and away, [H, W] each.

    The camera is tilted down by `pitch` degrees. Rows near or above the horizon are kept at a finite distance:
    `horizon_margin` is the smallest scale there, relative to the middle row.

    """
    focal = FOCAL_LENGTH * max(width, height)
    sin, cos = np.sin(np.radians(pitch)), np.cos(np.radians(pitch))
    row = np.arange(height, dtype=np.float32) - height / 2
    drop = np.maximum(row * cos + focal * sin, horizon_margin * focal * sin)
    magnification = (focal * sin / drop).astype(np.float32)
    away = (magnification * (focal * cos - row * sin) - focal * cos).astype(np.float32)
    across = np.arange(width, dtype=np.float32) - width / 2
    return across[None, :] * magnification[:, None], np.broadcast_to(away[:, None], (height, width))


def wood(x: Array, y: Array, rng: Rng) -> Array:
    """Returns a floor of boards."""
    along, across = _rotate_randomly(x, y, rng)
    board = across / np.float32(rng.uniform(40, 95))
    number = np.floor(board).astype(np.int32)
    tones = rng.random(64).astype(np.float32)
    tone = tones[number & 63]
    length = along / np.float32(rng.uniform(300, 600)) + tone * 7
    grain = sample_field(fractal_field(1.1), along * 0.12 + number * 131, across * 2.3)
    wave = sample_field(fractal_field(1.5), along * 0.35, across * 1.4 + number * 57)
    light = linear(*_mix((0.78, 0.58, 0.38), (0.5, 0.36, 0.26), rng.random()))
    dark = light * rng.uniform(0.3, 0.5)
    color_map = _blend(dark, light, 0.5 + 0.35 * grain + 0.3 * wave + 0.5 * (tone - 0.5))
    seam = (board - number < 0.035) | (length - np.floor(length) < 0.006)
    return np.asarray(color_map * (1 - 0.65 * seam))


def fabric(x: Array, y: Array, rng: Rng) -> Array:
    """Returns a cloth with checks or stripes, a weave, and soft folds."""
    along, across = _rotate_randomly(x, y, rng)
    first, second, third = _soft_colors(rng, 3)
    period = np.float32(rng.uniform(50, 120))
    u, v = along / period, across / period
    band = ((u - np.floor(u)) < rng.uniform(0.3, 0.55)).astype(np.float32)
    cross = ((v - np.floor(v)) < rng.uniform(0.3, 0.55)).astype(np.float32)
    strength = np.float32(rng.choice([0.0, 1.0]))
    color_map = _blend(first, second, 0.5 * band + 0.5 * strength * cross)
    thin = (np.abs(u - np.floor(u) - 0.8) < 0.03).astype(np.float32)
    color_map += thin * (third[:, None, None] - color_map)
    thread = sample_field(fractal_field(0.4), along * 1.0, across * 0.3) + sample_field(
        fractal_field(0.4), along * 0.3, across
    )
    folds = sample_field(fractal_field(1.9), along * 0.6, across * 0.6)
    return color_map * (1 + 0.13 * thread + 0.22 * folds)


def grass(x: Array, y: Array, rng: Rng) -> Array:
    """Returns a meadow: blades, light, dark and dry patches."""
    blades = sample_field(fractal_field(0.7), x * 1.6 + rng.uniform(0, 1024), y * 0.5)
    tufts = sample_field(fractal_field(1.5), x * 1.2, y * 1.0 + rng.uniform(0, 1024))
    patches = sample_field(fractal_field(1.9), x * 0.5 + rng.uniform(0, 1024), y * 0.5)
    dark = linear(*_mix((0.1, 0.2, 0.05), (0.14, 0.17, 0.06), rng.random()))
    light = linear(*_mix((0.45, 0.62, 0.2), (0.62, 0.62, 0.32), rng.random()))
    dry = linear(0.66, 0.58, 0.35) * rng.uniform(0.6, 1.0)
    color_map = _blend(dark, light, 0.45 + 0.5 * blades + 0.3 * tufts)
    share = np.clip(1.6 * patches + rng.uniform(-0.6, 0.2), 0, 0.8)
    return np.asarray(color_map + share * (dry[:, None, None] * (0.75 + 0.5 * blades) - color_map))


def sand(x: Array, y: Array, rng: Rng) -> Array:
    """Returns sand with ripples and grains."""
    along, across = _rotate_randomly(x, y, rng)
    warp = sample_field(fractal_field(1.9), along * 0.6, across * 0.6 + rng.uniform(0, 1024))
    ripple = np.sin(across * np.float32(rng.uniform(0.1, 0.22)) + 9 * warp)
    grains = sample_field(fractal_field(0.4), x * 1.3, y * 1.3)
    light = linear(*_mix((0.86, 0.76, 0.58), (0.72, 0.63, 0.52), rng.random()))
    return _blend(light * 0.55, light, 0.6 + rng.uniform(0.05, 0.2) * ripple + 0.3 * grains + 0.2 * warp)


def stone(x: Array, y: Array, rng: Rng) -> Array:
    """Returns concrete or asphalt with specks, stains and occasional cracks."""
    start = rng.uniform(0, 1024, 2)
    grain = sample_field(fractal_field(0.4), x * 1.2 + start[0], y * 1.2)
    stains = sample_field(fractal_field(1.9), x * 0.7, y * 0.7 + start[1])
    crack = np.abs(sample_field(fractal_field(1.5), x * 0.5 + start[1], y * 0.5)) < 0.006
    gray = rng.uniform(0.3, 0.78)
    tint = rng.uniform(-0.04, 0.04)
    light = linear(gray + tint, gray, gray - tint)
    specks = (grain > 0.55).astype(np.float32) * rng.uniform(0, 0.8)
    return _blend(light * 0.5, light, 0.55 + 0.4 * grain + 0.4 * stains + specks) * (1 - 0.5 * crack)


def tiles(x: Array, y: Array, rng: Rng) -> Array:
    """Returns veined tiles in one or two colors, with joints."""
    along, across = _rotate_randomly(x, y, rng)
    side = np.float32(rng.uniform(55, 120))
    u, v = along / side, across / side
    column, row = np.floor(u), np.floor(v)
    tones = rng.random((16, 16)).astype(np.float32)
    tone = tones[row.astype(np.int32) & 15, column.astype(np.int32) & 15]
    first, second = _soft_colors(rng, 2)
    checked = ((row + column) % 2) * np.float32(rng.choice([0.0, 1.0]))
    veins = 1 - np.abs(sample_field(fractal_field(1.5), along + 171 * tone, across + 307 * tone)) * 2.2
    color_map = _blend(first, second, checked) * (0.78 + 0.25 * tone + 0.25 * np.maximum(veins, 0) ** 6)
    joint = np.maximum(np.abs(u - column - 0.5), np.abs(v - row - 0.5)) > 0.48
    grout = linear(*([rng.uniform(0.35, 0.85)] * 3))
    return np.asarray(color_map + joint * (grout[:, None, None] - color_map))


def rug(x: Array, y: Array, rng: Rng) -> Array:
    """Returns a woollen rug with a repeating ornament."""
    along, across = _rotate_randomly(x, y, rng)
    period = np.float32(rng.uniform(80, 170))
    u, v = np.abs((along / period) % 1.0 - 0.5), np.abs((across / period) % 1.0 - 0.5)
    shape = u + v if rng.random() < 0.5 else np.maximum(u, v)
    table = np.stack(_soft_colors(rng, 4), axis=1)
    bands = table[:, (shape * np.float32(rng.uniform(5, 8))).astype(np.int32) & 3]
    wool = sample_field(fractal_field(0.4), along * 1.1, across * 1.1)
    wear = sample_field(fractal_field(1.9), along * 0.6, across * 0.6)
    return bands * (0.9 + 0.28 * wool + 0.22 * wear)


def leaves(x: Array, y: Array, rng: Rng) -> Array:
    """Returns fallen leaves: overlapping patches of autumn colors."""
    colors = [(0.62, 0.36, 0.12), (0.42, 0.24, 0.12), (0.75, 0.56, 0.2), (0.3, 0.27, 0.13), (0.5, 0.14, 0.09)]
    table = np.stack([linear(*colors[index]) for index in rng.permutation(5)], axis=1)
    color_map = np.broadcast_to((table.mean(axis=1) * 0.3)[:, None, None], (3, *x.shape)).copy()
    for layer in range(3):
        shape = sample_field(fractal_field(1.5), x * 0.8 + rng.uniform(0, 1024), y * 0.8 + rng.uniform(0, 1024))
        hue = sample_field(fractal_field(1.5), x * 0.5 + rng.uniform(0, 1024), y * 0.5)
        color = table[:, np.clip((hue * 3 + 2.5), 0, 4).astype(np.int32)]
        light = 0.55 + 0.2 * layer + 0.5 * shape
        color_map += (shape > -0.05 + 0.1 * layer) * (color * light - color_map)
    veins = sample_field(fractal_field(0.7), x * 1.3, y * 1.3)
    return np.asarray(color_map * (1 + 0.25 * veins))


INDOOR: tuple[Texture, ...] = (wood, fabric, tiles, rug, stone)
OUTDOOR: tuple[Texture, ...] = (grass, sand, stone, leaves)


def plaster(x: Array, y: Array, rng: Rng) -> Array:
    """Returns a painted wall with a skirting board."""
    color = _soft_colors(rng, 1)[0]
    rough = sample_field(fractal_field(1.5), x * 0.9, y * 0.9)
    return _with_skirting(_blend(color * 0.8, color * 1.05, 0.5 + 0.5 * rough), y, rng)


def wallpaper(x: Array, y: Array, rng: Rng) -> Array:
    """Returns a wall with stripes or dots."""
    first, second = _soft_colors(rng, 2)
    period = np.float32(rng.uniform(20, 60))
    if rng.random() < 0.5:
        mark = (x / period) % 1.0 < rng.uniform(0.3, 0.6)
    else:
        row = np.floor(y / period)
        mark = ((x / period + 0.5 * (row % 2)) % 1.0 - 0.5) ** 2 + (y / period - row - 0.5) ** 2 < 0.05
    return _with_skirting(_blend(first, second, mark.astype(np.float32)), y, rng)


def panels(x: Array, y: Array, rng: Rng) -> Array:
    """Returns upright boards."""
    board = x / np.float32(rng.uniform(28, 60))
    number = np.floor(board).astype(np.int32)
    tone = rng.random(64).astype(np.float32)[number & 63]
    grain = sample_field(fractal_field(1.1), x * 2.0 + 31 * number, y * 0.15)
    color = _soft_colors(rng, 1)[0]
    return np.asarray(
        _blend(color * 0.4, color, 0.6 + 0.25 * grain + 0.4 * (tone - 0.5)) * (1 - 0.6 * (board - number < 0.05))
    )


def garden(x: Array, y: Array, rng: Rng) -> Array:
    """Returns bushes under a bright sky; the caller blurs them."""
    start = rng.uniform(0, 1024, 2)
    hedge = sample_field(fractal_field(1.5), x * 0.6 + start[0], y * 0.6)
    leaf = sample_field(fractal_field(1.1), x + start[1], y)
    green = linear(*_mix((0.3, 0.45, 0.15), (0.45, 0.42, 0.2), rng.random()))
    sky = linear(*_mix((0.62, 0.78, 0.95), (0.93, 0.9, 0.86), rng.random())) * rng.uniform(0.8, 1.2)
    bushes = _blend(green * 0.15, green * 1.2, 0.45 + 0.5 * leaf + 0.5 * hedge)
    # y increases upwards from the ground.
    open_sky = y + 60 * hedge > rng.uniform(20, 110)
    return bushes + open_sky * (sky[:, None, None] - bushes)


INDOOR_WALLS: tuple[Texture, ...] = (plaster, wallpaper, panels, garden)
OUTDOOR_WALLS: tuple[Texture, ...] = (garden, garden, panels, plaster)


def _rotate_randomly(x: Array, y: Array, rng: Rng) -> tuple[Array, Array]:
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    start = rng.uniform(0, 1024, 2).astype(np.float32)
    return x * cos - y * sin + start[0], x * sin + y * cos + start[1]


def _blend(dark: Array, light: Array, share: Array) -> Array:
    share = np.clip(share, 0, 1)
    return np.stack([low + (high - low) * share for low, high in zip(dark, light, strict=True)])


def _mix(first: Sequence[float], second: Sequence[float], share: float) -> tuple[float, float, float]:
    a, b, c = (one + (other - one) * share for one, other in zip(first, second, strict=True))
    return a, b, c


def _soft_colors(rng: Rng, count: int) -> list[Array]:
    """Returns random colors of low saturation, like those of cloth and paint."""
    colors = []
    for _ in range(count):
        gray = rng.uniform(0.25, 0.9)
        tint = rng.uniform(0, 1, 3)
        strength = rng.choice([rng.uniform(0, 0.12), rng.uniform(0.12, 0.3)])
        colors.append(linear(*(np.clip(gray + strength * (tint - tint.mean()), 0.05, 1.0))))
    return colors


def _with_skirting(color_map: Array, y: Array, rng: Rng) -> Array:
    edge = rng.uniform(6, 16)
    board = linear(*([rng.uniform(0.5, 0.95)] * 3))
    color_map = color_map + (y < edge) * (board[:, None, None] - color_map)
    return np.asarray(color_map * (1 - 0.5 * (np.abs(y - edge) < 1)))
