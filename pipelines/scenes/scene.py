"""One picture: a place, toys put down in it, light and a camera; and what is where.

place and light -> spots -> toys drawn, nearest first, hidden ones left out -> shadows on the ground -> camera -> scene

Everything is drawn from one random generator: the same generator gives the same picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from pipelines.scenes import grounds
from pipelines.scenes.meshes import Array, unit
from pipelines.scenes.noise import crop_grain
from pipelines.scenes.paints import pick_color
from pipelines.scenes.rendering import Camera, Light, Sprite, cast_shadow, extent, render
from pipelines.scenes.toys import TOYS, Colors

Rng: TypeAlias = np.random.Generator

SIZES = ((480, 360), (480, 360), (512, 342), (500, 375), (448, 400), (360, 480), (400, 440))
SHARE_EMPTY, SHARE_CROWDED, SHARE_HEAPS = 0.05, 0.1, 0.05
MOST_IN_PLAIN = 9
IN_CROWDED = (19, 26)
# The longer side of a toy in pixels, drawn evenly on a logarithmic scale.
SMALLEST, LARGEST, LARGEST_IN_CROWD = 28, 290, 120
# Toys of which less is seen, because of others or of the picture's edge, are taken away.
LEAST_VISIBLE = 0.45


@dataclass(frozen=True)
class SceneObject:
    """A toy in the picture, or a heap of toys that is not told apart.

    Attributes:
      name: its class.
      mask: bool [H, W], all of the toy within the picture, also what others hide.
      is_crowd: whether it is a heap.
    """

    name: str
    mask: npt.NDArray[np.bool_]
    is_crowd: bool = False

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The smallest box around the mask, in pixels: left, top, width, height."""
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        left, top = int(columns[0]), int(rows[0])
        return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top

    @property
    def area(self) -> int:
        """Pixels of the mask."""
        return int(self.mask.sum())


@dataclass(frozen=True)
class Scene:
    """A finished picture, uint8 [H, W, 3], and the objects in it."""

    image: npt.NDArray[np.uint8]
    objects: tuple[SceneObject, ...]


@dataclass(frozen=True)
class Place:
    """Where the toys stand.

    Attributes:
      albedo: float32 [3, H, W] of what is behind the toys.
      wall_foot: the row at which the ground begins.
      ground: the ground's mean colour [3].
      camera, light: how it is seen and lit.
    """

    albedo: Array
    wall_foot: int
    ground: Array
    camera: Camera
    light: Light


@dataclass(frozen=True)
class Spot:
    """Where a toy is put: its class, the pixel it stands on, its longer side in pixels."""

    name: str
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Standing:
    """A rendered toy at its spot, with its shadow."""

    spot: Spot
    picture: Sprite
    shadow: Sprite
    in_heap: bool


def draw_scene(rng: Rng) -> Scene:
    """A random scene."""
    width, height = SIZES[rng.integers(len(SIZES))]
    place = build_place(rng, width, height)
    spots, heap = choose_spots(rng, place)
    standing = [put_down(rng, spot, place, in_heap=False) for spot in spots]
    standing += [put_down(rng, spot, place, in_heap=True) for spot in heap]
    standing.sort(key=lambda toy: -toy.spot.y)
    color, cover, kept = stack_toys(standing, width, height)
    lit = light_place(place, kept, rng)
    return Scene(photograph(color + (1 - cover) * lit, rng), describe_objects(kept, width, height))


def build_place(rng: Rng, width: int, height: int) -> Place:
    """A floor and, if the camera looks low enough, a wall or a garden behind it."""
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
    # Every seventh pixel tells the mean.
    ground = albedo[:, wall_foot::7, ::7].mean(axis=(1, 2))
    return Place(albedo, wall_foot, ground, Camera(pitch), _pick_light(rng, ground, is_outdoor))


def choose_spots(rng: Rng, place: Place) -> tuple[list[Spot], list[Spot]]:
    """Which toys stand where: those of their own, and those of a heap (usually none)."""
    kind = rng.random()
    if kind < SHARE_EMPTY:
        return [], []
    is_crowded = kind < SHARE_EMPTY + SHARE_CROWDED
    low, high = IN_CROWDED if is_crowded else (1, MOST_IN_PLAIN)
    largest = LARGEST_IN_CROWD if is_crowded else LARGEST
    count = int(rng.integers(low, high + 1))
    sizes = np.sort(np.exp(rng.uniform(np.log(SMALLEST), np.log(largest), count)))[::-1]
    names = list(TOYS)
    # One or two classes are the picture's favourites, as in a real room.
    weights = rng.dirichlet(np.full(len(names), 1.2))
    spots: list[Spot] = []
    for size in sizes:
        name = names[rng.choice(len(names), p=0.5 * weights + 0.5 / len(names))]
        spots.append(_find_room(rng, name, float(size), place, spots))
    heap = _heap_up(rng, place, spots) if rng.random() < SHARE_HEAPS else []
    return spots, heap


def put_down(rng: Rng, spot: Spot, place: Place, in_heap: bool) -> Standing:
    """The toy of a spot, built, painted and drawn."""
    under = place.albedo[
        :, int(np.clip(spot.y, 0, place.albedo.shape[1] - 1)), int(np.clip(spot.x, 0, place.albedo.shape[2] - 1))
    ]
    main = pick_color(rng, [place.ground, under])
    second = pick_color(rng, [main])
    third = pick_color(rng, [main, second])
    _, build = TOYS[spot.name]
    toy = build(rng, Colors(main, second, third))
    factor = spot.size / max(extent(toy.mesh, place.camera))
    mesh = toy.mesh.stretch(factor, factor, factor)
    picture = render(mesh, toy.materials, place.camera, place.light)
    shadow = cast_shadow(mesh, place.camera, place.light, softness=1 + spot.size / 24)
    return Standing(spot, picture, shadow, in_heap)


def stack_toys(toys: Sequence[Standing], width: int, height: int) -> tuple[Array, Array, list[Standing]]:
    """Puts toys, nearest first, into one layer; returns its colour times cover, its cover and the toys that are in it.

    A toy that is hardly to be seen behind the nearer ones is left out; those of a heap always stay.
    """
    color = np.zeros((3, height, width), np.float32)
    cover = np.zeros((height, width), np.float32)
    kept = []
    for toy in toys:
        there, here = _overlap(toy.picture, toy.spot, width, height)
        alpha = toy.picture.alpha[here]
        seen = alpha * (1 - cover[there])
        if not toy.in_heap and seen.sum() < LEAST_VISIBLE * toy.picture.alpha.sum():
            continue
        color[(slice(None), *there)] += toy.picture.color[(slice(None), *here)] * (1 - cover[there])
        cover[there] += seen
        kept.append(toy)
    return color, cover, kept


def light_place(place: Place, toys: Sequence[Standing], rng: Rng) -> Array:
    """The place in its light, with the shadows of the toys on the ground; linear RGB [3, H, W]."""
    _, height, width = place.albedo.shape
    sun = np.ones((height, width), np.float32)
    for toy in toys:
        there, here = _overlap(toy.shadow, toy.spot, width, height)
        sun[there] *= 1 - toy.shadow.alpha[here]
    sun[: place.wall_foot] = 1
    # The light of a window or lamp is stronger at one side.
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    slope = rng.uniform(-0.25, 0.25, 2).astype(np.float32)
    pool = 1 + slope[0] * x[None, :] + slope[1] * y[:, None]
    straight = place.light.direction[2]
    rows = [
        albedo * (sun * straight * place.light.sun[i] + (0.55 + 0.45 * sun) * place.light.sky[i]) * pool
        for i, albedo in enumerate(place.albedo)
    ]
    return np.stack(rows)


def photograph(picture: Array, rng: Rng) -> npt.NDArray[np.uint8]:
    """What a camera makes of linear RGB [3, H, W]: exposure, vignette, a little blur, noise, 8 bits [H, W, 3]."""
    _, height, width = picture.shape
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    vignette = 1 - np.float32(rng.uniform(0, 0.18)) * (x[None, :] ** 2 + y[:, None] ** 2)
    exposed = picture * (vignette * np.float32(rng.uniform(0.85, 1.2) * len(DEVELOPED) / BRIGHTEST))
    index = np.minimum(exposed, len(DEVELOPED) - 1, out=exposed).astype(np.uint16)
    developed = DEVELOPED.take(index)
    blur = float(rng.choice([0.0, rng.uniform(0.3, 1.0)], p=[0.6, 0.4]))
    if blur:
        kernel = ImageFilter.BoxBlur(blur)
        developed = np.stack([np.asarray(Image.fromarray(channel).filter(kernel)) for channel in developed])
    noisy = developed + np.float32(rng.uniform(0.5, 6.0)) * crop_grain(rng, height, width)
    return np.ascontiguousarray(np.clip(noisy, 0, 255, out=noisy).astype(np.uint8).transpose(1, 2, 0))


def describe_objects(toys: Sequence[Standing], width: int, height: int) -> tuple[SceneObject, ...]:
    """The objects of the toys in the picture, in the order of `toys`; the heap comes last."""
    objects = [SceneObject(toy.spot.name, _mask(toy, width, height)) for toy in toys if not toy.in_heap]
    heap = [toy for toy in toys if toy.in_heap]
    if heap:
        mask = np.logical_or.reduce([_mask(toy, width, height) for toy in heap])
        objects.append(SceneObject(heap[0].spot.name, mask, is_crowd=True))
    return tuple(objects)


def _develop() -> npt.NDArray[np.uint8]:
    linear = np.linspace(0, BRIGHTEST, 1 << 14, dtype=np.float32)
    # Straight up to 0.7, then towards 1 without ever reaching it: highlights keep their colour.
    rolled = np.where(linear < 0.7, linear, 1 - 0.3 * np.exp(-(linear - 0.7) / 0.3))
    return np.round(255 * rolled ** (1 / 2.2)).astype(np.uint8)


# Linear light that the camera tells apart, and the display's value of each step up to it.
BRIGHTEST = 2.5
DEVELOPED = _develop()


def _pick_light(rng: Rng, ground: Array, is_outdoor: bool) -> Light:
    azimuth = rng.uniform(-1.9, 1.9)
    elevation = np.radians(rng.uniform(38, 68))
    # From behind the camera or from the side: toys are seen from their lit side.
    towards = np.array(
        [np.sin(azimuth) * np.cos(elevation), -np.cos(azimuth) * np.cos(elevation), np.sin(elevation)], np.float32
    )
    warmth = rng.uniform(-0.1, 0.16)
    strength = rng.uniform(0.7, 1.0) if is_outdoor else rng.uniform(0.45, 0.85)
    sun = strength * np.array([1 + warmth, 1, 1 - warmth], np.float32)
    sky = rng.uniform(0.3, 0.5) * np.array([1 - 0.5 * warmth, 1, 1 + 0.7 * warmth], np.float32)
    return Light(unit(towards), sun.astype(np.float32), sky.astype(np.float32), ground.astype(np.float32))


def _find_room(rng: Rng, name: str, size: float, place: Place, taken: Sequence[Spot]) -> Spot:
    """The best of some random spots: some overlap is wanted, much is not."""
    _, height, width = place.albedo.shape
    wanted = rng.exponential(0.12)
    best, least = None, np.inf
    for _ in range(10):
        reach = 0.4 * size
        x = rng.uniform(min(reach, width / 2), max(width - reach, width / 2))
        top = min(max(place.wall_foot + 0.1 * size, 0.75 * size), height)
        y = rng.uniform(top, max(height - 0.02 * size, top))
        spot = Spot(name, float(x), float(y), size)
        excess = abs(sum(_crowding(spot, other) for other in taken) - wanted)
        if excess < least:
            best, least = spot, excess
    assert best is not None
    return best


def _heap_up(rng: Rng, place: Place, taken: Sequence[Spot]) -> list[Spot]:
    """Ten or so small toys of one class, close together."""
    name = str(rng.choice(["ball", "star", "mug", "fish", "bottle"]))
    size = float(rng.uniform(26, 44))
    middle = _find_room(rng, name, 3 * size, place, taken)
    count = int(rng.integers(9, 15))
    offsets = rng.uniform(-1, 1, (count, 2)) * (1.5 * size, 0.5 * size)
    return [
        Spot(name, middle.x + float(dx), middle.y - size + float(dy), size * float(rng.uniform(0.85, 1.15)))
        for dx, dy in offsets
    ]


def _crowding(spot: Spot, other: Spot) -> float:
    """How much two toys cover each other, of the smaller one; they are taken as squares."""
    across = (spot.size + other.size) / 2 - abs(spot.x - other.x)
    down = min(spot.y, other.y) - max(spot.y - spot.size, other.y - other.size)
    return max(across, 0.0) * max(down, 0.0) / min(spot.size, other.size) ** 2


def _overlap(sprite: Sprite, spot: Spot, width: int, height: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The part of the picture that a sprite covers, and that part of the sprite."""
    left, top = round(spot.x) + sprite.left, round(spot.y) + sprite.top
    rows, columns = sprite.alpha.shape
    x1, x2 = np.clip([left, left + columns], 0, width).tolist()
    y1, y2 = np.clip([top, top + rows], 0, height).tolist()
    return (slice(y1, y2), slice(x1, x2)), (slice(y1 - top, y2 - top), slice(x1 - left, x2 - left))


def _mask(toy: Standing, width: int, height: int) -> npt.NDArray[np.bool_]:
    mask = np.zeros((height, width), bool)
    there, here = _overlap(toy.picture, toy.spot, width, height)
    mask[there] = toy.picture.alpha[here] >= 0.5
    return mask


def _defocus(albedo: Array, wall_foot: int, radius: float) -> Array:
    """Blurs the wall, and the ground more and more towards it; it also hides that textures are sampled by points."""
    end = min(wall_foot + albedo.shape[1] // 2, albedo.shape[1])
    share = np.minimum((end - np.arange(end, dtype=np.float32)) / (end - wall_foot), 1)[:, None]
    kernel = ImageFilter.BoxBlur(radius)
    for channel in albedo[:, :end]:
        blurred = Image.fromarray((np.minimum(channel, 1) * 255).astype(np.uint8)).filter(kernel)
        channel += share * (np.asarray(blurred, np.float32) / 255 - channel)
    return albedo
