"""The variants and the datasets of the study; each variant changes one setting."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """A change of the recipe.

    Attributes:
      name: the row of the table; results.jsonl contains it.
      overrides: overrides of the config for training.
      prepare: overrides that the shards depend on, for prepare and training.
      fit_anchors: whether to use the anchors that `ssd-inspect --fit_anchors` fits to the data.
    """

    name: str
    overrides: tuple[str, ...] = ()
    prepare: tuple[str, ...] = ()
    fit_anchors: bool = False


BASE = Variant("the recipe as it is")
ONE_CHANGE = (
    BASE,
    Variant("1 view", prepare=("data.views=1",)),
    Variant("16 views", prepare=("data.views=16",)),
    Variant("online targets", ("data.targets=online",)),
    Variant("one_to_one", prepare=("matching.policy=one_to_one",)),
    Variant("no EMA", ("ema.enabled=false",)),
    Variant("EMA decay 0.9", ("ema.decay=0.9",)),
    Variant("global mining", ("mining.scope=global",)),
    Variant("mining ratio 1", ("mining.ratio=1.0",)),
    Variant("mining ratio 10", ("mining.ratio=10.0",)),
    Variant("backbone lr x 0.1", ("backbone.lr_scale=0.1",)),
    Variant("head ssd", ("model.head=ssd",)),
    Variant("SGD 0.01", ("optimizer.name=sgd", "optimizer.lr=0.01")),
    Variant("batch norm in groups of 8", ("model.batch_norm_group=8",)),
    Variant("batch norm in groups of 4", ("model.batch_norm_group=4",)),
    Variant("label smoothing 0.1", ("loss.label_smoothing=0.1",)),
    Variant("fitted anchors", fit_anchors=True),
    Variant("lr 0.002", ("optimizer.lr=0.002",)),
)
# Changes that inspection of the blood cell dataset suggested.
MORE_CHANGES = (
    Variant("smooth L1 beta 0.11", ("loss.beta=0.11",)),
    Variant("localization weight 2", ("loss.localization_weight=2.0",)),
    Variant("flips upside down too", ("data.augmentation.flip_vertical=true",)),
    Variant("no expansion", prepare=("data.augmentation.largest_expansion=1.0",)),
    Variant("batches of 8", ("train.global_batch_size=8", "model.batch_norm_group=8")),
)
LONG_RUNS = (
    BASE,
    Variant("1 view", prepare=("data.views=1",)),
    Variant("online targets", ("data.targets=online",)),
    Variant("batch norm in groups of 8", ("model.batch_norm_group=8",)),
)


@dataclass(frozen=True)
class Dataset:
    """A real dataset and its variants.

    Attributes:
      name: name of the dataset and of its recipe, NAME.yaml.
      flags: flags of prepare.
      splits: the train and evaluation splits, as (name in the output, name in the source).
      variants: the variants to train.
      focus: the class whose AP50 is compared; "" for the mean AP. Used where the other classes have too few objects.
    """

    name: str
    flags: tuple[str, ...]
    splits: tuple[tuple[str, str], tuple[str, str]]
    variants: tuple[Variant, ...]
    focus: str = ""


BCCD = (("--input_format=voc", "--input={shared}/data/bccd/BCCD"), (("train", "trainval"), ("test", "test")))
COCO10 = (
    (
        "--input_format=yolo", "--input={shared}/data/coco128",
        # The 10 most frequent classes in the labels of train2017: from 261 persons to 20 handbags.
        "--include_classes=person,car,cup,chair,book,bowl,carrot,spoon,teddy bear,handbag",
    ),
    (("train", "train2017"), ("val", "val2017")),
)  # fmt: skip
# The recipe of each dataset is in this folder.
DATASETS = (
    Dataset("bccd", *BCCD, ONE_CHANGE + MORE_CHANGES),
    Dataset("coco10", *COCO10, ONE_CHANGE, focus="person"),
    Dataset("bccd_long", *BCCD, LONG_RUNS),
)
SEEDS = (0, 1, 2)
