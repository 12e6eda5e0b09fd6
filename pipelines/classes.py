"""Assigns labels to classes: in the order of the annotations, of a class file, or of an existing manifest."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from pipelines.annotations import Category, Problem, to_valid_text
from ssd_dist.core.errors import DataError


@dataclass(frozen=True)
class ClassRules:
    """The class names that the flags set, include and exclude.

    Attributes:
      fixed: all class names in the order of their labels, from `--classes` or an existing manifest; may be empty.
      include: the classes to keep; empty keeps all.
      exclude: the classes to omit.
    """

    fixed: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClassTable:
    """The classes of the dataset.

    Attributes:
      names: class names in the order of their labels, which start at 1.
      name_by_key: class name of each category key.
      include: the classes to keep; empty keeps all.
      exclude: the classes to omit.
    """

    names: tuple[str, ...]
    name_by_key: dict[str, str]
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def find(self, key: str) -> tuple[int, str] | Problem:
        """Returns (label, name) of a category, or the problem for which its boxes are rejected."""
        return self._found.get(key) or Problem(
            "unknown_class", f"category {key!r} of the box is not defined in the annotations"
        )

    def unknown(self, keys: Iterable[str]) -> set[str]:
        """Returns the names of the given categories that are neither in the class table nor excluded by a rule."""
        found = {key: self.find(key) for key in keys if key in self.name_by_key}
        return {self.name_by_key[key] for key, value in found.items() if value[0] == "unknown_class"}

    @cached_property
    def _found(self) -> dict[str, tuple[int, str] | Problem]:
        labels = {name: label for label, name in enumerate(self.names, start=1)}
        return {key: self._find_name(name, labels) for key, name in self.name_by_key.items()}

    def _find_name(self, name: str, labels: dict[str, int]) -> tuple[int, str] | Problem:
        if name in self.exclude or (self.include and name not in self.include):
            return Problem("excluded_class", f"class {name!r} is excluded by --include_classes or --exclude_classes")
        if name in labels:
            return labels[name], name
        return Problem("unknown_class", f"class {name!r} is not in the dataset ({', '.join(self.names):.200})")


def build_class_tables(
    categories: Iterable[Category], splits: Sequence[int], rules: ClassRules
) -> dict[int, ClassTable]:
    """Builds the class table of each split; the names and labels are the same in all of them.

    If `rules` fixes the class names, excluding a class does not renumber the others. Without any class the tables are
    empty, and `missing_classes.py` explains why.

    Args:
      categories: all classes that occur in the annotations.
      splits: the numbers of the splits.
      rules: the class names that the flags set, include and exclude.

    Raises:
      DataError: if the rules exclude all classes, a rule contains an unknown class, or one category has two names.
    """
    known = {category._replace(name=to_valid_text(category.name)) for category in categories}
    found = sorted(known, key=lambda category: (category.order, category.name, category.key, category.split))
    names = list(rules.fixed or dict.fromkeys(category.name for category in found))
    for name in (*rules.include, *rules.exclude):
        if name not in names and not any(category.name == name for category in found):
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the dataset has {', '.join(names[:20]) or 'no classes'}"
            raise DataError(f"--include_classes or --exclude_classes: unknown class {name!r}; {hint}")
    if not rules.fixed:
        names = [n for n in names if n not in rules.exclude and (not rules.include or n in rules.include)]
    if not all(name.strip() for name in names):
        raise DataError("a class has an empty name; give it one, or fix the names with --classes")
    if not names and found:
        raise DataError("no classes: --include_classes and --exclude_classes exclude all of them; keep at least one")
    return {
        split: ClassTable(
            tuple(names),
            _map_keys_to_names([category for category in found if category.split == split]),
            rules.include,
            rules.exclude,
        )
        for split in splits
    }


def _map_keys_to_names(categories: Iterable[Category]) -> dict[str, str]:
    name_by_key: dict[str, str] = {}
    for category in categories:
        if name_by_key.setdefault(category.key, category.name) != category.name:
            raise DataError(
                f"--input: category {category.key.rpartition('/')[2]} has two names, {name_by_key[category.key]!r} and "
                f"{category.name!r}; give each class its own id in all annotation files"
            )
    return name_by_key


def parse_class_file(text: str, path: str) -> tuple[str, ...]:
    """Parses a file with one class name per line; ignores empty lines.

    Raises:
      DataError: if the file contains no names or a name occurs twice.
    """
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not names:
        raise DataError(f"{path}: the file contains no class names; write one name per line")
    duplicate = find_duplicate(names)
    if duplicate is not None:
        raise DataError(f"{path}: class {duplicate!r} is listed twice; remove one line")
    return names


def find_duplicate(names: Sequence[str]) -> str | None:
    """Returns the first name that occurred before, or None."""
    return next((name for index, name in enumerate(names) if name in names[:index]), None)
