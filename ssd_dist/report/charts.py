"""Charts of the reports: line chart, histogram, columns, anchor shapes and calibration, each drawn by one function.

Charts are drawn at the size at which they are shown, so that text keeps its size on every screen.

This module writes SVG itself instead of using matplotlib. Measured against matplotlib 3.11.2 with text kept as text: a
chart of 3 lines with 300 points takes 12 kB instead of 31 kB (5 ms instead of 109 ms), a histogram of 40 bars 5.5 kB
instead of 15.6 kB (2 ms instead of 82 ms); the report of a run has up to 34 charts. matplotlib also writes no tooltips,
sets colors in `style` attributes, which do not follow the dark mode of the page, and repeats ids across the charts of
one page.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from markupsafe import Markup

from ssd_dist.report.svg import Scale, Svg, format_number

WIDTH, HEIGHT = 360, 210
# More points would not be visible at this width.
MAX_POINTS = 300
TEXT_HEIGHT = 13
DIGIT_WIDTH = 7
MIN_LABELED_WIDTH = 22


@dataclass(frozen=True)
class Line:
    """A line of a chart, with its name at its right end; `style` is the CSS class `s0` (accent) to `s6`, or `muted`."""

    name: str
    x: np.ndarray
    y: np.ndarray
    style: str = "s0"


@dataclass(frozen=True)
class Mark:
    """A labeled point; the label is on its left or, with `right`, on its right."""

    x: float
    y: float
    text: str
    style: str = "s0"
    right: bool = False


@dataclass(frozen=True)
class Axes:
    """Axes and size of a chart.

    Attributes:
      x_title: title of the x axis, with its unit.
      y_title: title of the y axis, with its unit.
      x_range: range of the x axis; None for the range of the data.
      y_range: range of the y axis; None for the range of the data.
      log: whether the y axis is logarithmic.
      percent: whether y values are shown as percentages.
      width: in pixels.
      height: in pixels.
    """

    x_title: str
    y_title: str
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    log: bool = False
    percent: bool = False
    width: int = WIDTH
    height: int = HEIGHT


def draw_line_chart(label: str, lines: Sequence[Line], axes: Axes, marks: Sequence[Mark] = ()) -> Markup:
    """Draws lines with their names at their ends; values that are not finite leave gaps."""
    longest = max((len(line.name) for line in lines), default=0)
    frame = _Frame(label, axes, *_choose_ranges(lines, axes), right=10 + min(6.3 * longest, 120))
    for line in lines:
        steps, values = thin_out(np.asarray(line.x, float), np.asarray(line.y, float))
        for part in _split_at_gaps(steps, values):
            points = [(frame.x(steps[i]), frame.y(values[i])) for i in part]
            if len(points) == 1:
                frame.svg.add("circle", cx=points[0][0], cy=points[0][1], r=2, class_=f"dot {line.style}")
            else:
                frame.svg.add(
                    "polyline", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in points), class_=f"line {line.style}"
                )
    _draw_line_names(frame, [line for line in lines if line.name])
    for mark in marks:
        x, y = frame.x(mark.x), frame.y(mark.y)
        frame.svg.add("circle", cx=x, cy=y, r=3.5, class_=f"mark {mark.style}")
        above = y > frame.top + 26 and not _line_passes_above(frame, lines, mark)
        frame.svg.add(
            "text",
            mark.text,
            x=x + (6 if mark.right else -6),
            y=y - 8 if above else y + 16,
            class_="value",
            text_anchor="start" if mark.right else "end",
        )
    return frame.svg.markup()


def draw_histogram(
    label: str, edges: np.ndarray, counts: np.ndarray, axes: Axes, bound: float | None = None, bound_text: str = ""
) -> Markup:
    """Draws a histogram; bars below `bound` are highlighted.

    Args:
      label: description for screen readers.
      edges: float [B + 1], the edges of the bins.
      counts: [B], the number of values in each bin.
      axes: titles and size.
      bound: value at which a vertical line is drawn.
      bound_text: label of that line, on its left.
    """
    top = float(max(counts.max(initial=0), 1)) * 1.08
    frame = _Frame(label, axes, (float(edges[0]), float(edges[-1])), axes.y_range or (0.0, top), right=10)
    for low, high, count in zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True):
        left, right, y = frame.x(low), frame.x(high), frame.y(count)
        wrong = bound is not None and high <= bound + 1e-9
        frame.svg.add(
            "rect",
            tooltip=f"{format_number(low)} to {format_number(high)}: {format_number(count)}",
            x=left + 0.5,
            y=y,
            width=max(right - left - 1, 0.5),
            height=frame.bottom - y,
            class_="bar wrong" if wrong else "bar",
        )
    if bound is not None:
        x = frame.x(bound)
        frame.svg.add("line", x1=x, x2=x, y1=frame.top, y2=frame.bottom, class_="bound")
        frame.svg.add("text", bound_text, x=x - 5, y=frame.top + 10, class_="note", text_anchor="end")
    return frame.svg.markup()


def draw_columns(label: str, names: Sequence[str], counts: np.ndarray, axes: Axes, wrong: Sequence[int] = ()) -> Markup:
    """Draws one bar per name with its share of the total above it; bars with the indices `wrong` are highlighted.

    Where names would overlap, only every second, third, ... name is written, counted from the last.
    """
    top = float(max(counts.max(initial=0), 1)) * 1.15
    frame = _Frame(label, axes, (0.0, float(len(names))), (0.0, top), right=10, x_ticks=False)
    total = max(float(counts.sum()), 1.0)
    every = _choose_name_interval(names, frame.x(1) - frame.x(0))
    for index, (name, count) in enumerate(zip(names, counts.tolist(), strict=True)):
        left, right, y = frame.x(index), frame.x(index + 1), frame.y(count)
        frame.svg.add(
            "rect",
            tooltip=f"{name}: {format_number(count)} ({count / total:.1%})",
            x=left + 1.5,
            y=y,
            width=right - left - 3,
            height=frame.bottom - y,
            class_="bar wrong" if index in wrong else "bar",
        )
        middle = (left + right) / 2
        shown_name = name if (len(names) - 1 - index) % every == 0 else ""
        frame.svg.add("text", shown_name, x=middle, y=frame.bottom + 14, class_="tick", text_anchor="middle")
        share = count / total
        text = f"{share:.0%}" if share >= 0.01 and right - left >= MIN_LABELED_WIDTH else ""
        frame.svg.add("text", text, x=middle, y=y - 4, class_="tick", text_anchor="middle")
    return frame.svg.markup()


def _choose_name_interval(names: Sequence[str], width: float) -> int:
    """Returns the smallest interval between written names at which names of columns of `width` do not overlap."""
    return next(
        every
        for every in range(1, max(len(names), 1) + 1)
        if all(
            (len(left) + len(right)) / 2 * DIGIT_WIDTH + 3 <= every * width for left, right in pairwise(names[::-every])
        )
    )


def draw_shape_chart(
    label: str, sides: np.ndarray, fits: np.ndarray, anchors: np.ndarray, low: float, width: int = WIDTH
) -> Markup:
    """Draws width against height of objects and anchor shapes, in shares of the image side, on logarithmic axes.

    Args:
      label: description for screen readers.
      sides: float [N, 2], width and height of each object.
      fits: bool [N], whether an anchor fits the object.
      anchors: float [S, 2], width and height of each anchor shape.
      low: lower end of both axes.
      width: width and height of the chart in pixels.
    """
    axes = Axes("width, share of the image", "height, share of the image", width=width, height=width)
    limits = (low, 1.4)
    frame = _Frame(label, axes, limits, limits, right=10, log_x=True, log_y=True, format_tick=lambda v: f"{v:.0%}")
    for chosen, style in ((fits, "object"), (~fits, "object wrong")):
        for w, h in sides[chosen].tolist():
            frame.svg.add("circle", cx=frame.x(w), cy=frame.y(h), r=2, class_=style)
    for w, h in anchors.tolist():
        x, y = frame.x(w), frame.y(h)
        frame.svg.add(
            "rect", tooltip=f"anchor {w:.0%} x {h:.0%}", x=x - 3.5, y=y - 3.5, width=7, height=7, class_="anchor-shape"
        )
    return frame.svg.markup()


def draw_calibration_chart(
    label: str, scores: np.ndarray, precisions: np.ndarray, counts: np.ndarray, width: int = 300
) -> Markup:
    """Draws precision against score, one dot per bin; calibrated scores lie on the diagonal.

    The size of a dot grows with its number of detections.

    Args:
      label: description for screen readers.
      scores: float [B], mean score of the detections in each bin.
      precisions: float [B], share of true positives among them.
      counts: [B], detections in each bin.
      width: width of the chart in pixels.
    """
    unit = (0.0, 1.0)
    frame = _Frame(label, Axes("score", "precision", width=width, height=width - 40), unit, unit, right=14)
    frame.svg.add("line", x1=frame.x(0), y1=frame.y(0), x2=frame.x(1), y2=frame.y(1), class_="bound")
    filled = counts > 0
    points = " ".join(
        f"{frame.x(s):.1f},{frame.y(r):.1f}" for s, r in zip(scores[filled], precisions[filled], strict=True)
    )
    frame.svg.add("polyline", points=points, class_="line s0 thin")
    for score, precision, count in zip(scores[filled], precisions[filled], counts[filled], strict=True):
        radius = 2.5 + 6.5 * float(np.sqrt(count / counts.max()))
        tooltip = f"{count:,} detections, mean score {score:.2f}: {precision:.0%} are true positives"
        frame.svg.add(
            "circle", tooltip=tooltip, cx=frame.x(score), cy=frame.y(precision), r=radius, class_="dot s0 see-through"
        )
    return frame.svg.markup()


def thin_out(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reduces a line to about `MAX_POINTS` points: the minimum and maximum of each interval, so that spikes remain.

    The intervals have equal widths on the x axis, as in the drawing. Equal numbers of points would distort a
    precision-recall curve, most of whose points are false positives at nearly the same recall.

    Args:
      x: finite numbers in ascending order [N].
      y: the values [N]; NaN marks a gap.
    """
    if len(x) <= MAX_POINTS:
        return x, y
    kept = {0, len(x) - 1}
    edges = np.searchsorted(x, np.linspace(x[0], x[-1], MAX_POINTS // 2 + 1)[1:-1])
    for part in np.split(np.arange(len(x)), edges):
        if not len(part):
            continue
        values = y[part]
        if np.isfinite(values).any():
            kept |= {int(part[np.nanargmin(values)]), int(part[np.nanargmax(values)])}
        else:
            kept.add(int(part[0]))
    order = sorted(kept)
    return x[order], y[order]


class _Frame:
    """Draws axes and grid, and holds the scales; charts add their elements to `svg`."""

    def __init__(
        self,
        label: str,
        axes: Axes,
        x_range: tuple[float, float],
        y_range: tuple[float, float],
        right: float,
        x_ticks: bool = True,
        log_x: bool = False,
        log_y: bool = False,
        format_tick: Callable[[float], str] = format_number,
    ) -> None:
        self.left, self.top = 42.0, 22.0
        self.right_edge, self.bottom = axes.width - right, axes.height - 32.0
        self.svg = Svg(axes.width, axes.height, label)
        self.x = Scale(*x_range, self.left, self.right_edge, log_x)
        self.y = Scale(*y_range, self.bottom, self.top, axes.log or log_y)
        y_format = (lambda value: f"{100 * value:.3g}%") if axes.percent else format_tick
        for value in self.y.ticks():
            y = self.y(value)
            self.svg.add("line", x1=self.left, x2=self.right_edge, y1=y, y2=y, class_="grid")
            self.svg.add("text", y_format(value), x=self.left - 6, y=y + 3.5, class_="tick", text_anchor="end")
        self.svg.add("line", x1=self.left, x2=self.right_edge, y1=self.bottom, y2=self.bottom, class_="axis")
        if x_ticks:
            count = max(2, int((self.right_edge - self.left) / 62))
            for value in self.x.ticks(count):
                x = self.x(value)
                self.svg.add("line", x1=x, x2=x, y1=self.bottom, y2=self.bottom + 4, class_="axis")
                self.svg.add("text", format_tick(value), x=x, y=self.bottom + 15, class_="tick", text_anchor="middle")
        self.svg.add("text", axes.y_title, x=0, y=10, class_="title")
        self.svg.add("text", axes.x_title, x=self.right_edge, y=self.bottom + 29, class_="title", text_anchor="end")


def _choose_ranges(lines: Sequence[Line], axes: Axes) -> tuple[tuple[float, float], tuple[float, float]]:
    """Returns the ranges of the x and y axes; takes them from the data if `axes` does not set them."""
    x = _join_finite([line.x for line in lines])
    y = _join_finite([line.y for line in lines])
    if axes.log:
        y = y[y > 0]
    x_range = axes.x_range or _range_with_zero(x)
    if axes.y_range:
        return x_range, axes.y_range
    if not y.size:
        return x_range, (0.1, 1.0) if axes.log else (0.0, 1.0)
    low, high = float(y.min()), float(y.max())
    if axes.log:
        return x_range, (low / 1.3, high * 1.3)
    # The axis starts at zero unless there are negative values.
    low = 0.0 if low >= 0 else low - 0.06 * (high - low)
    return x_range, (low, high * 1.08 if high > low else low + 1.0)


def _range_with_zero(values: np.ndarray) -> tuple[float, float]:
    if not values.size:
        return 0.0, 1.0
    low, high = min(float(values.min()), 0.0), float(values.max())
    return low, high if high > low else low + 1.0


def _join_finite(parts: Sequence[np.ndarray]) -> np.ndarray:
    values = np.concatenate([np.zeros(0), *(np.asarray(part, float) for part in parts)])
    return values[np.isfinite(values)]


def _split_at_gaps(x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Returns the indices of each run of finite points."""
    good = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    return [part for part in np.split(good, np.flatnonzero(np.diff(good) > 1) + 1) if len(part)]


def _line_passes_above(frame: _Frame, lines: Sequence[Line], mark: Mark) -> bool:
    """Returns whether a line crosses the place of a label above the mark."""
    heights = [frame.y(mark.y) - frame.y(float(np.interp(mark.x, line.x, line.y))) for line in lines if len(line.x)]
    return any(1 < height < 8 + TEXT_HEIGHT for height in heights)


def _draw_line_names(frame: _Frame, lines: Sequence[Line]) -> None:
    """Writes names at the ends of their lines, moved apart where the ends are close."""
    ends = []
    for line in lines:
        finite = np.flatnonzero(np.isfinite(np.asarray(line.y, float)))
        if len(finite):
            ends.append((frame.y(float(line.y[finite[-1]])), line))
    ends.sort(key=lambda end: end[0])
    places = [y for y, _ in ends]
    for index in range(1, len(places)):
        places[index] = max(places[index], places[index - 1] + TEXT_HEIGHT)
    overflow = max(places[-1] - frame.bottom, 0.0) if places else 0.0
    for index in range(len(places) - 1, -1, -1):
        limit = places[index + 1] - TEXT_HEIGHT if index + 1 < len(places) else frame.bottom
        places[index] = min(places[index], limit) if overflow else places[index]
    for place, (_, line) in zip(places, ends, strict=True):
        name = line.name if len(line.name) <= 19 else line.name[:18] + "…"
        frame.svg.add("text", name, x=frame.right_edge + 6, y=place + 4, class_=f"name {line.style}")
