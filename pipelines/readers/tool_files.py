"""Describes a format of annotation files, and recognizes its files by their beginning."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipelines import beam_storage
from pipelines.readers.folder import Folder
from pipelines.readers.parsed_image import ParsedImage
from pipelines.text_encoding import decode_head

# How much of a file is read to recognize its format, and how many files of a folder are compared with its images.
HEAD_BYTES = 1 << 16
EXAMPLES = 20
# A longer beginning of JSON files, whose keys may have any order: one image can have hundreds of objects.
LONG_HEAD_BYTES = 1 << 22
# If at least so many of the first files of a folder, and this share of them, are in the format, damaged files are, too.
FEWEST_ALIKE, SHARE_ALIKE = 5, 0.8

# A function of the bytes of a file. The parsers of formats with `class_files` also take the argument `names`.
Parser = Callable[..., Iterable[ParsedImage]]


@dataclass(frozen=True)
class ToolFormat:
    """One format.

    Attributes:
      title: the tool and its export, for messages.
      suffix: suffix of the annotation files, in lower case.
      recognize: returns whether a file with this beginning is in the format.
      parse: parses a whole file; raises ValueError with a reason if the file is not in the format.
      is_per_image: whether a file describes one image, the one with its stem.
      class_files: patterns of the names of files that list the class names, one per line.
      other_name: returns the name that an image file may have instead of the name in the annotation.
      to_stored_name: returns the name under which the tool stores a file; names of files are compared in this form if
        no file has the name in the annotation.
      list_images: yields the images of a whole file without their objects, for formats that give images a split.
    """

    title: str
    suffix: str
    recognize: Callable[[str], bool]
    parse: Parser
    is_per_image: bool = False
    class_files: tuple[str, ...] = ()
    other_name: Callable[[str], str] = str
    to_stored_name: Callable[[str], str] = str
    list_images: Parser | None = None


def select_recognized(folder: Folder, names: list[str], tool_format: ToolFormat) -> list[str]:
    """Returns the files in the format. If none of the first files is, the others are not read.

    If most of them are, as with VoTT's file per image, damaged files are included, so that they are reported.
    """
    examples = names[:EXAMPLES]
    first = [name for name in examples if is_recognized(folder.join(name), tool_format)]
    if not first:
        return []
    own = {*first, *(name for name in names[EXAMPLES:] if is_recognized(folder.join(name), tool_format))}
    if len(first) >= FEWEST_ALIKE and len(first) >= SHARE_ALIKE * len(examples):
        own |= {name for name in names if name not in own and _is_damaged(folder.join(name))}
    return [name for name in names if name in own]


def is_recognized(path: str, tool_format: ToolFormat) -> bool:
    """Returns whether a file has the suffix of a format, and its beginning is in the format."""
    return path.lower().endswith(tool_format.suffix) and _recognize(path, tool_format) is True


def is_other_file(path: str, tool_format: ToolFormat) -> bool:
    """Returns whether a file has content that is not in the format."""
    return _recognize(path, tool_format) is False


def read_names(path: str, parse: Parser) -> list[str]:
    """Returns the names of the first images in a file."""
    try:
        return [image.filename for image, _ in zip(parse(beam_storage.read_item(path)), range(EXAMPLES), strict=False)]
    except (*beam_storage.LASTING, ValueError):
        return []


def explain_unsupported(path: str, kinds: Iterable[tuple[str, Callable[[str], bool], str]]) -> str:
    """Returns what a file is, if it is in one of the unsupported formats; otherwise an empty string.

    Args:
      path: the file.
      kinds: suffix, test of the beginning of a file, and explanation of each unsupported format.
    """
    try:
        head = _read_head(path)
    except beam_storage.UNREADABLE:
        return ""
    return next((text for suffix, test, text in kinds if path.lower().endswith(suffix) and test(head)), "")


def _recognize(path: str, tool_format: ToolFormat) -> bool | None:
    """Returns whether the beginning of a file is in the format; None if the file is empty or cannot be read."""
    try:
        head = _read_head(path)
        if not head:
            return None
        is_json = head.startswith(("{", "["))
        return tool_format.recognize(head) or (is_json and tool_format.recognize(_read_head(path, LONG_HEAD_BYTES)))
    except beam_storage.UNREADABLE:
        return None


def _is_damaged(path: str) -> bool:
    """Returns whether a file is empty, or is not the JSON that its suffix promises."""
    try:
        data = beam_storage.read_item(path)
        if data.strip() and path.lower().endswith(".json"):
            json.loads(data)
        return not data.strip()
    except (*beam_storage.LASTING, ValueError):
        return True


def _read_head(path: str, size: int = HEAD_BYTES) -> str:
    with beam_storage.open_input(path) as stream:
        return decode_head(stream.read(size)).strip()
