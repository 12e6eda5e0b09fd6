"""Compares file names as people and tools write them: with slashes of any system, in any case and Unicode form."""

import posixpath
import unicodedata
from urllib.parse import unquote


def fold_name(path: str) -> str:
    """Returns the form in which names are equal that differ only in the case of letters or in their Unicode form.

    Some systems store accented letters as two characters (NFD) or ignore case, and archives carry such names to others.
    """
    return unicodedata.normalize("NFC", path).casefold()


def fold_address(path: str) -> str:
    """Returns the form of a name that may be a part of the address of a web page: percent-encoded letters decoded."""
    return fold_name(unquote(path))


def base_name(path: str) -> str:
    """Returns the file name of a path that was written on any operating system."""
    return posixpath.basename(path.replace("\\", "/"))


def stem_of(path: str) -> str:
    """Returns the name of a file without its folder and its suffix."""
    return posixpath.splitext(posixpath.basename(path))[0]
