"""Parses YAML of unknown origin, in linear time: configs, and the data.yaml of YOLO datasets.

PyYAML's safe loader executes no code, but it accepts aliases that contain themselves or that expand a short file until
it exceeds the memory. It also accepts repeated keys, of which it keeps only the last, and tags whose constructors fail
with arbitrary exceptions. The loaders of this module reject all of these. Every error is a `YamlError` with a message
of one line.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from ssd_dist.core.printable import is_encodable, make_printable

MAX_DEPTH = 100
# PyYAML takes up to 20 seconds per megabyte.
MAX_BYTES = 1_000_000
_TAG = "tag:yaml.org,2002:"
# Text that looks like another type may be marked as text: `!!str 1e-3`.
_ALLOWED_TAGS = (None, "!", f"{_TAG}str", f"{_TAG}seq", f"{_TAG}map")


class YamlError(ValueError):
    """The text is not valid YAML; the message is one line with the place of the problem."""


class _SafeLoader(yaml.SafeLoader):
    """Rejects aliases, tags, repeated keys and deep nesting; reads a date as a string."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Returns the next node."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _error_at(event.start_mark, "aliases (*name) are not supported; repeat the value")
        if event.tag not in _ALLOWED_TAGS:
            tag = event.tag.replace(_TAG, "!!")
            raise _error_at(event.start_mark, f"the tag {tag} is not supported; remove it")
        if isinstance(event, yaml.ScalarEvent) and not is_encodable(event.value):
            raise _error_at(event.start_mark, "the text contains an unpaired surrogate, which is not a valid character")
        if self._depth == MAX_DEPTH:
            raise _error_at(event.start_mark, f"nested more than {MAX_DEPTH} levels deep")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Returns the content of a section."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise _error_at(key_node.start_mark, "a list or section is not a valid key")
            if key in seen:
                raise _error_at(key_node.start_mark, f"key {key!r} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        """Returns an integer; rejects one that needs more than 64 bits, which Python may be unable to print."""
        try:
            value = int(self.construct_yaml_int(node))
        except ValueError:  # more than 4,300 digits
            value = 2**64
        if not -(2**63) <= value < 2**64:
            raise _error_at(node.start_mark, "the integer needs more than 64 bits")
        return value


class TypedLoader(_SafeLoader):
    """Reads booleans and numbers as YAML 1.1 does, with two differences: 1e-3 is a number, and 1:30 is text."""


class TextLoader(_SafeLoader):
    """Reads every scalar as text, except decimal integers and null: `[yes, 1.5, 0x10]` are three class names."""


def parse_yaml(text: str, loader: type[_SafeLoader]) -> Any:
    """Returns the content of a YAML text.

    Args:
      text: the YAML text.
      loader: `TypedLoader` or `TextLoader`.

    Raises:
      YamlError: if the text is not valid.
    """
    try:
        parser = loader(text)
    except yaml.reader.ReaderError as error:
        place = f"line {text.count(chr(10), 0, error.position) + 1}"
        raise YamlError(f"{place}: the character U+{ord(text[error.position]):04X} is not allowed") from None
    try:
        return parser.get_single_data()
    except yaml.MarkedYAMLError as error:
        problem = ", ".join(filter(None, (error.context, error.problem)))
        raise YamlError(_describe(error.problem_mark, problem)) from None
    except (ValueError, OverflowError) as error:
        # An escape sequence such as "\\UFFFFFFFF", or the number of a version with too many digits.
        raise YamlError(_describe(parser.get_mark(), str(error))) from None
    finally:
        parser.dispose()


def _error_at(mark: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _describe(mark: yaml.Mark | None, problem: str) -> str:
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return place + make_printable(problem, 300)


def _set_scalars(loader: type[_SafeLoader], *kept: str, **patterns: str) -> None:
    """Sets how unquoted scalars are typed: by PyYAML's rules for the types `kept`, and by `patterns`, one per type."""
    loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_TAG) in kept]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for name, pattern in patterns.items():
        loader.add_implicit_resolver(_TAG + name, re.compile(f"^(?:{pattern})$"), list("-+.0123456789"))


_SafeLoader.add_constructor(f"{_TAG}int", _SafeLoader.construct_integer)
_set_scalars(
    TypedLoader,
    "bool",
    "null",
    int=r"[-+]?(?:0b[01][01_]*|0x[0-9a-fA-F][0-9a-fA-F_]*|0[0-7_]*|[1-9][0-9_]*)",
    float=r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)"
    r"|\.(?:nan|NaN|NAN)",
)
# At most 18 digits, so that the number equals the text.
_set_scalars(TextLoader, "null", int=r"0|-?[1-9][0-9]{0,17}")
