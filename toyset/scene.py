"""One picture: a place, toys put down in it, light and a camera; and what is where.

place and light -> spots -> toys drawn, nearest first, hidden ones left out -> shadows on the ground -> camera -> scene

Everything is drawn from one random generator: the same generator gives the same picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from toyset.clutter import CLUTTER
from toyset.meshes import Array
from toyset.paints import pick_color, pick_usual_color
from toyset.photo import photograph
from toyset.placing import Kind, Place, Spot, build_place, choose_spots
from toyset.rendering import Sprite, cast_shadow, extent, render
from toyset.toys import TOYS, Colors

Rng: TypeAlias = np.random.Generator

SIZES = ((480, 360), (440, 330), (460, 308), (400, 300), (388, 372), (330, 440))
# Toys of which less is seen, because of others or of the picture's edge, are taken away.
LEAST_VISIBLE = 0.6
SHARE_OF_USUAL_COLOR = 0.9


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
class Standing:
    """A rendered toy at its spot, with its shadow."""

    spot: Spot
    picture: Sprite
    shadow: Sprite
    in_heap: bool


def draw_scene(rng: Rng, kind: Kind = "plain") -> Scene:
    """A random scene of a kind."""
    width, height = SIZES[rng.integers(len(SIZES))]
    place = build_place(rng, width, height)
    spots, heap = choose_spots(rng, place, kind)
    standing = [put_down(rng, spot, place, in_heap=False) for spot in spots]
    standing += [put_down(rng, spot, place, in_heap=True) for spot in heap]
    standing.sort(key=lambda toy: -toy.spot.y)
    color, cover, kept = stack_toys(standing, width, height)
    lit = light_place(place, kept, rng)
    return Scene(photograph(color + (1 - cover) * lit, rng), describe_objects(kept, width, height))


def put_down(rng: Rng, spot: Spot, place: Place, in_heap: bool) -> Standing:
    """The toy of a spot, built, painted and drawn."""
    if spot.name in TOYS and rng.random() < SHARE_OF_USUAL_COLOR:
        main = pick_usual_color(rng, TOYS[spot.name].hue)
    else:
        main = pick_color(rng, [place.ground])
    second = pick_color(rng, [main])
    build = TOYS[spot.name].build if spot.name in TOYS else CLUTTER[spot.name]
    toy = build(rng, Colors(main, second))
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


def describe_objects(toys: Sequence[Standing], width: int, height: int) -> tuple[SceneObject, ...]:
    """The objects in the picture, in the order of `toys` and without the clutter; the heap comes last."""
    toys = [toy for toy in toys if toy.spot.name in TOYS]
    objects = [SceneObject(toy.spot.name, _mask(toy, width, height)) for toy in toys if not toy.in_heap]
    heap = [toy for toy in toys if toy.in_heap]
    if heap:
        mask = np.logical_or.reduce([_mask(toy, width, height) for toy in heap])
        objects.append(SceneObject(heap[0].spot.name, mask, is_crowd=True))
    return tuple(objects)


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
