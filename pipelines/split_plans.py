"""Plans which split of a source is written under which name, if the flags name none."""

from dataclasses import dataclass
from typing import Any

from pipelines.readers.splits import WHOLE, Found, group_by_output

# Shares of a source without splits. A source with a training split but no validation split gives the second share of
# its training split to validation.
DEFAULT_SHARES = (("train", 0.8), ("val", 0.2))


@dataclass(frozen=True)
class SplitPlan:
    """One split to write.

    Attributes:
      name: its name in the output.
      source_split: its name in the source; empty for a source without splits.
      shares: the shares by which the split of the source is divided; empty to read all of it.
      reads_all_names: whether `source_split` is a name in the output, see `Source`.
      is_optional: whether the split is omitted if it contains no usable image.
    """

    name: str
    source_split: str
    shares: tuple[tuple[str, float], ...] = ()
    is_optional: bool = False
    reads_all_names: bool = False


def plan_splits(found: Found[Any], is_divided: bool = True) -> list[SplitPlan]:
    """Returns the splits to write if the flags name none.

    Every split of the source is written, `valid`, `validation` and `val2017` as `val`, see `group_by_output`. A split
    that consists of other splits is omitted. A source without a validation split gives a share of its training split to
    validation, and a source without splits is divided, both by a hash of the image id, unless `is_divided` is false.
    """
    if not found.names:
        if not is_divided:
            return [SplitPlan("train", WHOLE)]
        return _divide(WHOLE)
    plans = [
        SplitPlan(output, names[0] if len(names) == 1 else output, reads_all_names=len(names) > 1)
        for output, names in group_by_output(found.names).items()
    ]
    train = next((plan for plan in plans if plan.name == "train"), None)
    if not is_divided or train is None or any(plan.name == "val" for plan in plans):
        return plans
    divided = _divide(train.source_split, train.reads_all_names)
    return [*divided, *(plan for plan in plans if plan is not train)]


def _divide(source_split: str, reads_all_names: bool = False) -> list[SplitPlan]:
    """Returns the plans that divide a split by the default shares; a share of a very small source may be empty."""
    return [
        SplitPlan(name, source_split, DEFAULT_SHARES, name != "train", reads_all_names) for name, _ in DEFAULT_SHARES
    ]
