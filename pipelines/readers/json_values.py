"""Reads values of a JSON annotation and reports a missing or wrong one with a `ValueError` that names the key."""

import json
import math
from typing import Any

from pipelines.json_stream import parse_integer
from pipelines.text_encoding import UNKNOWN_ENCODING


def load_json(data: bytes | str) -> Any:
    """Returns the value that a JSON file contains; an integer of more than 4,300 digits is infinity.

    Raises:
      ValueError: if the file is not JSON in UTF-8, UTF-16 or UTF-32.
    """
    try:
        try:
            return json.loads(data)
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise
        except ValueError:
            # An integer is too long. Parsing integers in Python takes more time, so it is not the default.
            return json.loads(data, parse_int=parse_integer)
    except RecursionError:
        raise ValueError("not valid JSON: nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError(f"not valid JSON: {UNKNOWN_ENCODING}") from None
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from None


def format_value(value: Any, length: int | None = 100) -> str:
    """Returns the beginning of the value as text, for messages."""
    try:
        return repr(value)[:length]
    except RecursionError:
        return "a deeply nested value"


def read_object(value: Any, description: str) -> dict[str, Any]:
    """Returns the value if it is a JSON object.

    Raises:
      ValueError: if it is anything else.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{description}: expected an object, got {format_value(value)}")
    return value


def read_list(value: Any, description: str) -> list[Any]:
    """Returns the value if it is a JSON array.

    Raises:
      ValueError: if it is anything else.
    """
    if not isinstance(value, list):
        raise ValueError(f"{description}: expected a list, got {format_value(value)}")
    return value


def read_number(value: Any, description: str) -> float:
    """Returns a number, or a string that contains one.

    Raises:
      ValueError: if the value is anything else or not finite.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{description}: expected a finite number, got {format_value(value)}")
    return number


def read_numbers(entry: dict[str, Any], *keys: str) -> list[float]:
    """Returns the numbers of the keys.

    Raises:
      ValueError: if one is missing or not a finite number.
    """
    return [read_number(entry.get(key), key) for key in keys]


def read_point(value: Any, description: str) -> tuple[float, float]:
    """Returns (x, y) from `[x, y]` or `{"x": x, "y": y}`.

    Raises:
      ValueError: if the value is anything else.
    """
    x_and_y = [value.get("x"), value.get("y")] if isinstance(value, dict) else value
    if not isinstance(x_and_y, list) or len(x_and_y) < 2:
        raise ValueError(f"{description}: expected x and y, got {format_value(value)}")
    return read_number(x_and_y[0], description), read_number(x_and_y[1], description)


def read_points(value: Any, description: str) -> list[tuple[float, float]]:
    """Returns a list of (x, y).

    Raises:
      ValueError: if the value is not a list of points.
    """
    return [read_point(item, description) for item in read_list(value, description)]


def read_name(value: Any, description: str) -> str:
    """Returns a name as text; annotation tools also write numbers.

    Raises:
      ValueError: if the value is anything else or empty.
    """
    is_number = isinstance(value, int) and not isinstance(value, bool)
    name = str(value).strip() if is_number or isinstance(value, str) else ""
    if not name:
        raise ValueError(f"{description}: expected a name, got {format_value(value)}")
    return name


def to_text(value: Any) -> str:
    """Returns a string or a number as text; empty for any other value."""
    return str(value) if isinstance(value, str | int | float) else ""


def read_size(height: Any, width: Any) -> tuple[int, int] | None:
    """Returns (height, width) in pixels; None if one is missing or not positive."""
    try:
        size = int(read_number(height, "height")), int(read_number(width, "width"))
    except ValueError:
        return None
    return size if min(size) > 0 else None
