"""Colors and patterns of surfaces.

A pattern is a function of the texture coordinates u and v and the height (`rendering.Paint`). Colors are linear RGB.
"""

import colorsys
from collections.abc import Sequence

import numpy as np

from toyset.meshes import Array
from toyset.noise import fractal_field, sample_field
from toyset.rendering import Paint


def linear(red: float, green: float, blue: float) -> Array:
    """Converts a display color (gamma 2.2, each component in [0, 1]) to linear RGB [3]."""
    return np.array([red, green, blue], np.float32) ** np.float32(2.2)


def pick_color(rng: np.random.Generator, other_than: Sequence[Array] = ()) -> Array:
    """Returns a random color that differs clearly from the given ones, if six attempts are enough."""
    best, best_gap = linear(1, 1, 1), -1.0
    for _ in range(6):
        saturation = float(rng.choice([rng.uniform(0.55, 1.0), rng.uniform(0.0, 0.35)], p=[0.75, 0.25]))
        color = linear(*colorsys.hsv_to_rgb(float(rng.random()), saturation, float(rng.uniform(0.35, 1.0))))
        gap = min((color_gap(color, other) for other in other_than), default=1.0)
        if gap > best_gap:
            best, best_gap = color, gap
        if gap > 0.35:
            break
    return best


def pick_typical_color(rng: np.random.Generator, hue: float) -> Array:
    """Returns a saturated color near a hue."""
    return linear(*colorsys.hsv_to_rgb((hue + rng.normal(0, 0.02)) % 1, rng.uniform(0.6, 1.0), rng.uniform(0.5, 1.0)))


def color_gap(first: Array, second: Array) -> float:
    """Returns the distance of two colors after gamma encoding."""
    return float(np.linalg.norm(first ** (1 / 2.2) - second ** (1 / 2.2)))


def plain(color: Array) -> Paint:
    """Returns a uniform paint."""
    column = color[:, None]
    return lambda u, v, z: column


def speckled(color: Array, rng: np.random.Generator, strength: float = 0.3) -> Paint:
    """Returns one color with lighter and darker spots, like clay, cloth or wear."""
    return _varied(plain(color), rng, strength, 180.0, 180.0)


def grained(color: Array, rng: np.random.Generator) -> Paint:
    """Returns wood grain along u."""
    return _varied(plain(color), rng, 0.5, 60.0, 350.0)


def banded(colors: Sequence[Array], edges: Sequence[float]) -> Paint:
    """Returns bands of colors along v, separated at the given edges."""
    table, bounds = np.stack(colors, axis=1), np.asarray(edges, np.float32)
    return lambda u, v, z: table[:, np.searchsorted(bounds, v)]


def striped(first: Array, second: Array, count: int, share: float = 0.5, along: str = "v") -> Paint:
    """Returns stripes of two colors across `u` or `v`; `share` is the fraction of the second."""
    table = np.stack([first, second], axis=1)

    def paint(u: Array, v: Array, z: Array) -> Array:
        place = (v if along == "v" else u) * np.float32(count)
        return table[:, (place - np.floor(place) < share).astype(np.intp)]

    return paint


def dotted(ground: Array, dot: Array, across: int, up: int, radius: float = 0.3) -> Paint:
    """Returns a lattice of round dots; every second row is shifted."""
    table = np.stack([ground, dot], axis=1)

    def paint(u: Array, v: Array, z: Array) -> Array:
        row = np.floor(v * np.float32(up))
        x = u * np.float32(across) + 0.5 * (row % 2)
        inside = (x - np.floor(x) - 0.5) ** 2 + (v * np.float32(up) - row - 0.5) ** 2 < radius * radius
        return table[:, inside.astype(np.intp)]

    return paint


def zigzag(first: Array, second: Array, count: int) -> Paint:
    """Returns a zigzag line in a second color near the middle of v."""
    table = np.stack([first, second], axis=1)

    def paint(u: Array, v: Array, z: Array) -> Array:
        tooth = np.abs((u * np.float32(count)) % 1.0 - 0.5)
        return table[:, (np.abs(v - 0.35 - 0.3 * tooth) < 0.12).astype(np.intp)]

    return paint


def clock_face(face: Array, ink: Array, hours: float, minutes: float) -> Paint:
    """Returns a dial in the unit square of u and v: twelve marks and two hands (angles in turns)."""
    table = np.stack([face, ink], axis=1)

    def paint(u: Array, v: Array, z: Array) -> Array:
        x, y = 2 * u - 1, 2 * v - 1
        radius = np.hypot(x, y)
        turn = np.arctan2(y, x) * np.float32(6 / np.pi)
        spoke = np.abs(turn - np.round(turn)) * radius
        marked = (radius > 0.74) & (radius < 0.92) & (spoke < 0.16)
        for angle, length, width in ((hours, 0.52, 0.075), (minutes, 0.78, 0.05)):
            cos, sin = np.float32(np.cos(2 * np.pi * angle)), np.float32(np.sin(2 * np.pi * angle))
            along, aside = x * cos + y * sin, np.abs(x * sin - y * cos)
            # Hands taper towards their tips.
            marked |= (along > -0.12) & (along < length) & (aside < width * (1.2 - 0.6 * along / length))
        marked |= radius < 0.11
        return table[:, marked.astype(np.intp)]

    return paint


def book_cover(cover: Array, ink: Array, paper: Array, style: int) -> Paint:
    """Returns a front cover: a paper label with a title, and a line below it, a frame, or a disc."""
    table = np.stack([cover, ink, paper], axis=1)

    def paint(u: Array, v: Array, z: Array) -> Array:
        label = (np.abs(u - 0.5) < 0.36) & (np.abs(v - 0.77) < 0.13)
        line = np.abs(u - 0.5) < 0.27
        marked = line & (np.abs(np.abs(v - 0.77) - 0.05) < 0.022)
        if style == 0:
            marked |= line & (np.abs(v - 0.12) < 0.03)
        elif style == 1:
            edge = np.minimum(np.minimum(u, 1 - u), np.minimum(v, 1 - v))
            marked |= (edge > 0.05) & (edge < 0.085)
        else:
            marked |= (u - 0.5) ** 2 + 1.8 * (v - 0.36) ** 2 < 0.06
        return table[:, np.where(marked, 1, 2 * label)]

    return paint


def page_edges(paper: Array, along: str) -> Paint:
    """Returns the edges of a stack of pages: fine lines along `u` or `v`."""

    def paint(u: Array, v: Array, z: Array) -> Array:
        place = (v if along == "u" else u) * 9
        return np.asarray(paper[:, None] * (0.78 + 0.22 * np.abs(place % 1.0 * 2 - 1)))

    return paint


def _varied(paint: Paint, rng: np.random.Generator, strength: float, scale_u: float, scale_v: float) -> Paint:
    field = fractal_field(1.1)
    start_u, start_v = (np.float32(value) for value in rng.uniform(0, 1024, 2))

    def varied(u: Array, v: Array, z: Array) -> Array:
        change = sample_field(field, start_u + u * np.float32(scale_u), start_v + v * np.float32(scale_v))
        return paint(u, v, z) * (1 + strength * change)

    return varied
