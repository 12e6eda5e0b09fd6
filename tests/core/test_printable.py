"""Tests that any text becomes one short printable line."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd_dist.core.printable import NAME_LENGTH, escape, join_names, make_printable, print_line, shorten


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nerror: b", "a\\nerror: b"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x9b31m", "\\x9b31m"),  # the control sequence introducer in one character
        ("a\r\tb\x00\x7f", "a\\r\\tb\\x00\\x7f"),
        ("\u2028\u2029\x85", "\\u2028\\u2029\\x85"),  # str.splitlines() splits here
        ("\u202egpj.exe", "\\u202egpj.exe"),  # reverses the direction of the text
        ("caf\udce9.jpg", "caf\\udce9.jpg"),  # a file name that is not UTF-8
        ("köter 猫 \u3000 می\u200cخواهم 👩\u200d🔬", "köter 猫 \u3000 می\u200cخواهم 👩\u200d🔬"),
        ("C:\\new [red] <b>", "C:\\new [red] <b>"),
    ],
)
def test_unprintable_characters_are_escaped(text, expected):
    assert escape(text) == expected


def test_a_long_text_keeps_its_beginning_and_its_end():
    text = make_printable("config.yaml: " + "x" * 1_000_000 + "; remove it")
    assert len(text) == 1000
    assert text.startswith("config.yaml: xxx")
    assert text.endswith("xxx; remove it")
    assert text.count("…") == 1
    assert shorten("12345", 5) == "12345"
    assert shorten("123456", 5) == "123…6"


def test_each_name_of_a_list_is_shortened():
    listed = join_names(["cat", "\x1b" * 10_000, "dog"])
    assert listed.startswith("cat, \\x1b")
    assert listed.endswith(", dog")
    assert len(listed) == len("cat, , dog") + NAME_LENGTH


@given(st.text(st.characters(), max_size=50), st.integers(1, 100))
def test_any_text_becomes_one_line_of_limited_length(text, length):
    line = make_printable(text, length)
    assert len(line) <= length
    assert len(line.splitlines()) <= 1
    line.encode()
    assert make_printable(line, length) == line, "printing an escaped text escapes nothing again"


def test_a_line_ends_with_its_only_line_break():
    file = io.StringIO()
    print_line("a\nb\n", file)
    assert file.getvalue() == "a\\nb\\n\n"
