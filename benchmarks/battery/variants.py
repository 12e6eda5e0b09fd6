"""The variants of the battery: each is a set of overrides of what `ssd-fit` chooses."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """A change of what `ssd-fit` chooses.

    Attributes:
      name: the row of the table; results.jsonl contains it.
      overrides: `a.b=c` overrides.
      config: a config file of this folder, whose keys are not chosen.
    """

    name: str
    overrides: tuple[str, ...] = ()
    config: str = ""


# configs/base.yaml of commit 23244a9: ssd-fit chooses only the number of steps and the evaluations.
BEFORE = Variant("before", config="before.yaml")
AFTER = Variant("ssd-fit")
# Each changes one choice.
ALTERNATIVES = (
    Variant("no frozen blocks", ("backbone.frozen_blocks=0",)),
    Variant("IoU 0.5 and 0.4", ("matching.positive_iou=0.5", "matching.negative_iou=0.4")),
    Variant("IoU 0.4 and 0.3", ("matching.positive_iou=0.4", "matching.negative_iou=0.3")),
    Variant("SSD's crops", ("data.augmentation.largest_expansion=4.0", "data.augmentation.smallest_crop=0.3")),
    Variant("milder crops", ("data.augmentation.largest_expansion=1.2", "data.augmentation.smallest_crop=0.75")),
    Variant("1 copy", ("data.views=1",)),
    Variant("4 copies", ("data.views=4",)),
    Variant("no repeated images", ("data.repeat_threshold=0.0",)),
    Variant("localization weight 2", ("loss.localization_weight=2.0",)),
    Variant("learning rate 0.001", ("optimizer.lr=1e-3",)),
    Variant("weight decay 0.05", ("optimizer.weight_decay=0.05",)),
    *(Variant(f"{pixels} pixels", (f"model.input_size={pixels}",)) for pixels in (224, 300, 400, 512)),
    Variant("batches of 8", ("train.global_batch_size=8",)),
)
# Only width 1.0 has ImageNet weights in `$SSD_DIST_SHARED`, so all widths are compared from random weights.
RANDOM_WEIGHTS = ("backbone.weights=none", "backbone.frozen_blocks=0", "model.input_size=300")
WIDTHS = tuple(
    Variant(f"width {width}, random weights", (*RANDOM_WEIGHTS, f"model.width={width}"))
    for width in (0.35, 0.5, 0.75, 1.0, 1.4)
)
# `{detector}` is a detector of three other datasets of the battery.
FROM_DETECTOR = Variant("from a detector", ("model.init_from={detector}",))
VARIANTS = (BEFORE, AFTER, *ALTERNATIVES, *WIDTHS, FROM_DETECTOR)
