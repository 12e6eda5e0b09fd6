"""Which class has which label: from the categories met in the data, or as a file or the manifest fixes it."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from pipelines.annotations import Category, Problem, readable
from ssd_dist.core.errors import DataError


@dataclass(frozen=True)
class ClassRules:
    """What the flags say about classes; `fixed` names come from `--classes` or from an existing manifest."""

    fixed: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClassTable:
    """The classes in the order of their labels, which count from 1, and the name behind each category key."""

    names: tuple[str, ...]
    name_by_key: dict[str, str]
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def find(self, key: str) -> tuple[int, str] | Problem:
        """Label and name of a category, or why it has none."""
        return self._found.get(key) or Problem(
            "unknown_class", f"the annotation's category {key!r} is not among its categories"
        )

    def unknown(self, keys: Iterable[str]) -> set[str]:
        """The names of those categories that have one, but no label, though no rule leaves them out."""
        found = {key: self.find(key) for key in keys if key in self.name_by_key}
        return {self.name_by_key[key] for key, value in found.items() if value[0] == "unknown_class"}

    @cached_property
    def _found(self) -> dict[str, tuple[int, str] | Problem]:
        labels = {name: label for label, name in enumerate(self.names, start=1)}
        return {key: self._find_name(name, labels) for key, name in self.name_by_key.items()}

    def _find_name(self, name: str, labels: dict[str, int]) -> tuple[int, str] | Problem:
        if name in self.exclude or (self.include and name not in self.include):
            return Problem("excluded_class", f"class {name!r} is left out by --include_classes or --exclude_classes")
        if name in labels:
            return labels[name], name
        return Problem("unknown_class", f"class {name!r} is none of this data set's ({', '.join(self.names):.200})")


def build_class_table(categories: Iterable[Category], rules: ClassRules) -> ClassTable:
    """Orders the classes met in the data, or takes the fixed order, and applies inclusion and exclusion.

    A fixed order keeps its labels whatever is left out.

    Raises:
      DataError: if no class is left, a rule names one that does not exist, or one category has two names.
    """
    known = {category._replace(name=readable(category.name)) for category in categories}
    met = sorted(known, key=lambda category: (category.order, category.name, category.key))
    name_by_key: dict[str, str] = {}
    for category in met:
        if name_by_key.setdefault(category.key, category.name) != category.name:
            raise DataError(
                f"category {category.key.rpartition('/')[2]} is called both {name_by_key[category.key]!r} and "
                f"{category.name!r}; give each class an id of its own"
            )
    names = list(rules.fixed or dict.fromkeys(category.name for category in met))
    for name in (*rules.include, *rules.exclude):
        if name not in names and not any(category.name == name for category in met):
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the data has {', '.join(names[:20]) or 'none'}"
            raise DataError(f"--include_classes or --exclude_classes names an unknown class {name!r}; {hint}")
    if not rules.fixed:
        names = [n for n in names if n not in rules.exclude and (not rules.include or n in rules.include)]
    if not names and met:
        raise DataError("no class is left: --include_classes and --exclude_classes keep none of them")
    if not names:
        raise DataError("no class is left: the annotations name none; check --input, --input_format and --source_split")
    return ClassTable(tuple(names), name_by_key, rules.include, rules.exclude)


def parse_class_file(text: str, path: str) -> tuple[str, ...]:
    """Class names, one a line; empty lines do not count.

    Raises:
      DataError: if a name appears twice or there is none.
    """
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not names:
        raise DataError(f"{path} holds no class names; write one a line")
    twice = first_duplicate(names)
    if twice is not None:
        raise DataError(f"{path} names class {twice!r} twice; take one out")
    return names


def first_duplicate(names: Sequence[str]) -> str | None:
    """The first name that is there already, if any."""
    return next((name for index, name in enumerate(names) if name in names[:index]), None)
