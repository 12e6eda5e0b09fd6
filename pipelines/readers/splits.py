"""The splits that a format finds in a dataset, and the choice of one of them."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pipelines.readers.sources import Source
from ssd_dist.core.errors import DataError

LayoutT = TypeVar("LayoutT")

# Names of the same split, by the name that it gets in the output.
SYNONYMS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "validate", "dev"),
    "test": ("test", "testing"),
}
# The year at the end of the name of a split: train2017.
YEAR = re.compile(r"[-_ ]?\d{4}$")
# Key of all images of a dataset, whatever splits it has.
WHOLE = ""


@dataclass(frozen=True)
class Found(Generic[LayoutT]):
    """What a format recognized in one input.

    Attributes:
      tool: the tool and its export, for example "Roboflow COCO export".
      splits: the layouts of each split by its name in the source, in the order of the source. The key `WHOLE` stands
        for all images; a dataset without splits has only this key.
      images: number of image files of each split, as far as it is known from the listing.
      unions: names of splits that consist of other splits, such as VOC's `trainval`.
      notes: facts to announce, one per line.
    """

    tool: str
    splits: Mapping[str, tuple[LayoutT, ...]]
    images: Mapping[str, int] = field(default_factory=dict)
    unions: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The names of the splits, without unions and without `WHOLE`."""
        return [name for name in self.splits if name != WHOLE and name not in self.unions]


def choose_split(found: Found[LayoutT], source: Source, path: str) -> tuple[LayoutT, ...]:
    """Returns the layouts of the split that the flags name.

    `--source_split` must exist under exactly this name. Without it, the split of the output may have another common
    name in the source: `valid` for `val`, `train2017` for `train`. A dataset without splits belongs to any split. With
    `source.reads_all_names`, all splits that get the name in the output are read.

    Raises:
      DataError: if there is none; the message lists the splits of the source.
    """
    wanted = source.split_name
    if source.reads_all_names:
        same = group_by_output(found.names).get(wanted, [] if found.names else [WHOLE])
        if same:
            return tuple(layout for name in same for layout in found.splits[name])
    if wanted in found.splits:
        return found.splits[wanted]
    if wanted == WHOLE:
        return _only_split(found, path)
    if not source.split:
        same = [name for name in found.splits if name != WHOLE and output_split(name) == wanted]
        if len(same) == 1:
            return found.splits[same[0]]
        if not found.names and WHOLE in found.splits:
            return found.splits[WHOLE]
    names = ", ".join(name for name in found.splits if name) or "no splits"
    raise DataError(
        f"--input={path}: no split {wanted!r}; {found.tool} with {names}; set --source_split to one of them"
    )


def choose_in_inputs(
    source: Source,
    find: Callable[[str], Found[LayoutT]],
    share: Callable[[LayoutT, Sequence[LayoutT], Sequence[LayoutT]], LayoutT],
    choose: Callable[[Found[LayoutT], Source, str], Sequence[LayoutT]] = choose_split,
) -> list[LayoutT]:
    """Returns the layouts of the split that the flags name in all inputs.

    Several inputs may use one folder of images, for example that of `--image_dir`.

    Args:
      source: the split to read.
      find: returns the splits in an input.
      share: returns a layout that knows the layouts of the other inputs, and those of earlier inputs.
      choose: returns the layouts of the split in an input.
    """
    found_by_input = {path: find(path) for path in dict.fromkeys((*source.all_inputs, *source.inputs))}
    by_input = {path: [one for own in found.splits.values() for one in own] for path, found in found_by_input.items()}
    layouts: list[LayoutT] = []
    before: list[LayoutT] = []
    for path, found in found_by_input.items():
        others = [one for other, own in by_input.items() if other != path for one in own]
        if path in source.inputs:
            layouts += [share(layout, others, before) for layout in choose(found, source, path)]
        before += by_input[path]
    return layouts


def _only_split(found: Found[LayoutT], path: str) -> tuple[LayoutT, ...]:
    if len(found.splits) == 1:
        return next(iter(found.splits.values()))
    raise DataError(
        f"--split_by: {path} has the splits {', '.join(found.splits)}; pass the one to divide as --source_split"
    )


def group_by_output(names: Iterable[str]) -> dict[str, list[str]]:
    """Returns the splits of a source by the name that they get in the output.

    `val`, `valid` and `validation` together are the split `val`. Of several years, such as train2014 and train2017,
    each keeps its name, because they may contain the same images.

    >>> group_by_output(["train", "valid", "validation", "test2015", "test2017"])
    {'train': ['train'], 'val': ['valid', 'validation'], 'test2015': ['test2015'], 'test2017': ['test2017']}
    """
    outputs = {name: output_split(name) for name in names}
    years = {outputs[name] for name in outputs if YEAR.search(name) and [*outputs.values()].count(outputs[name]) > 1}
    groups: dict[str, list[str]] = {}
    for name, output in outputs.items():
        groups.setdefault(name if output in years else output, []).append(name)
    return groups


def output_split(name: str) -> str:
    """Returns the name that a split of the source gets in the output: `valid` and `val2017` become `val`."""
    plain = YEAR.sub("", name.lower())
    return next((split for split, names in SYNONYMS.items() if plain in names), name)
