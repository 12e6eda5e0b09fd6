"""Builds SVG drawings as trees of elements, scales values to pixels, and formats numbers.

    drawing = Svg(360, 200, "loss by step")
    drawing.add("line", x1=0, y1=0, x2=10, y2=10, class_="axis")
    drawing.markup()                                   # escaped, so safe in a template

Colors are CSS classes of `templates/style.css`, so that charts follow the light or dark mode of the page.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from xml.etree import ElementTree

from markupsafe import Markup

from ssd_dist.core.printable import escape, make_printable

Number = int | float
# Longest line of a label or tooltip, in characters.
MAX_LINE = 200


class Svg:
    """A drawing of `width` x `height` pixels; it shrinks on narrow screens. `label` describes it to screen readers."""

    def __init__(self, width: Number, height: Number, label: str, class_: str = "chart") -> None:
        self._root = ElementTree.Element(
            "svg",
            {
                "viewBox": f"0 0 {_format_length(width)} {_format_length(height)}",
                "width": _format_length(width),
                "height": _format_length(height),
                "role": "img",
                "aria-label": _make_printable(label),
                "class": class_,
            },
        )

    def add(self, tag: str, text: str = "", tooltip: str = "", **attributes: str | Number) -> None:
        """Adds an element.

        Args:
          tag: name of the element.
          text: its content.
          tooltip: shown when the pointer is over the element.
          **attributes: `class_` sets class and `stroke_width` sets stroke-width; numbers are written with two decimals.
        """
        names = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        element = ElementTree.SubElement(
            self._root,
            tag,
            {name: escape(value) if isinstance(value, str) else _format_length(value) for name, value in names.items()},
        )
        element.text = _make_printable(text)
        if tooltip:
            ElementTree.SubElement(element, "title").text = _make_printable(tooltip)

    def markup(self) -> Markup:
        """Returns the drawing as HTML."""
        # Safe: ElementTree has escaped every text and attribute.
        return Markup(ElementTree.tostring(self._root, encoding="unicode"))


@dataclass(frozen=True)
class Scale:
    """Maps values `low`..`high` to pixels `start`..`end`, on a logarithmic axis if `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Returns the pixel of a value; values outside the range are clipped to its ends."""
        transform: Callable[[float], float] = math.log10 if self.log else float
        low, high = transform(self.low), transform(self.high)
        share = (transform(max(value, self.low) if self.log else value) - low) / (high - low or 1.0)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def ticks(self, count: int = 4) -> list[float]:
        """Returns about `count` round values within the range."""
        if not self.log:
            return choose_ticks(self.low, self.high, count)
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        if last - first >= 2:
            return [10.0**power for power in range(first, last + 1, max(1, (last - first) // count))]
        steps = [float(f"{digit}e{power}") for power in range(first - 1, last + 1) for digit in (1, 2, 3, 5)]
        return [step for step in steps if self.low <= step * (1 + 1e-9) and step <= self.high * (1 + 1e-9)]


def choose_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Returns about `count` multiples of 1, 2, 2.5 or 5 times a power of ten within low..high."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def format_number(value: float) -> str:
    """Formats a number briefly: 1,200; 0.35; 4e-5; 12k."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.4g}k"
    if size >= 1e3:
        return f"{value:,.0f}"
    if 0 < size < 1e-3:
        mantissa, power = f"{value:.1e}".split("e")
        return f"{float(mantissa):g}e{int(power)}"
    return f"{value:.3g}"


def _format_length(value: Number) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _make_printable(text: str) -> str:
    """Escapes characters that XML or UTF-8 cannot represent, and shortens each line."""
    return "\n".join(make_printable(line, MAX_LINE) for line in text.split("\n"))
