"""Builds clutter: unlabeled objects that a detector must not detect."""

import numpy as np

from toyset import paints
from toyset.meshes import box, join, revolve, rotation
from toyset.rendering import Material, Paint
from toyset.toys import Builder, Colors, Rng, Toy, stand


def build_cone(rng: Rng, colors: Colors) -> Toy:
    """Builds a cone with bands on a square base."""
    radius, tip = rng.uniform(0.24, 0.34), rng.uniform(0.02, 0.06)
    line = [(radius + (tip - radius) * z, 0.05 + 0.95 * z) for z in (0.0, 0.25, 0.5, 0.75, 1.0)]
    cone = revolve([*line, line[-1], (0.0, 1.0)], 0)
    foot = box((2.5 * radius, 2.5 * radius, 0.06), (0, 0, 0.03), (1,) * 6)
    bands = paints.banded([colors.main, colors.second, colors.main, colors.second, colors.main], [0.3, 0.45, 0.6, 0.72])
    turn = rotation("z", rng.uniform(0, 90))
    return stand(join([cone, foot]).turn(turn), Material(bands, 0.3, 4), Material(paints.plain(colors.main), 0.2))


def build_block(rng: Rng, colors: Colors) -> Toy:
    """Builds a wooden cube with dots, stripes or wood grain."""
    patterns: list[Paint] = [
        paints.dotted(colors.main, colors.second, 3, 3, 0.25),
        paints.striped(colors.main, colors.second, 5),
        paints.grained(colors.main, rng),
    ]
    sides = Material(patterns[rng.integers(len(patterns))], 0.25, 4)
    cube = box((1, 1, rng.uniform(0.85, 1.1)), (0, 0, 0), (0,) * 6)
    return stand(cube.turn(rotation("z", rng.uniform(12, 78))), sides)


def build_ring(rng: Rng, colors: Colors) -> Toy:
    """Builds a ring, lying or upright."""
    thickness = rng.uniform(0.16, 0.26)
    angles = np.linspace(-np.pi, np.pi, 15)
    ring = revolve([(float(1 + thickness * np.cos(a)), float(thickness * np.sin(a))) for a in angles], 0, 36)
    paint = paints.striped(colors.main, colors.second, int(rng.integers(4, 9)), 0.5, along="u")
    material = Material(paint if rng.random() < 0.7 else paints.plain(colors.main), 0.5, 5)
    if rng.random() < 0.4:
        ring = ring.turn(rotation("z", rng.uniform(-40, 40)) @ rotation("x", rng.uniform(65, 85)))
    return stand(ring, material)


def build_pencil(rng: Rng, colors: Colors) -> Toy:
    """Builds a pencil on the ground."""
    thick = rng.uniform(0.035, 0.055)
    line = [(0.0, 0.0), (thick, 0.0), (thick, 0.0), (thick, 0.1), (thick, 0.1), (thick, 0.45), (thick, 0.8)]
    pencil = revolve([*line, (thick, 0.8), (0.25 * thick, 0.96), (0.25 * thick, 0.96), (0.0, 1.0)], 0, 8)
    wood, lead = paints.linear(0.85, 0.68, 0.46), colors.main
    paint = paints.banded([colors.second, colors.main, wood, lead], [0.13, 0.8, 0.95])
    lying = pencil.turn(rotation("z", rng.uniform(0, 360)) @ rotation("y", 90))
    return stand(lying, Material(paint, 0.4, 5))


CLUTTER: dict[str, Builder] = {
    "cone": build_cone,
    "block": build_block,
    "ring": build_ring,
    "pencil": build_pencil,
}
