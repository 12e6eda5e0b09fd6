"""Makes text from datasets printable: one terminal line without control characters, shortened if it is very long.

    print_line(f"objects of {name}")       escaped and shortened
    make_printable(name, NAME_LENGTH)      the same for a cell of a table

Names of classes, images and folders come from files of unknown origin. They may contain terminal escape sequences, line
breaks that imitate other messages, characters that reverse the direction of the text, or thousands of characters. Data
files (shards, manifest, rejections) keep such names unchanged.
"""

import sys
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import TextIO

# Longest printed name, and longest printed line, in characters.
NAME_LENGTH = 80
LINE_LENGTH = 1000

# Invisible characters that Persian and Indic names and emoji need; they change no other character.
_JOINERS = "\u200c\u200d"


def make_printable(text: str, length: int = LINE_LENGTH) -> str:
    r"""Returns text for one terminal line: escapes unprintable characters, then shortens it to `length` characters.

    >>> make_printable("a\x1b[31m\nb")
    'a\\x1b[31m\\nb'
    """
    # The first call bounds the time that very long texts take.
    return shorten(escape(shorten(text, length)), length)


def escape(text: str) -> str:
    r"""Replaces each unprintable character by its escape sequence in Python, such as `\n`, `\x1b` or `\u202e`.

    These are control characters, line separators, surrogates (bytes of a file name that are not UTF-8), code points
    that are not characters, and invisible format characters, which include those that change the direction of the text.
    """
    return text if text.isascii() and text.isprintable() else "".join(map(_escape_character, text))


def is_encodable(text: str) -> bool:
    """Returns whether UTF-8 can represent a text: it contains no surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shorten(text: str, length: int) -> str:
    """Replaces the middle of a text that has more than `length` characters by an ellipsis."""
    if len(text) <= length:
        return text
    # Messages begin with the place of the problem and end with its fix.
    end = (length - 1) // 3
    return f"{text[: length - 1 - end]}…{text[len(text) - end :]}"


def join_names(names: Iterable[str]) -> str:
    """Returns names as a printable list, separated by commas; shortens each name."""
    return ", ".join(make_printable(name, NAME_LENGTH) for name in names)


def print_line(text: str, file: TextIO | None = None) -> None:
    """Prints one printable line to `file`, by default stdout, and flushes it."""
    print(make_printable(text), file=sys.stdout if file is None else file, flush=True)


def print_warning(text: str) -> None:
    """Prints a warning to stderr."""
    print_line(f"warning: {text}", sys.stderr)


@lru_cache(maxsize=4096)
def _escape_character(character: str) -> str:
    # Categories: Cc control, Cf format, Cs surrogate, Zl and Zp line and paragraph separator.
    is_unprintable = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in _JOINERS
    # U+FFFE, U+FFFF, U+1FFFE, ...: XML cannot represent the first two.
    is_no_character = ord(character) & 0xFFFE == 0xFFFE
    return character.encode("unicode_escape").decode("ascii") if is_unprintable or is_no_character else character
