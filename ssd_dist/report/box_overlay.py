"""Pictures with boxes: the pixels as a small embedded image, boxes and names as SVG on top, sharp at any size."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from PIL import Image

from ssd_dist.report.svg import Svg

SIDE = 320
CHIP = 15
# Widths of letters at 11 pixels; the text is then fitted to their sum, whatever the reader's font.
NARROW, WIDE = frozenset("fijlrtI.,:;'|!()[] "), frozenset("mwMW@%")
# Beyond that many names hide the picture; only what is wrong keeps its own, the others have it on hovering.
MOST_NAMES = 14


@dataclass(frozen=True)
class Frame:
    """A box [4] to draw; `style` is a class of the style sheet, `name` stands at its corner, `hint` on hovering."""

    box: np.ndarray
    style: str
    name: str = ""
    hint: str = ""


def draw_frames(
    pixels: Image.Image, frames: Sequence[Frame], label: str, shape: tuple[int, int] | None = None, side: int = SIDE
) -> Markup:
    """The picture with its frames, in the proportions of `shape` (height, width); records are squares of it."""
    height, width = shape or (pixels.height, pixels.width)
    scale = side / max(height, width)
    # A strip of a picture would have no room for its names.
    width, height = max(width * scale, side / 4), max(height * scale, side / 4)
    svg = Svg(width, height, label, "picture")
    svg.add("image", href=embed(pixels, side), width=width, height=height, preserveAspectRatio="none")
    taken: list[tuple[float, float, float, float]] = []
    for frame in frames:
        top, left, bottom, right = (frame.box * np.array([height, width, height, width])).tolist()
        place = {"x": left, "y": top, "width": max(right - left, 1.0), "height": max(bottom - top, 1.0)}
        # A dark rim keeps a light frame visible on light ground.
        if "plain" not in frame.style:
            svg.add("rect", class_="rim", **place)
        svg.add("rect", hint=frame.hint or frame.name, class_=f"frame {frame.style}", **place)
    named = sum(bool(frame.name) for frame in frames)
    for frame in frames:
        if frame.name and (named <= MOST_NAMES or frame.style == "wrong"):
            _add_name(svg, frame, width, height, taken)
    return svg.markup()


def embed(pixels: Image.Image, side: int = SIDE) -> str:
    """The picture as a data URI, at most `side` pixels wide and high."""
    picture = pixels.convert("RGB")
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=80, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _add_name(
    svg: Svg, frame: Frame, width: float, height: float, taken: list[tuple[float, float, float, float]]
) -> None:
    """A chip with the name at the corner of the box that covers least of the other chips."""
    text = frame.name
    while len(text) > 1 and measure_text(text) > width - 8:
        text = text.removesuffix("…")[:-1] + "…"
    long = measure_text(text) + 8
    top, left, bottom, right = (frame.box * np.array([height, width, height, width])).tolist()
    places = [(x, y) for y in (top - CHIP, top, bottom, bottom - CHIP) for x in (left, right - long)]
    best, least = (0.0, 0.0), float("inf")
    for x, y in places:
        inside = min(max(x, 0.0), width - long), min(max(y, 0.0), height - CHIP)
        moved = abs(inside[0] - x) + abs(inside[1] - y)
        cost = sum(_overlap((*inside, long, CHIP), other) for other in taken) + 2 * moved
        if cost < least:
            best, least = inside, cost
    taken.append((*best, long, CHIP))
    svg.add("rect", x=best[0], y=best[1], width=long, height=CHIP, rx=3, class_=f"chip {frame.style}")
    svg.add(
        "text", text, x=best[0] + 4, y=best[1] + 11.3, textLength=long - 8, lengthAdjust="spacingAndGlyphs",
        class_="chip-text",
    )  # fmt: skip


def measure_text(text: str) -> float:
    """About the width of a text of 11 pixels."""
    return sum(3.6 if letter in NARROW else 9.6 if letter in WIDE else 6.6 for letter in text)


def _overlap(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    across = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    down = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    return max(across, 0.0) * max(down, 0.0)
