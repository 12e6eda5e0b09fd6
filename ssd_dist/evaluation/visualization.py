"""Draws boxes on images, predictions next to ground truth, and grids of such pairs.

image, boxes -> draw_boxes -> draw_comparison (ground truth | predictions) -> draw_image_grid

A class has the same color in every image. The palette can be distinguished by color-blind people (Okabe and Ito 2008,
with gray instead of black, which is invisible on dark images). The ninth class has the color of the first, and so on;
the class names then distinguish the boxes.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ssd_dist.core.printable import NAME_LENGTH, make_printable

Boxes: TypeAlias = npt.NDArray[np.float32]
Labels: TypeAlias = npt.NDArray[np.int64]
Scores: TypeAlias = npt.NDArray[np.float32]
Color: TypeAlias = tuple[int, int, int]
# Pixels: left, top, right, bottom.
Rectangle: TypeAlias = tuple[int, int, int, int]

PALETTE: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (187, 187, 187),
)
INK, MUTED, PAPER, PANEL, BORDER = (24, 32, 46), (98, 108, 124), (243, 244, 247), (255, 255, 255), (221, 225, 231)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)

SMALLEST_TEXT = 8
LEGEND_ROWS = 4


def class_color(label: int) -> Color:
    """Returns the color of a label; labels start at 1."""
    return PALETTE[(label - 1) % len(PALETTE)]


def draw_boxes(
    image: Image.Image, boxes: Boxes, labels: Labels, classes: Sequence[str], scores: Scores | None = None
) -> Image.Image:
    """Draws boxes with their class names on a copy of the image.

    Large boxes are drawn first, so that small boxes stay visible. Class names are placed so that they overlap little.

    Args:
      image: of any mode and size.
      boxes: float32 [N, 4], normalized ymin, xmin, ymax, xmax; clipped to the image.
      labels: int64 [N], 1-based.
      classes: class names in label order.
      scores: float32 [N], written after the names.

    Returns:
      An RGB image of the same size.
    """
    drawn = image.convert("RGB")
    draw = ImageDraw.Draw(drawn)
    width, height = drawn.size
    line = max(1, round((width + height) / 380))
    text_size = int(np.clip((width + height) / 56, 10, 40))
    rectangles = [_to_pixels(box, width, height) for box in boxes]
    order = sorted(range(len(rectangles)), key=lambda index: (-_measure_area(rectangles[index]), index))
    for index in order:
        _draw_frame(draw, rectangles[index], class_color(int(labels[index])), line)
    placed: list[Rectangle] = []
    for index in order:
        label = int(labels[index])
        # Pillow cannot measure a text with line breaks.
        name = make_printable(classes[label - 1], NAME_LENGTH)
        name = name if scores is None else f"{name} {scores[index]:.2f}"
        tag = _place_tag(name, rectangles[index], (width, height), text_size, line, placed)
        if tag:
            _draw_tag(draw, *tag, class_color(label))
            placed.append(tag[2])
    return drawn


def draw_comparison(
    image: Image.Image,
    ground_truth: tuple[Boxes, Labels],
    prediction: tuple[Boxes, Labels, Scores],
    classes: Sequence[str],
) -> Image.Image:
    """Draws the image twice, with ground truth on the left and predictions on the right, each with a caption."""
    boxes, labels, scores = prediction
    left = draw_boxes(image, *ground_truth, classes)
    right = draw_boxes(image, boxes, labels, classes, scores)
    width, height = left.size
    font = _load_font(int(np.clip(width / 26, 10, 30)))
    strip, gap = round(font.size * 1.7), max(4, width // 50)
    tile = Image.new("RGB", (2 * width + gap, height + strip), PANEL)
    draw = ImageDraw.Draw(tile)
    for start, name, count, drawn in (
        (0, "Ground truth", len(ground_truth[0]), left),
        (width + gap, "Predictions", len(boxes), right),
    ):
        for caption in (f"{name}, {_format_count(count)}", name):
            if font.getlength(caption) <= width:
                draw.text((start, strip * 0.42), caption, MUTED, font, anchor="lm")
                break
        tile.paste(drawn, (start, strip))
    return tile


def draw_image_grid(
    tiles: Sequence[Image.Image], columns: int, title: str, subtitle: str, classes: Sequence[str]
) -> Image.Image:
    """Arranges images in a grid, below a title, a subtitle and a legend of the class colors.

    Tiles keep their sizes. A column is as wide as its widest tile, a row as high as its highest tile.

    Args:
      tiles: the images.
      columns: number of columns.
      title: the heading.
      subtitle: the line below the heading.
      classes: class names in label order, for the legend.
    """
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    widths = [max(tile.width for tile in tiles[column::columns]) for column in range(min(columns, len(tiles)))]
    heights = [max(tile.height for tile in row) for row in rows]
    pad, gap = 14, 18
    grid_width = max(sum(widths) + len(widths) * 2 * pad + (len(widths) - 1) * gap + 80, 480)
    margin = 40
    header = _draw_header(grid_width, margin, title, subtitle, classes)
    grid_height = header.height + sum(height + 2 * pad + gap for height in heights) - gap * bool(rows) + margin
    grid = Image.new("RGB", (grid_width, grid_height), PAPER)
    grid.paste(header, (0, 0))
    draw = ImageDraw.Draw(grid)
    top = header.height
    for row, height in zip(rows, heights, strict=True):
        left = margin
        for tile, width in zip(row, widths, strict=False):
            panel = (left, top, left + width + 2 * pad - 1, top + height + 2 * pad - 1)
            draw.rounded_rectangle(panel, 10, PANEL, BORDER)
            # Tiles are centered in their panels.
            corner = (left + pad + (width - tile.width) // 2, top + pad + (height - tile.height) // 2)
            grid.paste(tile.convert("RGB"), corner)
            left += width + 2 * pad + gap
        top += height + 2 * pad + gap
    return grid


def _draw_header(width: int, margin: int, title: str, subtitle: str, classes: Sequence[str]) -> Image.Image:
    inner = width - 2 * margin
    title, subtitle = make_printable(title), make_printable(subtitle)
    title_font, subtitle_font, legend_font = _fit_font(title, 34, inner), _fit_font(subtitle, 21, inner), _load_font(17)
    legend = list(_arrange_legend(classes, legend_font, inner))
    line_height = 30
    legend_top = margin + 50 + 38 + 10
    height = legend_top + (legend[-1][1] + 1 if legend else 0) * line_height + 14
    header = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(header)
    # The bundled font has one weight; a thin outline makes it look bold.
    draw.text((margin, margin + 20), _shorten(title, title_font, inner), INK, title_font, "lm", stroke_width=0.5)
    draw.text((margin, margin + 62), _shorten(subtitle, subtitle_font, inner), MUTED, subtitle_font, "lm")
    for left, row, name, color in legend:
        middle = legend_top + row * line_height + line_height // 2
        start = margin + left
        if color:
            draw.rounded_rectangle((start, middle - 7, start + 14, middle + 7), 4, color, _darken(color))
            start += 22
        draw.text((start, middle), name, INK if color else MUTED, legend_font, "lm")
    return header


def _arrange_legend(
    classes: Sequence[str], font: ImageFont.FreeTypeFont, width: int
) -> Iterator[tuple[int, int, str, Color | None]]:
    """Yields (left, row, name, color) per entry; the last one, without color, counts entries that do not fit."""
    left, row = 0, 0
    for index, name in enumerate(classes):
        shown = _shorten(make_printable(name, NAME_LENGTH), font, width - 22)
        needed = 22 + int(font.getlength(shown))
        rest = f"and {len(classes) - index} more"
        is_last = row == LEGEND_ROWS - 1 and index + 1 < len(classes)
        reserve = 26 + int(font.getlength(rest)) if is_last else 0
        if left and left + needed + reserve > width:
            if row == LEGEND_ROWS - 1:
                yield left, row, rest, None
                return
            left, row = 0, row + 1
        yield left, row, shown, class_color(index + 1)
        left += needed + 26


def _to_pixels(box: npt.NDArray[np.float32], width: int, height: int) -> Rectangle:
    top, left, bottom, right = np.clip(np.asarray(box, np.float64), 0, 1) * (height, width, height, width)
    x1, y1 = min(round(left), width - 1), min(round(top), height - 1)
    return x1, y1, max(x1, round(right) - 1), max(y1, round(bottom) - 1)


def _measure_area(rectangle: Rectangle) -> int:
    left, top, right, bottom = rectangle
    return (right - left + 1) * (bottom - top + 1)


def _draw_frame(draw: ImageDraw.ImageDraw, rectangle: Rectangle, color: Color, line: int) -> None:
    """Draws a frame inside the rectangle, with dark borders that keep it visible on areas of its own color."""
    left, top, right, bottom = rectangle
    rim = max(1, line // 2)
    inset = min(rim, (right - left) // 2, (bottom - top) // 2)
    draw.rectangle(rectangle, outline=_darken(color), width=line + 2 * rim)
    draw.rectangle((left + inset, top + inset, right - inset, bottom - inset), outline=color, width=line)


def _place_tag(
    text: str, box: Rectangle, size: tuple[int, int], text_size: int, line: int, placed: Sequence[Rectangle]
) -> tuple[str, ImageFont.FreeTypeFont, Rectangle] | None:
    """Chooses text, font and position of a box's label inside the image; None if no letter fits."""
    width, height = size
    pad = max(2, text_size // 5)
    font = _fit_font(text, text_size, width - 2 * pad)
    text = _shorten(text, font, width - 2 * pad)
    tag_width, tag_height = int(np.ceil(font.getlength(text))) + 2 * pad, round(font.size * 1.25)
    if not text or tag_width > width or tag_height > height:
        return None
    left, top, right, bottom = box
    # Candidates: above, inside the top, below and inside the bottom of the box, each left- and right-aligned.
    ends = (left, right + 1 - tag_width)
    places = [(x, y) for y in (top - tag_height, top + line, bottom + 1, bottom + 1 - tag_height) for x in ends]
    best, least = None, np.inf
    for x, y in places:
        inside_x, inside_y = min(max(x, 0), width - tag_width), min(max(y, 0), height - tag_height)
        tag = (inside_x, inside_y, inside_x + tag_width, inside_y + tag_height)
        covered = sum(_measure_overlap(tag, other) for other in placed)
        # Moving a label away from its box costs more than a corner position and less than overlapping another label.
        cost = covered + 0.1 * tag_height * (abs(inside_x - x) + abs(inside_y - y))
        if cost < least:
            best, least = tag, cost
    return None if best is None else (text, font, best)


def _draw_tag(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, tag: Rectangle, color: Color) -> None:
    left, top, right, bottom = tag
    draw.rounded_rectangle((left, top, right - 1, bottom - 1), font.size // 5, color)
    # At whole pixels letters are sharper and look the same at every position.
    start = left + (right - left - int(np.ceil(font.getlength(text)))) // 2
    draw.text((start, (top + bottom) // 2), text, _contrasting_color(color), font, anchor="lm")


def _measure_overlap(first: Rectangle, second: Rectangle) -> int:
    across = min(first[2], second[2]) - max(first[0], second[0])
    down = min(first[3], second[3]) - max(first[1], second[1])
    return max(across, 0) * max(down, 0)


def _contrasting_color(color: Color) -> Color:
    """Returns black or white, the one with the higher contrast (WCAG 2.1, relative luminance)."""
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in _normalize_color(color)
    )
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return BLACK if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else WHITE


def _normalize_color(color: Color) -> tuple[float, ...]:
    return tuple(part / 255 for part in color)


def _darken(color: Color) -> Color:
    red, green, blue = (part // 3 for part in color)
    return red, green, blue


@lru_cache(maxsize=64)
def _load_font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType, so text cannot be drawn; install the Pillow wheel")
    return font


def _fit_font(text: str, size: int, width: int) -> ImageFont.FreeTypeFont:
    """Returns the largest font up to `size` in which the text is at most `width` pixels long."""
    while size > SMALLEST_TEXT and _load_font(size).getlength(text) > width:
        size -= 1
    return _load_font(size)


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Shortens the text with an ellipsis to at most `width` pixels; returns "" if not even one letter fits."""
    if font.getlength(text) <= width:
        return text

    def exceeds_width(length: int) -> bool:
        return font.getlength(text[:length] + "…") > width

    # The number of lengths 1, 2, ... that fit; widths grow with the length.
    kept = bisect_right(range(1, len(text)), False, key=exceeds_width)
    return text[:kept].rstrip() + "…" if kept else ""


def _format_count(count: int) -> str:
    return {0: "none", 1: "1 object"}.get(count, f"{count} objects")
