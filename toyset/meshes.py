"""Meshes of quads, and the primitives that toys are built from.

    profile, outline or path -> points, normals, texture coordinates -> `Mesh` -> rotated, scaled, joined

World axes: x to the right, y away from the camera, z up. The corners of a quad are counter-clockwise seen from outside.
A quad that repeats its last corner is a triangle.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Mesh:
    """A surface with smooth normals and texture coordinates.

    Attributes:
      points: float32 [V, 3].
      normals: float32 [V, 3], of unit length.
      uv: float32 [V, 2], in [0, 1].
      quads: int [Q, 4], indices of points.
      materials: int [Q], indices into the toy's materials.
    """

    points: Array
    normals: Array
    uv: Array
    quads: npt.NDArray[np.int64]
    materials: npt.NDArray[np.int64]

    def turn(self, rotation: Array) -> "Mesh":
        """Returns the mesh rotated by a matrix [3, 3]."""
        turned = rotation.T.astype(np.float32)
        return replace(self, points=self.points @ turned, normals=self.normals @ turned)

    def stretch(self, x: float, y: float, z: float) -> "Mesh":
        """Returns the mesh scaled along the axes; normals are scaled by the inverse."""
        factors = np.array([x, y, z], np.float32)
        return replace(self, points=self.points * factors, normals=unit(self.normals / factors))

    def move(self, x: float, y: float, z: float) -> "Mesh":
        """Returns the mesh translated by (x, y, z)."""
        return replace(self, points=self.points + np.array([x, y, z], np.float32))


def join(meshes: Sequence[Mesh]) -> Mesh:
    """Joins several meshes into one."""
    starts = np.cumsum([0, *(len(mesh.points) for mesh in meshes[:-1])])
    return Mesh(
        np.concatenate([mesh.points for mesh in meshes]),
        np.concatenate([mesh.normals for mesh in meshes]),
        np.concatenate([mesh.uv for mesh in meshes]),
        np.concatenate([mesh.quads + start for mesh, start in zip(meshes, starts, strict=True)]),
        np.concatenate([mesh.materials for mesh in meshes]),
    )


def revolve(profile: Sequence[tuple[float, float]], material: int, sides: int = 28) -> Mesh:
    """Returns the surface of revolution of a profile of (radius, height) about the z axis.

    The texture coordinate u is the angle, v the position along the profile. The surface faces to the right of the
    direction of the profile: outwards where the profile rises. A point given twice makes a crease.
    """
    line = np.asarray(profile, np.float32)
    steps = np.diff(line, axis=0)
    lengths = np.hypot(steps[:, 0], steps[:, 1])
    facing = np.stack([steps[:, 1], -steps[:, 0]], axis=1) / np.maximum(lengths, 1e-6)[:, None]
    normals = np.zeros_like(line)
    normals[:-1] += facing * (lengths > 1e-6)[:, None]
    normals[1:] += facing * (lengths > 1e-6)[:, None]
    normals = unit(normals)
    way = np.concatenate([[0.0], np.cumsum(lengths)]) / max(float(lengths.sum()), 1e-6)
    turns = np.linspace(0.0, 1.0, sides + 1)
    cos, sin = np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)

    def sweep(radial: Array, axial: Array) -> Array:
        around = np.stack([np.outer(radial, cos), np.outer(radial, sin)], axis=-1)
        up = np.broadcast_to(axial[:, None, None], (*around.shape[:2], 1))
        return np.concatenate([around, up], axis=-1).reshape(-1, 3).astype(np.float32)

    uv = np.stack(np.meshgrid(turns, way), axis=-1).reshape(-1, 2)
    quads = grid_quads(len(line), sides + 1)[np.repeat(lengths > 1e-6, sides)]
    return Mesh(
        sweep(line[:, 0], line[:, 1]),
        sweep(normals[:, 0], normals[:, 1]),
        uv.astype(np.float32),
        quads,
        np.full(len(quads), material),
    )


def sphere(material: int, sides: int = 24, share: float = 1.0) -> Mesh:
    """Returns a unit sphere about the origin; with `share` below 1 only its top, a dome."""
    return _unit_sphere(material, sides, share)


@cache
def _unit_sphere(material: int, sides: int, share: float) -> Mesh:
    angles = np.linspace(np.pi / 2 - share * np.pi, np.pi / 2, max(5, round(sides * share / 2) + 1))
    return revolve([(float(np.cos(a)), float(np.sin(a))) for a in angles], material, sides)


def box(size: tuple[float, float, float], center: tuple[float, float, float], materials: Sequence[int]) -> Mesh:
    """Returns a box; materials of its faces in the order -y (front), +y, -x, +x, -z, +z; -1 omits a face.

    Long faces are divided, so that sorting by depth orders them correctly.
    """
    cut = tuple(int(np.clip(np.ceil(3 * side / max(size)), 1, 3)) for side in size)
    cube = _unit_cube(cut, tuple(material >= 0 for material in materials))
    placed = replace(
        cube, points=cube.points * np.asarray(size, np.float32), materials=np.take(materials, cube.materials)
    )
    return placed.move(*center)


@cache
def _unit_cube(cut: tuple[int, ...], is_there: tuple[bool, ...]) -> Mesh:
    """Returns a cube of side 1 about the origin; the material of each face is its number."""
    faces = []
    # For each face: its axis and sign, then the axes of u and v, so that u x v points outwards.
    for number, (axis, sign, u, v) in enumerate(
        [(1, -1, 0, 2), (1, 1, 2, 0), (0, -1, 2, 1), (0, 1, 1, 2), (2, -1, 1, 0), (2, 1, 0, 1)]
    ):
        if not is_there[number]:
            continue
        grid_v, grid_u = np.meshgrid(np.linspace(0, 1, cut[v] + 1), np.linspace(0, 1, cut[u] + 1), indexing="ij")
        points = np.zeros((grid_u.size, 3), np.float32)
        points[:, axis] = sign / 2
        points[:, u] = grid_u.ravel() - 0.5
        points[:, v] = grid_v.ravel() - 0.5
        normals = np.zeros_like(points)
        normals[:, axis] = sign
        # v follows the later axis, so that textures are upright.
        uv = np.stack([grid_u.ravel(), grid_v.ravel()] if u < v else [grid_v.ravel(), grid_u.ravel()], axis=1)
        quads = grid_quads(cut[v] + 1, cut[u] + 1)
        faces.append(Mesh(points, normals, uv.astype(np.float32), quads, np.full(len(quads), number)))
    return join(faces)


def facets(triangles: npt.NDArray[np.floating], material: int) -> Mesh:
    """Returns flat triangles [T, 3, 3] with sharp edges; u, v are barycentric weights of corners 2 and 3."""
    points = np.asarray(triangles, np.float32)
    normals = unit(np.cross(points[:, 1] - points[:, 0], points[:, 2] - points[:, 0]))
    count = len(points)
    first = 3 * np.arange(count)[:, None]
    return Mesh(
        points.reshape(-1, 3),
        np.repeat(normals, 3, axis=0),
        np.tile(np.array([[0, 0], [1, 0], [0, 1]], np.float32), (count, 1)),
        first + np.array([0, 1, 2, 2]),
        np.full(count, material),
    )


def plate(outline: Sequence[tuple[float, float]], thickness: float, bulge: float, material: int) -> Mesh:
    """Returns a solid between two copies of an outline of (x, z), counter-clockwise seen from the front (from -y).

    Front and back rise by `bulge` towards the origin. The outline must be star-shaped about the origin.
    """
    rim = np.array([(x, 0.0, z) for x, z in outline], np.float32)
    following = np.roll(rim, -1, axis=0)
    out = np.array([0.0, -thickness / 2, 0.0], np.float32)
    peak = np.broadcast_to(out * (1 + 2 * bulge / max(thickness, 1e-6)), rim.shape)
    front = np.stack([peak, rim + out, following + out], axis=1)
    back = np.stack([-peak, following - out, rim - out], axis=1)
    side = np.stack([rim - out, following - out, following + out], axis=1)
    other = np.stack([rim - out, following + out, rim + out], axis=1)
    return facets(np.concatenate([front, back, side, other]), material)


def grid_quads(rows: int, columns: int) -> npt.NDArray[np.int64]:
    """Returns the quads [(rows - 1) * (columns - 1), 4] of a grid of points."""
    index = np.arange(rows * columns).reshape(rows, columns)
    corners = [index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]]
    return np.stack(corners, axis=-1).reshape(-1, 4)


def rotation(axis: str, degrees: float) -> Array:
    """Returns the matrix [3, 3] of a counter-clockwise rotation about `x`, `y` or `z`."""
    c, s = float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees)))
    rows = {
        "x": [[1, 0, 0], [0, c, -s], [0, s, c]],
        "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
        "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
    }[axis]
    return np.array(rows, np.float32)


def unit(vectors: npt.NDArray[np.floating]) -> Array:
    """Returns vectors [..., 3] scaled to length 1; a zero vector stays zero."""
    lengths = np.sqrt((vectors * vectors).sum(axis=-1, keepdims=True))
    return np.asarray(vectors / np.maximum(lengths, 1e-9), np.float32)
