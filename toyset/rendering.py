"""Renders a mesh as an anti-aliased sprite, and the shadow that it casts.

    mesh -> project -> quad number of each pixel (Pillow polygons, far to near) -> normals and texture coordinates per
    pixel -> paint, light -> average to the final resolution

This is deferred shading: Pillow fills polygons with quad numbers, then NumPy shades all covered pixels at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from toyset.meshes import Array, Mesh, unit

# Linear RGB [3, N] or [3, 1] from u, v and height above the ground (all [N], in [0, 1]).
Paint: TypeAlias = Callable[[Array, Array, Array], Array]


@dataclass(frozen=True)
class Material:
    """A material: its paint, and the strength (`gloss`) and sharpness of its highlights."""

    paint: Paint
    gloss: float = 0.1
    sharpness: int = 4


@dataclass(frozen=True)
class Camera:
    """A camera that faces +y, tilted down by `pitch` degrees; `perspective` is how much nearer parts are enlarged."""

    pitch: float
    perspective: float = 0.12

    def project(self, points: Array, reach: float) -> tuple[Array, Array]:
        """Returns image coordinates [V, 2] (x right, y down) and nearness [V] of points [V, 3] around the origin.

        `reach` is the size of the object, in the units of the points.
        """
        sin, cos = np.sin(np.radians(self.pitch)), np.cos(np.radians(self.pitch))
        x, y, z = points.T
        nearness = z * sin - y * cos
        growth = 1.0 / (1.0 - self.perspective * np.clip(nearness / reach, -1.5, 1.5))
        return np.stack([x * growth, -(z * cos + y * sin) * growth], axis=1).astype(np.float32), nearness

    @property
    def towards(self) -> Array:
        """The direction [3] from the scene to the camera."""
        radians = np.radians(self.pitch)
        return np.array([0.0, -np.cos(radians), np.sin(radians)], np.float32)


@dataclass(frozen=True)
class Light:
    """Light of a sun and of the sky, and light reflected by the ground.

    Attributes:
      direction: unit vector [3] towards the sun.
      sun, sky, ground: their colors, linear RGB [3].
    """

    direction: Array
    sun: Array
    sky: Array
    ground: Array


@dataclass(frozen=True)
class Sprite:
    """A rendered object, positioned relative to the ground point that it stands on.

    Attributes:
      color: float32 [3, H, W], linear RGB times alpha.
      alpha: float32 [H, W].
      left, top: the top left corner, in pixels from the ground point.
    """

    color: Array
    alpha: Array
    left: int
    top: int


def render(mesh: Mesh, materials: Sequence[Material], camera: Camera, light: Light) -> Sprite:
    """Renders a mesh whose points are in pixels; small objects get more samples per pixel."""
    reach = float(np.ptp(mesh.points, axis=0).max())
    screen, nearness = camera.project(mesh.points, reach)
    samples = 4 if reach < 40 else 3 if reach < 70 else 2
    left, top, width, height = _bounding_frame(screen, margin=1)
    corners = ((screen - np.array([left, top], np.float32)) * samples)[mesh.quads]
    facing = _facing(corners)
    order = facing[np.argsort(nearness[mesh.quads[facing]].mean(axis=1), kind="stable")]
    numbers = _draw_numbers(corners[order], width * samples, height * samples)
    covered = np.flatnonzero(numbers)
    y, x = np.divmod(covered, width * samples)
    quad_index = numbers.reshape(-1)[covered] - 1
    quads = mesh.quads[order]
    top_height = max(float(mesh.points[:, 2].max()), 1e-6)
    values = np.concatenate([mesh.normals, mesh.uv, mesh.points[:, 2:] / top_height], axis=1)[quads]
    attributes = _interpolate(corners[order], values, quad_index, x, y)
    color = _shade(attributes, mesh.materials[order][quad_index], materials, camera, light)
    layers = np.zeros((4, height * samples, width * samples), np.float32)
    layers.reshape(4, -1)[:3, covered] = color
    layers[3] = numbers > 0
    small = _average(layers, samples)
    return Sprite(small[:3], small[3], left, top)


def cast_shadow(mesh: Mesh, camera: Camera, light: Light, softness: float) -> Sprite:
    """Returns the shadow on the ground as a sprite without color; `softness` is the blur in pixels."""
    slope = light.direction[:2] / light.direction[2]
    flat = mesh.points.copy()
    flat[:, :2] -= flat[:, 2:] * slope
    flat[:, 2] = 0.0
    # Half the resolution is enough, because the shadow is blurred.
    reach = float(np.ptp(mesh.points, axis=0).max())
    screen = camera.project(flat, reach)[0] / np.float32(2)
    margin = 2 + int(2 * softness)
    left, top, width, height = _bounding_frame(screen, margin)
    corners = (screen - np.array([left, top], np.float32))[mesh.quads]
    image = Image.new("L", (width, height))
    _fill(image, corners[_turned_to(mesh, light.direction)], None)
    blurred = image.filter(ImageFilter.BoxBlur(softness / 2)).filter(ImageFilter.BoxBlur(softness / 3))
    full = np.asarray(blurred.resize((2 * width, 2 * height), Image.Resampling.BILINEAR), np.float32) / np.float32(255)
    return Sprite(np.zeros((0, *full.shape), np.float32), full, 2 * left, 2 * top)


def extent(mesh: Mesh, camera: Camera) -> tuple[float, float]:
    """Returns width and height of the projected mesh, in the units of its points."""
    screen, _ = camera.project(mesh.points, float(np.ptp(mesh.points, axis=0).max()))
    width, height = np.ptp(screen, axis=0)
    return float(width), float(height)


def _bounding_frame(screen: Array, margin: int) -> tuple[int, int, int, int]:
    low = np.floor(screen.min(axis=0)).astype(int) - margin
    high = np.ceil(screen.max(axis=0)).astype(int) + margin
    return int(low[0]), int(low[1]), int(high[0] - low[0]), int(high[1] - low[1])


def _facing(corners: Array) -> npt.NDArray[np.int64]:
    """Returns the quads whose corners are counter-clockwise on the screen, where y points down."""
    first, second = corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1]
    area = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
    return np.flatnonzero(area < 0)


def _turned_to(mesh: Mesh, direction: Array) -> npt.NDArray[np.int64]:
    a, b, c, d = (mesh.points[mesh.quads[:, corner]] for corner in range(4))
    return np.flatnonzero(np.cross(c - a, d - b) @ direction > 0)


def _draw_numbers(corners: Array, width: int, height: int) -> npt.NDArray[np.int32]:
    image = Image.new("I", (width, height))
    _fill(image, corners, range(1, len(corners) + 1))
    return np.asarray(image)


def _fill(image: Image.Image, corners: Array, numbers: range | None) -> None:
    draw = ImageDraw.Draw(image)
    # In Pillow, pixel centers have integer coordinates.
    polygons = (corners - 0.5).reshape(len(corners), 8).tolist()
    for index, polygon in enumerate(polygons):
        draw.polygon(polygon, fill=255 if numbers is None else numbers[index])


def _interpolate(
    corners: Array, values: Array, quad_index: npt.NDArray[np.int32], x: npt.NDArray[np.int64], y: npt.NDArray[np.int64]
) -> list[Array]:
    """Interpolates K values [N] at pixels from values [Q, 4, K] at corners [Q, 4, 2], by a linear fit per quad."""
    middle, base = corners.mean(axis=1), values.mean(axis=1)
    offset, change = corners - middle[:, None], values - base[:, None]
    moments = np.einsum("qci,qcj->qij", offset, offset) + 0.05 * np.eye(2, dtype=np.float32)
    slopes = np.linalg.inv(moments) @ (offset.transpose(0, 2, 1) @ change)
    # The value at pixel (0, 0), and its change along x and y.
    start = base - np.einsum("qi,qik->qk", middle - 0.5, slopes)
    across, down = x.astype(np.float32), y.astype(np.float32)
    tables = np.stack([start, slopes[:, 0], slopes[:, 1]]).astype(np.float32).transpose(2, 0, 1)
    return [
        flat.take(quad_index) + across * by_x.take(quad_index) + down * by_y.take(quad_index)
        for flat, by_x, by_y in tables.copy()
    ]


def _shade(
    attributes: list[Array],
    numbers: npt.NDArray[np.int64],
    materials: Sequence[Material],
    camera: Camera,
    light: Light,
) -> Array:
    """Returns linear RGB [3, N]: diffuse light of sun and sky, plus Blinn highlights."""
    nx, ny, nz = attributes[:3]
    u, v, z = (np.clip(values, 0.0, 1.0) for values in attributes[3:])
    shorten = 1 / np.sqrt(nx * nx + ny * ny + nz * nz + np.float32(1e-12))

    def facing(direction: Array) -> Array:
        x, y, z = direction.tolist()
        return np.asarray((nx * x + ny * y + nz * z) * shorten)

    highlight = np.maximum(facing(unit(light.direction + camera.towards)), 0.0)
    albedo = np.zeros((3, len(numbers)), np.float32)
    shine = np.zeros(len(numbers), np.float32)
    for number, material in enumerate(materials):
        here = np.flatnonzero(numbers == number)
        if len(here):
            albedo[:, here] = material.paint(u[here], v[here], z[here])
            shine[here] = material.gloss * _power(highlight[here], material.sharpness)
    # The light wraps slightly around the terminator, as the light of a large lamp does.
    sun = np.maximum(facing(light.direction) + 0.15, 0.0) / 1.15
    up = 0.5 + 0.5 * nz * shorten
    # Less of the sky is visible close to the ground.
    sky = up * (0.55 + 0.45 * np.minimum(1.0, 3 * z))
    bounce = 0.35 * (1 - up)
    rim = 1.0 - np.maximum(facing(camera.towards), 0.0)
    shine += 0.06 * rim * rim * rim
    return np.stack([
        albedo[i] * (sun * light.sun[i] + sky * light.sky[i] + bounce * light.ground[i])
        + shine * (light.sun[i] + light.sky[i])
        for i in range(3)
    ])  # fmt: skip


def _power(values: Array, doublings: int) -> Array:
    for _ in range(doublings):
        values = values * values
    return values


def _average(layers: Array, samples: int) -> Array:
    parts = [layers[:, row::samples, column::samples] for row in range(samples) for column in range(samples)]
    total = parts[0].copy()
    for part in parts[1:]:
        total += part
    return total / np.float32(samples * samples)
