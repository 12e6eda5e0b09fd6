"""SVG as a tree of elements: whatever text goes in, the tree's writer escapes it.

    drawing = Svg(360, 200, "loss by step")
    drawing.add("line", x1=0, y1=0, x2=10, y2=10, class_="rule")
    drawing.markup()                                   # safe to put into a template

Colours are classes of `templates/style.css`, so that a chart follows the page into the dark.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from xml.etree import ElementTree

from markupsafe import Markup

Number = int | float


class Svg:
    """One drawing of `width` x `height` units, shown at that size in pixels where there is room."""

    def __init__(self, width: Number, height: Number, label: str, class_: str = "chart") -> None:
        self._root = ElementTree.Element(
            "svg",
            {
                "viewBox": f"0 0 {_shorten(width)} {_shorten(height)}",
                "width": _shorten(width),
                "height": _shorten(height),
                "role": "img",
                "aria-label": _printable(label),
                "class": class_,
            },
        )

    def add(self, tag: str, text: str = "", hint: str = "", **attributes: str | Number) -> None:
        """Adds an element; `class_` and `stroke_width` mean class and stroke-width, `hint` is shown on hovering."""
        names = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        element = ElementTree.SubElement(
            self._root,
            tag,
            {name: _printable(value) if isinstance(value, str) else _shorten(value) for name, value in names.items()},
        )
        element.text = _printable(text)
        if hint:
            ElementTree.SubElement(element, "title").text = _printable(hint)

    def markup(self) -> Markup:
        """The drawing as HTML."""
        # Not input passed through: the writer has escaped every text and attribute.
        return Markup(ElementTree.tostring(self._root, encoding="unicode"))


@dataclass(frozen=True)
class Scale:
    """Maps `low`..`high` to pixels `start`..`end`, by logarithms if `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value; beyond the ends it stays at the end."""
        bend: Callable[[float], float] = math.log10 if self.log else float
        low, high = bend(self.low), bend(self.high)
        part = (bend(max(value, self.low) if self.log else value) - low) / (high - low or 1.0)
        return self.start + min(max(part, 0.0), 1.0) * (self.end - self.start)

    def ticks(self, count: int = 4) -> list[float]:
        """About `count` round values within the range."""
        if not self.log:
            return nice_ticks(self.low, self.high, count)
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        if last - first >= 2:
            return [10.0**power for power in range(first, last + 1, max(1, (last - first) // count))]
        steps = [float(f"{digit}e{power}") for power in range(first - 1, last + 1) for digit in (1, 2, 3, 5)]
        return [step for step in steps if self.low <= step * (1 + 1e-9) and step <= self.high * (1 + 1e-9)]


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten within low..high, about `count` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def format_number(value: float) -> str:
    """A number as short as it can be read: 1,200; 0.35; 4e-5; 12k."""
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


def _shorten(value: Number) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _printable(text: str) -> str:
    """The text without the control characters and surrogates that no XML or UTF-8 can hold."""
    return "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in text)
