"""Reads the lines of text annotations."""

from collections.abc import Iterator

from pipelines.readers.json_values import read_number
from pipelines.text_encoding import decode_text


def read_lines(data: bytes) -> Iterator[tuple[str, str]]:
    """Yields the position and text of each nonempty line.

    Raises:
      ValueError: if the file is not text in UTF-8 or UTF-16.
    """
    for number, line in enumerate(decode_text(data).split("\n"), start=1):
        if line.strip():
            yield f"line {number}", line.strip()


def read_fields(fields: list[str], *names: str) -> list[float]:
    """Returns the numbers at the beginning of the fields.

    Raises:
      ValueError: if there are fewer fields than names, or one is not a finite number.
    """
    if len(fields) < len(names):
        raise ValueError(f"expected {' '.join(names)}, got {' '.join(fields)!r:.100}")
    return [read_number(field, name) for field, name in zip(fields, names, strict=False)]
