"""Draws one scene: a place, toys, light and a camera; returns the image and its objects.

    place and light -> spots -> toys, nearest first, hidden ones omitted -> shadows on the ground -> camera -> scene

All random numbers come from one generator, so equal generators give equal scenes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from toyset.clutter import CLUTTER
from toyset.meshes import Array
from toyset.paints import pick_color, pick_typical_color
from toyset.photo import photograph
from toyset.placing import Kind, Place, Spot, build_place, choose_spots
from toyset.rendering import Sprite, cast_shadow, extent, render
from toyset.toys import TOYS, Colors

Rng: TypeAlias = np.random.Generator

SIZES = ((480, 360), (440, 330), (460, 308), (400, 300), (388, 372), (330, 440))
# Toys with a smaller visible fraction, because of other toys or the image border, are removed.
MIN_VISIBLE = 0.6
TYPICAL_COLOR_PROBABILITY = 0.9


@dataclass(frozen=True)
class SceneObject:
    """A toy in the image, or a pile of toys annotated as one crowd.

    Attributes:
      name: its class.
      mask: bool [H, W], the pixels of the toy within the image, including those that other toys hide.
      is_crowd: whether it is a pile.
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
        """Number of pixels of the mask."""
        return int(self.mask.sum())


@dataclass(frozen=True)
class Scene:
    """A finished image, uint8 [H, W, 3], and its objects."""

    image: npt.NDArray[np.uint8]
    objects: tuple[SceneObject, ...]


@dataclass(frozen=True)
class PlacedToy:
    """A rendered toy at its spot, with its shadow."""

    spot: Spot
    sprite: Sprite
    shadow: Sprite
    in_pile: bool


def draw_scene(rng: Rng, kind: Kind = "plain") -> Scene:
    """Draws a random scene of the given kind."""
    width, height = SIZES[rng.integers(len(SIZES))]
    place = build_place(rng, width, height)
    spots, pile = choose_spots(rng, place, kind)
    toys = [place_toy(rng, spot, place, in_pile=False) for spot in spots]
    toys += [place_toy(rng, spot, place, in_pile=True) for spot in pile]
    toys.sort(key=lambda toy: -toy.spot.y)
    color, cover, kept = stack_toys(toys, width, height)
    lit = light_place(place, kept, rng)
    return Scene(photograph(color + (1 - cover) * lit, rng), describe_objects(kept, width, height))


def place_toy(rng: Rng, spot: Spot, place: Place, in_pile: bool) -> PlacedToy:
    """Builds, paints and renders the toy of a spot."""
    if spot.name in TOYS and rng.random() < TYPICAL_COLOR_PROBABILITY:
        main = pick_typical_color(rng, TOYS[spot.name].hue)
    else:
        main = pick_color(rng, [place.ground])
    second = pick_color(rng, [main])
    build = TOYS[spot.name].build if spot.name in TOYS else CLUTTER[spot.name]
    toy = build(rng, Colors(main, second))
    factor = spot.size / max(extent(toy.mesh, place.camera))
    mesh = toy.mesh.stretch(factor, factor, factor)
    sprite = render(mesh, toy.materials, place.camera, place.light)
    shadow = cast_shadow(mesh, place.camera, place.light, softness=1 + spot.size / 24)
    return PlacedToy(spot, sprite, shadow, in_pile)


def stack_toys(toys: Sequence[PlacedToy], width: int, height: int) -> tuple[Array, Array, list[PlacedToy]]:
    """Combines toys, nearest first, into one layer.

    Omits a toy that is mostly hidden by nearer ones, unless it belongs to a pile.

    Returns:
      The color of the layer times its alpha [3, H, W], its alpha [H, W], and the toys that it contains.
    """
    color = np.zeros((3, height, width), np.float32)
    cover = np.zeros((height, width), np.float32)
    kept = []
    for toy in toys:
        there, here = _overlap(toy.sprite, toy.spot, width, height)
        alpha = toy.sprite.alpha[here]
        seen = alpha * (1 - cover[there])
        if not toy.in_pile and seen.sum() < MIN_VISIBLE * toy.sprite.alpha.sum():
            continue
        color[(slice(None), *there)] += toy.sprite.color[(slice(None), *here)] * (1 - cover[there])
        cover[there] += seen
        kept.append(toy)
    return color, cover, kept


def light_place(place: Place, toys: Sequence[PlacedToy], rng: Rng) -> Array:
    """Returns the lit place with the shadows of the toys on the ground, in linear RGB [3, H, W]."""
    _, height, width = place.albedo.shape
    sun = np.ones((height, width), np.float32)
    for toy in toys:
        there, here = _overlap(toy.shadow, toy.spot, width, height)
        sun[there] *= 1 - toy.shadow.alpha[here]
    sun[: place.wall_foot] = 1
    # Light from one side is stronger there.
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    slope = rng.uniform(-0.25, 0.25, 2).astype(np.float32)
    pool = 1 + slope[0] * x[None, :] + slope[1] * y[:, None]
    straight = place.light.direction[2]
    rows = [
        albedo * (sun * straight * place.light.sun[i] + (0.55 + 0.45 * sun) * place.light.sky[i]) * pool
        for i, albedo in enumerate(place.albedo)
    ]
    return np.stack(rows)


def describe_objects(toys: Sequence[PlacedToy], width: int, height: int) -> tuple[SceneObject, ...]:
    """Returns the objects in the image in the order of `toys`, without the clutter; the pile comes last."""
    toys = [toy for toy in toys if toy.spot.name in TOYS]
    objects = [SceneObject(toy.spot.name, _mask(toy, width, height)) for toy in toys if not toy.in_pile]
    pile = [toy for toy in toys if toy.in_pile]
    if pile:
        mask = np.logical_or.reduce([_mask(toy, width, height) for toy in pile])
        objects.append(SceneObject(pile[0].spot.name, mask, is_crowd=True))
    return tuple(objects)


def _overlap(sprite: Sprite, spot: Spot, width: int, height: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Returns the part of the image that a sprite covers, and the same part of the sprite."""
    left, top = round(spot.x) + sprite.left, round(spot.y) + sprite.top
    rows, columns = sprite.alpha.shape
    x1, x2 = np.clip([left, left + columns], 0, width).tolist()
    y1, y2 = np.clip([top, top + rows], 0, height).tolist()
    return (slice(y1, y2), slice(x1, x2)), (slice(y1 - top, y2 - top), slice(x1 - left, x2 - left))


def _mask(toy: PlacedToy, width: int, height: int) -> npt.NDArray[np.bool_]:
    mask = np.zeros((height, width), bool)
    there, here = _overlap(toy.sprite, toy.spot, width, height)
    mask[there] = toy.sprite.alpha[here] >= 0.5
    return mask
