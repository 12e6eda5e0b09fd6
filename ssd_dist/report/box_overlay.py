"""Draws images with boxes: the pixels as a small embedded image, boxes and labels on top as SVG, sharp at any size."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from PIL import Image

from ssd_dist.core.printable import NAME_LENGTH, make_printable
from ssd_dist.report.svg import Svg

# Longer side of an image, in pixels.
SIDE = 320
LABEL_HEIGHT = 15
# Letters that are narrower and wider than others in an 11-pixel font. The browser stretches each label to the width
# computed from them, whatever font it has.
NARROW_LETTERS, WIDE_LETTERS = frozenset("fijlrtI.,:;'|!()[] "), frozenset("mwMW@%")
# With more labels than this the image would be hidden: only wrong boxes keep theirs, the others show it as a tooltip.
MAX_LABELS = 14


@dataclass(frozen=True)
class OverlayBox:
    """A box to draw on an image.

    Attributes:
      box: float [4], normalized.
      style: CSS classes, which set the color; boxes with the class `plain` have no dark outline.
      label: text at a corner of the box.
      tooltip: text shown when the pointer is over the box; by default the label.
    """

    box: np.ndarray
    style: str
    label: str = ""
    tooltip: str = ""


def draw_overlay(
    pixels: Image.Image,
    boxes: Sequence[OverlayBox],
    description: str,
    shape: tuple[int, int] | None = None,
    side: int = SIDE,
) -> Markup:
    """Draws an image with boxes.

    Args:
      pixels: the image; images of records are squares.
      boxes: the boxes.
      description: text for screen readers.
      shape: height and width of the original image, which set the proportions of the drawing.
      side: longer side of the drawing, in pixels.
    """
    original_height, original_width = shape or (pixels.height, pixels.width)
    scale = side / max(original_height, original_width)
    # A very narrow image would have no room for labels.
    width, height = max(original_width * scale, side / 4), max(original_height * scale, side / 4)
    svg = Svg(width, height, description, "overlay")
    svg.add("image", href=embed_image(pixels, side), width=width, height=height, preserveAspectRatio="none")
    for box in boxes:
        top, left, bottom, right = (box.box * np.array([height, width, height, width])).tolist()
        position = {"x": left, "y": top, "width": max(right - left, 1.0), "height": max(bottom - top, 1.0)}
        # A dark outline keeps a light box visible on a light background.
        if "plain" not in box.style:
            svg.add("rect", class_="outline", **position)
        svg.add("rect", tooltip=box.tooltip or box.label, class_=f"box {box.style}", **position)
    labeled = sum(bool(box.label) for box in boxes)
    occupied: list[tuple[float, float, float, float]] = []
    for box in boxes:
        if box.label and (labeled <= MAX_LABELS or box.style == "wrong"):
            _add_label(svg, box, width, height, occupied)
    return svg.markup()


def embed_image(pixels: Image.Image, side: int = SIDE) -> str:
    """Returns the image as a data URI, reduced to at most `side` pixels."""
    image = pixels.convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _add_label(
    svg: Svg, box: OverlayBox, width: float, height: float, occupied: list[tuple[float, float, float, float]]
) -> None:
    """Writes a label at the corner of its box where it overlaps other labels least, and adds it to `occupied`."""
    text = make_printable(box.label, NAME_LENGTH)
    while len(text) > 1 and estimate_text_width(text) > width - 8:
        text = text.removesuffix("…")[:-1] + "…"
    label_width = estimate_text_width(text) + 8
    top, left, bottom, right = (box.box * np.array([height, width, height, width])).tolist()
    corners = [
        (x, y) for y in (top - LABEL_HEIGHT, top, bottom, bottom - LABEL_HEIGHT) for x in (left, right - label_width)
    ]
    best, lowest_cost = (0.0, 0.0), float("inf")
    for x, y in corners:
        inside = min(max(x, 0.0), width - label_width), min(max(y, 0.0), height - LABEL_HEIGHT)
        shift = abs(inside[0] - x) + abs(inside[1] - y)
        cost = sum(_overlap_area((*inside, label_width, LABEL_HEIGHT), other) for other in occupied) + 2 * shift
        if cost < lowest_cost:
            best, lowest_cost = inside, cost
    occupied.append((*best, label_width, LABEL_HEIGHT))
    svg.add("rect", x=best[0], y=best[1], width=label_width, height=LABEL_HEIGHT, rx=3, class_=f"label {box.style}")
    svg.add(
        "text", text, x=best[0] + 4, y=best[1] + 11.3, textLength=label_width - 8, lengthAdjust="spacingAndGlyphs",
        class_="label-text",
    )  # fmt: skip


def estimate_text_width(text: str) -> float:
    """Estimates the width in pixels of a text in an 11-pixel font."""
    return sum(3.6 if letter in NARROW_LETTERS else 9.6 if letter in WIDE_LETTERS else 6.6 for letter in text)


def _overlap_area(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """Returns the overlap of two rectangles given as x, y, width, height."""
    across = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    down = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    return max(across, 0.0) * max(down, 0.0)
