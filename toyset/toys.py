"""Builds toys of the six classes.

A builder chooses proportions, pattern and pose at random and returns a `Toy` that stands on z = 0 above the origin. The
caller chooses its colors. Each class has a typical hue, which most but not all of its toys have.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from toyset import paints
from toyset.meshes import Array, Mesh, box, join, plate, revolve, rotation, sphere
from toyset.rendering import Material, Paint

Rng: TypeAlias = np.random.Generator


@dataclass(frozen=True)
class Toy:
    """An object to be rendered: a mesh and the materials of its parts."""

    mesh: Mesh
    materials: tuple[Material, ...]


@dataclass(frozen=True)
class Colors:
    """Two different colors; the first also differs from the ground."""

    main: Array
    second: Array


def stand(mesh: Mesh, *materials: Material) -> Toy:
    """Returns a toy whose mesh is moved onto the ground, above the origin."""
    low, high = mesh.points.min(axis=0), mesh.points.max(axis=0)
    return Toy(mesh.move(-(low[0] + high[0]) / 2, -(low[1] + high[1]) / 2, -low[2]), materials)


def build_ball(rng: Rng, colors: Colors) -> Toy:
    """Builds a beach ball or a ball with a band."""
    patterns: list[Paint] = [
        paints.striped(colors.main, colors.second, int(rng.integers(3, 5)), along="u"),
        paints.striped(colors.main, colors.second, 3, share=0.3, along="u"),
        paints.banded([colors.main, colors.second, colors.main], [0.38, 0.62]),
    ]
    material = Material(patterns[rng.integers(len(patterns))], gloss=float(rng.uniform(0.1, 0.6)), sharpness=5)
    spin = rotation("x", rng.uniform(-60, 60)) @ rotation("z", rng.uniform(0, 360))
    return stand(sphere(0).turn(spin), material)


def build_book(rng: Rng, colors: Colors) -> Toy:
    """Builds a closed hardback, lying or upright with its cover to the front."""
    width, length, thickness = rng.uniform(0.66, 0.8), 1.0, rng.uniform(0.16, 0.26)
    board = 0.028
    paper = paints.linear(0.95, 0.92, 0.84)
    cover = Material(paints.book_cover(colors.main, colors.second * 0.6, paper, int(rng.integers(3))), 0.15, 4)
    cloth = Material(paints.speckled(colors.main, rng), 0.15, 4)
    pages = Material(paints.page_edges(paper, "u"), 0.02, 2)
    spine = Material(paints.banded([colors.main, colors.second, colors.main], [0.7, 0.82]), 0.15, 4)
    inner = thickness - 2 * board
    parts = [
        box((width, length, board), (0, 0, thickness - board / 2), (1, 1, 1, 1, 1, 0)),
        box((width, length, board), (0, 0, board / 2), (1,) * 6),
        box((width - 0.05, length - 0.06, inner), (0, 0, thickness / 2), (2, 2, 2, 2, -1, -1)),
        box((board, length, thickness), (-width / 2, 0, thickness / 2), (1, 1, 3, 1, 1, 1)),
    ]
    book = join(parts)
    if rng.random() < 0.55:
        pose = rotation("z", rng.uniform(-50, 50))
    else:
        # Upright, with the cover towards the camera, leaning back slightly.
        pose = rotation("z", rng.uniform(-40, 40)) @ rotation("x", rng.uniform(68, 86))
    return stand(book.turn(pose), cover, cloth, pages, spine)


def build_bottle(rng: Rng, colors: Colors) -> Toy:
    """Builds a bottle with a neck, a cap and a label."""
    radius, shoulder, neck = rng.uniform(0.15, 0.2), rng.uniform(0.5, 0.64), rng.uniform(0.055, 0.07)
    bend = rng.uniform(0.74, 0.82)
    body = [(0.0, 0.0), (radius * 0.9, 0.0), (radius, 0.03), (radius, shoulder)]
    body += [(radius * 0.9, shoulder + 0.06), (neck * 1.25, bend), (neck, bend + 0.05), (neck, 0.95)]
    cap = [(neck * 1.2, 0.9), (neck * 1.2, 0.9), (neck * 1.2, 1.0), (neck * 1.2, 1.0), (0.0, 1.0)]
    low, high = rng.uniform(0.22, 0.32), rng.uniform(0.48, 0.6)
    paper = paints.linear(0.95, 0.93, 0.88)
    bands = [colors.main, colors.second, paper, colors.second, colors.main]
    label = paints.banded(bands, [low, low + 0.05, high - 0.05, high])
    glass = Material(label, gloss=1.1, sharpness=5)
    top = Material(paints.plain(colors.second), gloss=0.3, sharpness=4)
    return stand(join([revolve(body, 0), revolve(cap, 1, 20)]).turn(rotation("z", rng.uniform(0, 360))), glass, top)


def build_clock(rng: Rng, colors: Colors) -> Toy:
    """Builds an alarm clock with two bells, facing the camera."""
    depth = rng.uniform(0.3, 0.45)
    case = revolve(
        [(0, -depth), (0.86, -depth), (0.95, -depth + 0.1), (1.0, 0.0), (1.0, 0.0), (0.97, 0.1), (0.9, 0.1)], 0
    )
    rim = revolve([(0.9, 0.1), (0.9, 0.1), (0.86, 0.02)], 0)
    dial = revolve([(0.86, 0.02), (0.0, 0.02)], 1, 40)
    # The dial is painted on its bounding square.
    dial = replace(dial, uv=dial.points[:, :2] / np.float32(2 * 0.86) + np.float32(0.5))
    head = join([case, rim, dial]).turn(rotation("x", 90))
    parts = [head]
    for side in (-1, 1):
        bell = sphere(2, 16, share=0.5).stretch(0.42, 0.42, 0.34).move(0, 0, 1.08)
        parts.append(bell.turn(rotation("y", side * 34)).move(0, depth / 2, 0))
        foot = box((0.16, 0.16, 0.5), (0, 0, -1.08), (2,) * 6)
        parts.append(foot.turn(rotation("y", side * 32)).move(0, depth / 2, 0))
    parts.append(box((0.12, 0.12, 0.3), (0, depth / 2, 1.15), (2,) * 6))
    body = Material(paints.plain(colors.main), 0.6, 5)
    face = paints.linear(0.97, 0.96, 0.92) if rng.random() < 0.75 else paints.linear(0.12, 0.12, 0.14)
    ink = paints.linear(0.08, 0.08, 0.1) if face[0] > 0.5 else paints.linear(0.95, 0.93, 0.85)
    paint = Material(paints.clock_face(face, ink, float(rng.random()), float(rng.random())), 0.12, 5)
    metal = Material(paints.plain(colors.second if rng.random() < 0.5 else colors.main), 0.8, 5)
    pose = rotation("z", rng.uniform(-40, 40)) @ rotation("x", rng.uniform(-12, 2))
    return stand(join(parts).turn(pose), body, paint, metal)


def build_fish(rng: Rng, colors: Colors) -> Toy:
    """Builds a toy fish in profile, with a forked tail and fins."""
    height, width = rng.uniform(0.3, 0.42), rng.uniform(0.17, 0.24)
    body = sphere(0, 24).turn(rotation("y", 90)).stretch(0.62, width, height)
    fork = rng.uniform(0.24, 0.36)
    tail = plate([(0, 0), (-0.42, fork * 1.25), (-0.3, 0.0), (-0.42, -fork * 1.25)][::-1], 0.05, 0.03, 1)
    tail = tail.move(-0.52, 0, 0)
    dorsal = plate([(0.25, 0), (0.02, 0.3), (-0.28, 0.24), (-0.3, 0)], 0.05, 0.02, 1).move(0, 0, height * 0.88)
    belly = plate([(0.12, 0), (-0.18, 0), (-0.16, -0.2)][::-1], 0.05, 0.02, 1).move(0, 0, -height * 0.84)
    parts = [body, tail, dorsal, belly]
    for side in (-1, 1):
        parts.append(sphere(2, 12).stretch(0.1, 0.06, 0.1).move(0.36, side * width * 0.84, height * 0.22))
        parts.append(sphere(3, 10).stretch(0.06, 0.04, 0.06).move(0.38, side * (width * 0.84 + 0.04), height * 0.22))
    patterns: list[Paint] = [
        paints.striped(colors.main, colors.second, int(rng.integers(3, 6)), share=0.4),
        paints.dotted(colors.main, colors.second, 10, 7, 0.34),
        paints.banded([colors.main, colors.second], [0.68]),
        paints.speckled(colors.main, rng),
    ]
    skin = Material(patterns[rng.integers(len(patterns))], 0.5, 4)
    fins = Material(paints.striped(colors.second, colors.second * 0.6, 7, 0.3), 0.2, 3)
    white, black = (
        Material(paints.plain(paints.linear(1, 1, 1)), 0.3),
        Material(paints.plain(np.zeros(3, np.float32)), 0.9, 5),
    )
    turn = rng.uniform(-30, 30) + (180 if rng.random() < 0.5 else 0)
    pose = rotation("z", turn) @ rotation("y", rng.uniform(-18, 18))
    return stand(join(parts).turn(pose), skin, fins, white, black)


def build_star(rng: Rng, colors: Colors) -> Toy:
    """Builds a five-pointed star with ridges, tilted backwards."""
    inner, phase = rng.uniform(0.4, 0.5), rng.uniform(-0.12, 0.12)
    outline = []
    for corner in range(10):
        angle = np.pi / 2 + phase + corner * np.pi / 5
        length = 1.0 if corner % 2 == 0 else inner
        outline.append((length * float(np.cos(angle)), length * float(np.sin(angle))))
    star = plate(outline, 0.14, rng.uniform(0.12, 0.26), 0)
    patterns: list[Paint] = [
        paints.plain(colors.main),
        paints.speckled(colors.main, rng, 0.5),
        paints.striped(colors.main, colors.second, 3, 0.4, along="u"),
    ]
    material = Material(patterns[rng.integers(len(patterns))], float(rng.uniform(0.2, 0.8)), 4)
    pose = rotation("z", rng.uniform(-35, 35)) @ rotation("x", -rng.uniform(5, 55))
    return stand(star.turn(pose), material)


Builder: TypeAlias = Callable[[Rng, Colors], Toy]


@dataclass(frozen=True)
class ToyClass:
    """A class of toys: its category id (as in COCO, so the ids have gaps), its builder and its typical hue."""

    category_id: int
    build: Builder
    hue: float


TOYS: dict[str, ToyClass] = {
    "fish": ToyClass(17, build_fish, 0.06),
    "star": ToyClass(34, build_star, 0.15),
    "ball": ToyClass(37, build_ball, 0.97),
    "bottle": ToyClass(44, build_bottle, 0.38),
    "book": ToyClass(84, build_book, 0.6),
    "clock": ToyClass(85, build_clock, 0.8),
}
