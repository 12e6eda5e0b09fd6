"""Decodes text files in UTF-8, UTF-16 and UTF-32, with or without a byte order mark.

Files in other encodings, such as ISO-8859-1, are rejected: a guess would change names of classes and images.
"""

import json
import re

UNKNOWN_ENCODING = "not a text file in UTF-8 or UTF-16 (unknown encoding); save it as UTF-8"
# An XML declaration is in the first bytes of a file.
DECLARATION_BYTES = 200
LFS_POINTER = "version https://git-lfs"


def detect_encoding(head: bytes) -> str:
    """Returns the encoding that the first bytes of a file show: a byte order mark, or zeros beside ASCII characters."""
    return json.detect_encoding(head)


def decode_head(head: bytes) -> str:
    """Returns the text at the beginning of a file; bytes that are no characters are omitted."""
    return head.decode(detect_encoding(head), "ignore")


def decode_text(data: bytes) -> str:
    """Returns the text of a file.

    Raises:
      ValueError: if the file is not text in a known encoding, or it is a pointer of Git LFS.
    """
    try:
        text = data.decode(detect_encoding(data))
    except UnicodeDecodeError:
        raise ValueError(UNKNOWN_ENCODING) from None
    if text.startswith(LFS_POINTER):
        raise ValueError("the file is a pointer of Git LFS, not the labels; download the content with git lfs pull")
    return text


def decode_xml(data: bytes) -> bytes | str:
    """Returns the input of an XML parser: the text of UTF-16 and UTF-32, whose declaration may state UTF-8.

    Raises:
      ValueError: if the file is not text in the encoding that its first bytes show.
    """
    encoding = detect_encoding(data)
    return data if encoding.startswith("utf-8") else data.decode(encoding)


def explain_invalid(data: bytes, error: Exception) -> str:
    """Returns why an XML file is invalid: its unknown encoding or a Git LFS pointer, or else the parser's message."""
    try:
        decode_text(data)
    except ValueError as reason:
        declared = re.search(rb"encoding=.([\w-]+)", data[:DECLARATION_BYTES])
        return str(reason) if declared is None or declared[1].lower() == b"utf-8" else str(error)
    return str(error)
