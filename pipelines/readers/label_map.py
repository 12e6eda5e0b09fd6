"""Reads label maps of the TF Object Detection API: the class names of the numbers in TFRecord files.

    item { id: 1 name: 'bolt' display_name: "Bolt" }

Format: the text format of the message StringIntLabelMap. `display_name` is preferred: the `name` of COCO and Open
Images is an identifier such as /m/01g317.
"""

import re

ITEM = re.compile(r"\bitem\s*:?\s*\{((?:[^{}'\"]|'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|\{[^{}]*\})*)\}")
QUOTED = r"(?:'((?:\\.|[^'\\])*)'|\"((?:\\.|[^\"\\])*)\")"


def parse_label_map(text: str) -> dict[int, str]:
    """Returns the names of the classes by their number; items without a number or a name are omitted."""
    text = re.sub(r"(?m)^\s*#.*$", "", text)
    names: dict[int, str] = {}
    for match in ITEM.finditer(text):
        # Nested messages, such as keypoints, have ids of their own.
        fields = re.sub(rf"({QUOTED})|\{{[^{{}}]*\}}", lambda found: found[1] or "", match[1])
        # Longer numbers are no labels, which have 64 bits.
        number = re.search(r"\bid\s*:\s*(\d{1,18})(?!\d)", fields)
        name = _find_text(fields, "display_name") or _find_text(fields, "name")
        if number and name:
            names[int(number[1])] = name
    return names


def _find_text(fields: str, key: str) -> str:
    match = re.search(rf"(?<!\w){key}\s*:\s*{QUOTED}", fields)
    return _unescape(match[1] or match[2] or "") if match else ""


def _unescape(text: str) -> str:
    r"""Replaces `\'`, `\n` and bytes in octal, as protobuf writes letters other than ASCII."""
    plain = {b"n": b"\n", b"t": b"\t", b"r": b"\r"}

    def replace(match: re.Match[bytes]) -> bytes:
        value = match[1]
        return bytes([int(value, 8) & 0xFF]) if value.isdigit() else plain.get(value, value)

    return re.sub(rb"\\([0-7]{1,3}|.)", replace, text.encode()).decode("utf-8", "replace")
