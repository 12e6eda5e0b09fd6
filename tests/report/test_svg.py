"""SVG drawings: text is escaped, ticks are round and in range, and charts accept any numbers."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ssd_dist.report.box_overlay import OverlayBox, draw_overlay
from ssd_dist.report.charts import MAX_POINTS, Axes, Line, Mark, draw_columns, draw_histogram, draw_line_chart, thin_out
from ssd_dist.report.svg import Scale, Svg, choose_ticks, format_number

AXES = Axes("step", "loss")


@given(st.text())
def test_any_text_is_escaped(text):
    drawing = Svg(10, 10, text)
    drawing.add("text", text, tooltip=text, x=1, class_=text)
    root = ElementTree.fromstring(str(drawing.markup()))
    assert {element.tag for element in root.iter()} <= {"svg", "text", "title"}


def test_markup_in_a_name_is_escaped():
    drawing = Svg(10, 10, 'a"><script>alert(1)</script>')
    drawing.add("text", "<script>", tooltip="<b>")
    assert "<script" not in drawing.markup()
    assert "<b>" not in drawing.markup()


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 8))
def test_ticks_are_in_range_and_evenly_spaced(low, size, count):
    ticks = choose_ticks(low, low + size, count)
    slack = 1e-6 * (abs(low) + size)
    assert all(low - slack <= tick <= low + size + slack for tick in ticks)
    assert 1 <= len(ticks) <= count + 1
    if len(ticks) > 2:
        assert np.diff(ticks) == pytest.approx(ticks[1] - ticks[0], rel=1e-3, abs=slack)


def test_ticks_of_known_ranges():
    assert choose_ticks(0, 1650, 4) == [0, 500, 1000, 1500]
    assert choose_ticks(0, 1, 4) == [0, 0.25, 0.5, 0.75, 1]
    assert Scale(1, 1e6, 0, 1, log=True).ticks(3) == [1, 100, 1e4, 1e6]
    assert Scale(0.05, 1.4, 0, 1, log=True).ticks() == [0.05, 0.1, 0.2, 0.3, 0.5, 1.0]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1650, "1,650"), (32768, "32.77k"), (4e-5, "4e-5"), (0.004, "0.004"), (2.5e6, "2.5M"), (0.25, "0.25")],
)
def test_numbers_are_formatted_briefly(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize(
    "values",
    [[], [1.0], [np.nan], [np.nan, 2.0, np.nan], [np.inf, 1.0], [0.0, 0.0], [-3.0, 5.0], [1e-30, 1e30]],
)
@pytest.mark.parametrize("log", [False, True])
def test_a_chart_of_any_numbers_is_drawn_without_nan(values, log):
    line = Line("name", np.arange(len(values)), np.array(values))
    markup = draw_line_chart("label", [line], Axes("x", "y", log=log), [Mark(0, 1, "best")])
    assert "nan" not in markup
    assert "inf" not in markup


def test_thinning_keeps_ends_and_spikes():
    y = np.zeros(10_000)
    y[7777] = 5.0
    x, kept = thin_out(np.arange(10_000.0), y)
    assert len(x) <= MAX_POINTS + 2
    assert (x[0], x[-1]) == (0, 9999)
    assert kept.max() == 5.0


def test_a_thinned_precision_recall_curve_passes_through_its_points():
    # 300 of 400 objects are found among the first 330 detections; 20,000 false positives of low scores follow.
    outcomes = np.ones(330)
    outcomes[::11] = 0
    outcomes = np.concatenate([outcomes, np.tile([0] * 199 + [1], 100)])
    true_positives = np.cumsum(outcomes)
    recall, precision = true_positives / 400, true_positives / np.arange(1, len(outcomes) + 1)
    x, y = thin_out(recall, precision)
    assert len(x) <= MAX_POINTS + 2
    for index in (50, 100, 200, 300, 329):
        near = y[np.abs(x - recall[index]) <= 0.01]
        assert near.min() - 0.005 <= precision[index] <= near.max() + 0.005


def test_bars_below_the_bound_are_marked():
    markup = draw_histogram("label", np.linspace(0, 1, 5), np.array([1, 2, 3, 4]), AXES, bound=0.5)
    assert markup.count('class="bar wrong"') == 2
    assert markup.count('class="bar"') == 2
    assert draw_columns("label", ["a", "b"], np.zeros(2, int), AXES, wrong=(0,)).count('class="bar wrong"') == 1


@pytest.mark.parametrize(
    ("names", "written"),
    [
        (["a", "b"], ["a", "b"]),
        ([str(5 * n) for n in range(10)] + ["50+"], ["0", "10", "20", "30", "40", "50+"]),
        # Names as wide as the chart: only the last is written.
        (["long " * 12] * 3, ["long " * 12]),
        ([], []),
    ],
)
def test_names_of_columns_do_not_overlap(names, written):
    chart = draw_columns("label", names, np.zeros(len(names), int), Axes("x", "y", width=252))
    found = re.findall(r'class="tick" text-anchor="middle">([^<]+)<', chart)
    assert found == written


def test_the_label_of_a_mark_avoids_the_line_above():
    x = np.arange(3.0)
    low = Line("", x, np.full(3, 0.5))
    axes = Axes("x", "y", y_range=(0, 1))

    def label_y(*lines):
        found = re.search(r'y="([\d.]+)"[^>]*>here<', draw_line_chart("label", lines, axes, [Mark(1, 0.5, "here")]))
        return float(found.group(1))

    alone, crowded = label_y(low), label_y(low, Line("", x, np.full(3, 0.55)))
    assert alone < crowded, "the label is above the mark if there is room, else below"


@pytest.mark.timeout(60)
def test_a_label_of_any_length_is_drawn():
    box = OverlayBox(np.array([0.1, 0.1, 0.9, 0.9]), "s0", "x" * 100_000 + "\x1b\n")
    drawing = draw_overlay(Image.new("RGB", (64, 64)), [box], "y" * 100_000)
    assert len(drawing) < 5000
    assert "\\x1b" in drawing
