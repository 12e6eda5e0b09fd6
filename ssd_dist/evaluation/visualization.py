"""Detections as a person sees them: boxes on a picture, predictions beside the truth, a sheet of such pairs.

picture, boxes -> draw_boxes -> compare (truth | predictions) -> contact_sheet

A class has the same colour in every picture. The colours are told apart by the colour-blind too (Okabe and Ito 2008,
with grey for black, which dark pictures swallow); from the ninth class on they repeat, and the names tell.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

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
INK, MUTED, PAPER, CARD, BORDER = (24, 32, 46), (98, 108, 124), (243, 244, 247), (255, 255, 255), (221, 225, 231)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)

SMALLEST_TEXT = 8
LEGEND_ROWS = 4


def class_color(label: int) -> Color:
    """The colour of a label, which counts from 1."""
    return PALETTE[(label - 1) % len(PALETTE)]


def draw_boxes(
    image: Image.Image, boxes: Boxes, labels: Labels, classes: Sequence[str], scores: Scores | None = None
) -> Image.Image:
    """A copy of the picture with its boxes and their names.

    Args:
      image: of any mode and size.
      boxes: float32 [N, 4], normalised ymin, xmin, ymax, xmax; what lies outside the picture is cut off.
      labels: int64 [N], from 1.
      classes: names of the labels 1, 2, ...
      scores: float32 [N], written behind the names.

    Large boxes are drawn first, so that small ones stay visible; names move aside for each other where there is room.
    """
    picture = image.convert("RGB")
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    line = max(1, round((width + height) / 380))
    text_size = int(np.clip((width + height) / 56, 10, 40))
    rectangles = [_to_pixels(box, width, height) for box in boxes]
    order = sorted(range(len(rectangles)), key=lambda index: (-_area(rectangles[index]), index))
    for index in order:
        _draw_frame(draw, rectangles[index], class_color(int(labels[index])), line)
    taken: list[Rectangle] = []
    for index in order:
        label = int(labels[index])
        name = classes[label - 1] if scores is None else f"{classes[label - 1]} {scores[index]:.2f}"
        chip = _place_chip(name, rectangles[index], (width, height), text_size, line, taken)
        if chip:
            _draw_chip(draw, *chip, class_color(label))
            taken.append(chip[2])
    return picture


def compare(
    image: Image.Image, truth: tuple[Boxes, Labels], prediction: tuple[Boxes, Labels, Scores], classes: Sequence[str]
) -> Image.Image:
    """The picture twice: on the left with the truth, on the right with the predictions, a caption above each."""
    boxes, labels, scores = prediction
    left = draw_boxes(image, *truth, classes)
    right = draw_boxes(image, boxes, labels, classes, scores)
    width, height = left.size
    font = _font(int(np.clip(width / 26, 10, 30)))
    strip, gap = round(font.size * 1.7), max(4, width // 50)
    tile = Image.new("RGB", (2 * width + gap, height + strip), CARD)
    draw = ImageDraw.Draw(tile)
    for start, name, count, picture in (
        (0, "Ground truth", len(truth[0]), left),
        (width + gap, "Predictions", len(boxes), right),
    ):
        for caption in (f"{name}, {_count_objects(count)}", name):
            if font.getlength(caption) <= width:
                draw.text((start, strip * 0.42), caption, MUTED, font, anchor="lm")
                break
        tile.paste(picture, (start, strip))
    return tile


def contact_sheet(
    tiles: Sequence[Image.Image], columns: int, title: str, subtitle: str, classes: Sequence[str]
) -> Image.Image:
    """One picture of many tiles, with a title, a line below it and the colours of the classes.

    Tiles keep their sizes; columns are as wide as their widest tile, rows as high as their highest.
    """
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    widths = [max(tile.width for tile in tiles[column::columns]) for column in range(min(columns, len(tiles)))]
    heights = [max(tile.height for tile in row) for row in rows]
    pad, gap = 14, 18
    sheet_width = max(sum(widths) + len(widths) * 2 * pad + (len(widths) - 1) * gap + 80, 480)
    margin = 40
    header = _draw_header(sheet_width, margin, title, subtitle, classes)
    sheet_height = header.height + sum(height + 2 * pad + gap for height in heights) - gap * bool(rows) + margin
    sheet = Image.new("RGB", (sheet_width, sheet_height), PAPER)
    sheet.paste(header, (0, 0))
    draw = ImageDraw.Draw(sheet)
    top = header.height
    for row, height in zip(rows, heights, strict=True):
        left = margin
        for tile, width in zip(row, widths, strict=False):
            card = (left, top, left + width + 2 * pad - 1, top + height + 2 * pad - 1)
            draw.rounded_rectangle(card, 10, CARD, BORDER)
            # Narrow tiles stand in the middle of their card.
            corner = (left + pad + (width - tile.width) // 2, top + pad + (height - tile.height) // 2)
            sheet.paste(tile.convert("RGB"), corner)
            left += width + 2 * pad + gap
        top += height + 2 * pad + gap
    return sheet


def _draw_header(width: int, margin: int, title: str, subtitle: str, classes: Sequence[str]) -> Image.Image:
    inner = width - 2 * margin
    title_font, subtitle_font, legend_font = _fit_font(title, 34, inner), _fit_font(subtitle, 21, inner), _font(17)
    legend = list(_lay_out_legend(classes, legend_font, inner))
    line_height = 30
    legend_top = margin + 50 + 38 + 10
    height = legend_top + (legend[-1][1] + 1 if legend else 0) * line_height + 14
    header = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(header)
    # The bundled font has one weight; a hairline around the letters makes it bold.
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


def _lay_out_legend(
    classes: Sequence[str], font: ImageFont.FreeTypeFont, width: int
) -> Iterator[tuple[int, int, str, Color | None]]:
    """(left, row, name, colour) of the entries; those that do not fit into the rows are counted in a last one."""
    left, row = 0, 0
    for index, name in enumerate(classes):
        shown = _shorten(name, font, width - 22)
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


def _area(rectangle: Rectangle) -> int:
    left, top, right, bottom = rectangle
    return (right - left + 1) * (bottom - top + 1)


def _draw_frame(draw: ImageDraw.ImageDraw, rectangle: Rectangle, color: Color, line: int) -> None:
    """A frame inside the rectangle's edge, with a dark rim that keeps it visible on its own colour."""
    left, top, right, bottom = rectangle
    rim = max(1, line // 2)
    inset = min(rim, (right - left) // 2, (bottom - top) // 2)
    draw.rectangle(rectangle, outline=_darken(color), width=line + 2 * rim)
    draw.rectangle((left + inset, top + inset, right - inset, bottom - inset), outline=color, width=line)


def _place_chip(
    text: str, box: Rectangle, size: tuple[int, int], text_size: int, line: int, taken: Sequence[Rectangle]
) -> tuple[str, ImageFont.FreeTypeFont, Rectangle] | None:
    """Text, font and place of a box's name, all inside the picture; None where no letter has room."""
    width, height = size
    pad = max(2, text_size // 5)
    font = _fit_font(text, text_size, width - 2 * pad)
    text = _shorten(text, font, width - 2 * pad)
    chip_width, chip_height = int(np.ceil(font.getlength(text))) + 2 * pad, round(font.size * 1.25)
    if not text or chip_width > width or chip_height > height:
        return None
    left, top, right, bottom = box
    # Above the box, inside it, below it, each at its left and right corner.
    ends = (left, right + 1 - chip_width)
    places = [(x, y) for y in (top - chip_height, top + line, bottom + 1, bottom + 1 - chip_height) for x in ends]
    best, least = None, np.inf
    for x, y in places:
        inside_x, inside_y = min(max(x, 0), width - chip_width), min(max(y, 0), height - chip_height)
        chip = (inside_x, inside_y, inside_x + chip_width, inside_y + chip_height)
        covered = sum(_overlap(chip, other) for other in taken)
        # A name that had to be moved off its box is worse than one at its corner, better than one upon another.
        cost = covered + 0.1 * chip_height * (abs(inside_x - x) + abs(inside_y - y))
        if cost < least:
            best, least = chip, cost
    return None if best is None else (text, font, best)


def _draw_chip(
    draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, chip: Rectangle, color: Color
) -> None:
    left, top, right, bottom = chip
    draw.rounded_rectangle((left, top, right - 1, bottom - 1), font.size // 5, color)
    # Whole pixels: letters are sharper, and alike wherever they stand.
    start = left + (right - left - int(np.ceil(font.getlength(text)))) // 2
    draw.text((start, (top + bottom) // 2), text, _ink_on(color), font, anchor="lm")


def _overlap(first: Rectangle, second: Rectangle) -> int:
    across = min(first[2], second[2]) - max(first[0], second[0])
    down = min(first[3], second[3]) - max(first[1], second[1])
    return max(across, 0) * max(down, 0)


def _ink_on(color: Color) -> Color:
    """Black or white, whichever has the higher contrast (WCAG 2.1, relative luminance)."""
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in _unit(color))
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return BLACK if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else WHITE


def _unit(color: Color) -> tuple[float, ...]:
    return tuple(part / 255 for part in color)


def _darken(color: Color) -> Color:
    red, green, blue = (part // 3 for part in color)
    return red, green, blue


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("this Pillow was built without FreeType; install the wheel from the package index")
    return font


def _fit_font(text: str, size: int, width: int) -> ImageFont.FreeTypeFont:
    """The largest font up to `size` in which the text is at most `width` pixels long."""
    while size > SMALLEST_TEXT and _font(size).getlength(text) > width:
        size -= 1
    return _font(size)


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, cut with an ellipsis to at most `width` pixels; empty where not even that fits."""
    if font.getlength(text) <= width:
        return text
    kept = bisect_right(range(1, len(text)), width, key=lambda length: font.getlength(text[:length] + "…"))
    return text[:kept].rstrip() + "…" if kept else ""


def _count_objects(count: int) -> str:
    return {0: "none", 1: "1 object"}.get(count, f"{count} objects")
