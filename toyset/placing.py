"""Chooses the place of a scene and the positions of the toys, before anything is drawn.

floor, wall, light -> `Place`; number, sizes and classes of toys -> `Spot`s with some overlap
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image, ImageFilter

from toyset import grounds
from toyset.clutter import CLUTTER
from toyset.meshes import Array, unit
from toyset.rendering import Camera, Light
from toyset.toys import TOYS

Rng: TypeAlias = np.random.Generator

# Number of toys in a scene: plain, a few; empty, none; crowded, many; pile, a few and a pile of small ones.
Kind: TypeAlias = Literal["plain", "empty", "crowded", "pile"]

SHARE_CLUTTERED = 0.2
IN_PLAIN, IN_CROWDED = (1, 6), (19, 24)
# Longer side of a toy in pixels: minimum, maximum, and the two parameters of a beta distribution between their
# logarithms. About a hundred pixels is the most frequent size; every octave occurs.
SIZES_IN_PLAIN = (28, 300, 2.2, 1.2)
SIZES_IN_CROWDED = (55, 140, 1.0, 1.0)


@dataclass(frozen=True)
class Place:
    """The background of a scene.

    Attributes:
      albedo: float32 [3, H, W], the floor and the wall.
      wall_foot: row at which the ground begins.
      ground: mean color [3] of the ground.
      camera, light: camera and light of the scene.
    """

    albedo: Array
    wall_foot: int
    ground: Array
    camera: Camera
    light: Light


@dataclass(frozen=True)
class Spot:
    """The position of a toy or of clutter: its name, the pixel that it stands on, its longer side in pixels."""

    name: str
    x: float
    y: float
    size: float


def build_place(rng: Rng, width: int, height: int) -> Place:
    """Builds a floor and, for a small camera pitch, a wall or a garden behind it."""
    is_outdoor = rng.random() < 0.4
    pitch = float(rng.uniform(16, 48))
    textures, walls = (grounds.OUTDOOR, grounds.OUTDOOR_WALLS) if is_outdoor else (grounds.INDOOR, grounds.INDOOR_WALLS)
    x, y = grounds.ground_coordinates(width, height, pitch)
    albedo = textures[rng.integers(len(textures))](x, y, rng)
    wall_foot = 0
    if pitch < 32:
        wall_foot = int(height * rng.uniform(0.12, 0.4) * (1.3 - pitch / 40))
        across, up = np.meshgrid(np.arange(width, dtype=np.float32), wall_foot - np.arange(wall_foot, dtype=np.float32))
        wall = walls[rng.integers(len(walls))](across, up, rng)
        albedo = np.concatenate([wall, albedo[:, wall_foot:]], axis=1)
    albedo = _defocus(albedo, wall_foot, float(rng.uniform(1.0, 4.0)))
    # Every seventh pixel is enough for the mean.
    ground = albedo[:, wall_foot::7, ::7].mean(axis=(1, 2))
    return Place(albedo, wall_foot, ground, Camera(pitch), _pick_light(rng, ground, is_outdoor))


def choose_spots(rng: Rng, place: Place, kind: Kind) -> tuple[list[Spot], list[Spot]]:
    """Returns the spots of separate toys and clutter, and the spots of a pile (usually none)."""
    spots: list[Spot] = []
    if rng.random() < SHARE_CLUTTERED:
        for name in rng.choice(list(CLUTTER), rng.integers(1, 4)):
            spots.append(_choose_spot(rng, str(name), float(rng.uniform(35, 120)), place, spots))
    if kind == "empty":
        return spots, []
    count = int(rng.integers(*(IN_CROWDED if kind == "crowded" else IN_PLAIN), endpoint=True))
    least, most, alpha, beta = SIZES_IN_CROWDED if kind == "crowded" else SIZES_IN_PLAIN
    sizes = np.sort(least * (most / least) ** rng.beta(alpha, beta, count))[::-1]
    names = list(TOYS)
    # One or two classes are more frequent in each scene, as in real rooms.
    weights = rng.dirichlet(np.full(len(names), 1.2))
    for size in sizes:
        name = names[rng.choice(len(names), p=0.5 * weights + 0.5 / len(names))]
        spots.append(_choose_spot(rng, name, float(size), place, spots))
    return spots, _make_pile(rng, place, spots) if kind == "pile" else []


def _pick_light(rng: Rng, ground: Array, is_outdoor: bool) -> Light:
    azimuth = rng.uniform(-1.9, 1.9)
    elevation = np.radians(rng.uniform(38, 68))
    # The sun is behind the camera or to the side, so the lit side of the toys is visible.
    towards = np.array(
        [np.sin(azimuth) * np.cos(elevation), -np.cos(azimuth) * np.cos(elevation), np.sin(elevation)], np.float32
    )
    warmth = rng.uniform(-0.1, 0.16)
    strength = rng.uniform(0.7, 1.0) if is_outdoor else rng.uniform(0.45, 0.85)
    sun = strength * np.array([1 + warmth, 1, 1 - warmth], np.float32)
    sky = rng.uniform(0.3, 0.5) * np.array([1 - 0.5 * warmth, 1, 1 + 0.7 * warmth], np.float32)
    return Light(unit(towards), sun.astype(np.float32), sky.astype(np.float32), ground.astype(np.float32))


def _choose_spot(rng: Rng, name: str, size: float, place: Place, taken: Sequence[Spot]) -> Spot:
    """Returns the random spot, out of ten, whose overlap with other toys is closest to a random target."""
    _, height, width = place.albedo.shape
    target = rng.exponential(0.08)
    best, least = None, np.inf
    for _ in range(10):
        reach = 0.4 * size
        x = rng.uniform(min(reach, width / 2), max(width - reach, width / 2))
        top = min(max(place.wall_foot + 0.1 * size, 0.75 * size), height)
        y = rng.uniform(top, max(height - 0.02 * size, top))
        spot = Spot(name, float(x), float(y), size)
        excess = abs(sum(_crowding(spot, other) for other in taken) - target)
        if excess < least:
            best, least = spot, excess
    assert best is not None
    return best


def _make_pile(rng: Rng, place: Place, taken: Sequence[Spot]) -> list[Spot]:
    """Returns spots of 9 to 14 small toys of one class, close together."""
    name = str(rng.choice(["ball", "star", "fish", "bottle"]))
    size = float(rng.uniform(26, 44))
    middle = _choose_spot(rng, name, 3 * size, place, taken)
    count = int(rng.integers(9, 15))
    offsets = rng.uniform((-1.5, -1.0), (1.5, 0.0), (count, 2)) * size
    foot = place.wall_foot + 0.1 * size
    return [
        Spot(name, middle.x + float(dx), max(middle.y + float(dy), foot), size * float(rng.uniform(0.85, 1.15)))
        for dx, dy in offsets
    ]


def _crowding(spot: Spot, other: Spot) -> float:
    """Returns the overlap of two toys as a fraction of the smaller one, treating both as squares."""
    across = (spot.size + other.size) / 2 - abs(spot.x - other.x)
    down = min(spot.y, other.y) - max(spot.y - spot.size, other.y - other.size)
    return max(across, 0.0) * max(down, 0.0) / min(spot.size, other.size) ** 2


def _defocus(albedo: Array, wall_foot: int, radius: float) -> Array:
    """Blurs the wall, and the ground increasingly towards it, which also hides aliasing of the textures."""
    end = min(wall_foot + albedo.shape[1] // 2, albedo.shape[1])
    share = np.minimum((end - np.arange(end, dtype=np.float32)) / (end - wall_foot), 1)[:, None]
    kernel = ImageFilter.BoxBlur(radius)
    for channel in albedo[:, :end]:
        blurred = Image.fromarray((np.minimum(channel, 1) * 255).astype(np.uint8)).filter(kernel)
        channel += share * (np.asarray(blurred, np.float32) / 255 - channel)
    return albedo
