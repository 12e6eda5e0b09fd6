"""Tests the types of YAML scalars, and that invalid texts give one line with the place of the problem."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd_dist.core.yaml_text import TextLoader, TypedLoader, YamlError, parse_yaml

SCALARS = [
    # text, as a config reads it, as a data.yaml reads it
    ("yes", True, "yes"),
    ("off", False, "off"),
    ("true", True, "true"),
    ("null", None, None),
    ("~", None, None),
    ("7", 7, 7),
    ("-7", -7, -7),
    ("'7'", "7", "7"),
    ("007", 7, "007"),
    ("-0", 0, "-0"),
    ("+7", 7, "+7"),
    ("0x10", 16, "0x10"),
    ("1_000", 1000, "1_000"),
    ("9223372036854775807", 2**63 - 1, "9223372036854775807"),
    ("1.50", 1.5, "1.50"),
    ("1e-3", 0.001, "1e-3"),
    (".5", 0.5, ".5"),
    (".inf", float("inf"), ".inf"),
    ("2026-11-25", "2026-11-25", "2026-11-25"),
    ("1:30", "1:30", "1:30"),
    ("=", "=", "="),
    ("<<", "<<", "<<"),
    ("!!str 1e-3", "1e-3", "1e-3"),
]


@pytest.mark.parametrize(("text", "typed", "plain"), SCALARS)
def test_scalars(text, typed, plain):
    for loader, expected in ((TypedLoader, typed), (TextLoader, plain)):
        value = parse_yaml(f"[{text}]", loader)[0]
        assert (value, type(value)) == (expected, type(expected))
        assert list(parse_yaml(f"? {text}\n: 1", loader)) == [expected]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a, *b]", r"^line 1, column 12: aliases"),
        ("a: &a [*a]", r"^line 1, column 8: aliases"),
        ("a: !!binary x", r"^line 1, column 4: the tag !!binary is not supported; remove it$"),
        ("a: !!int x", r"the tag !!int"),
        ("a: !!set {x}", r"the tag !!set"),
        ("a: 1\nb: 2\na: 3", r"^line 3, column 1: key 'a' is given twice$"),
        ("{1: a, 1: b}", r"^line 1, column 8: key 1 is given twice$"),
        ("\ta: 1", r"^line 1, column 1: .*\\t"),
        ("a: 1\nb: \x00", r"^line 2: the character U\+0000 is not allowed$"),
        ("[" * 5000, r"^line 1, column 101: nested more than 100 levels deep$"),
        ("- " * 5000, r"nested more than 100 levels deep$"),
        ("? [a]\n: 1", r"^line 1, column 3: a list or section is not a valid key$"),
        ('"\\UFFFFFFFF"', r"^line 1, column 4: "),
        ('"\\ud800"', r"^line 1, column 1: .*surrogate"),
        ("a\n---\nb", r"^line 2, column 1: .*another document$"),
        ("%YAML 1." + "1" * 5000 + "\n--- a", r"^line 1"),
        ("a: 'x\n", r"^line 2, column 1: .*unexpected end"),
        ("? " + "x" * 5000 + "\n? " + "x" * 5000, r"^line 2, column 3: key 'xxx.*…x*' is given twice$"),
        ("!" + "\u202e" * 9 + " a", r"^line 1"),
    ],
)
def test_invalid_texts_give_one_line_with_the_place(text, message):
    for loader in (TypedLoader, TextLoader):
        with pytest.raises(YamlError, match=message) as caught:
            parse_yaml(text, loader)
        assert len(str(caught.value).splitlines()) == 1
        assert len(str(caught.value)) < 400


@given(st.text(st.sampled_from("a1:-?[]{},#&*!|>'\"%@` \n\t\\x.~<=_eE0\x07é\ud800"), max_size=40))
def test_any_text_gives_a_value_or_a_yaml_error(text):
    for loader in (TypedLoader, TextLoader):
        with contextlib.suppress(YamlError):
            parse_yaml(text, loader)
