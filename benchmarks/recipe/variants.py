"""What the study varies, one thing at a time, and on which data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """A change of the recipe: overrides of the config, of which `prepare` says what the shards depend on.

    With `fit_anchors` the anchors are those that `ssd-inspect --fit_anchors` finds in the data.
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
    Variant("2 replicas", ("cluster.strategy=mirrored", "cluster.logical_cpus=2")),
    Variant("label smoothing 0.1", ("loss.label_smoothing=0.1",)),
    Variant("fitted anchors", fit_anchors=True),
    Variant("lr 0.002", ("optimizer.lr=0.002",)),
)
# What a first look at the blood cells suggested.
MORE_CHANGES = (
    Variant("smooth L1 beta 0.11", ("loss.beta=0.11",)),
    Variant("localization weight 2", ("loss.localization_weight=2.0",)),
    Variant("flips upside down too", ("data.augmentation.flip_vertical=true",)),
    Variant("no expansion", prepare=("data.augmentation.largest_expansion=1.0",)),
    Variant("batches of 8", ("train.global_batch_size=8",)),
)
LONG_RUNS = (
    BASE,
    Variant("1 view", prepare=("data.views=1",)),
    Variant("online targets", ("data.targets=online",)),
    Variant("2 replicas", ("cluster.strategy=mirrored", "cluster.logical_cpus=2")),
)


@dataclass(frozen=True)
class DataSet:
    """Real data and what is varied on it: flags of prepare, splits as (in the output, in the source), variants.

    Where the other classes have too few objects for the mean of all to say anything, `focus` is the class that judges.
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
        # Counted in the labels of train2017: 261 persons to 20 handbags.
        "--include_classes=person,car,cup,chair,book,bowl,carrot,spoon,teddy bear,handbag",
    ),
    (("train", "train2017"), ("val", "val2017")),
)  # fmt: skip
# Each has its recipe beside this file.
DATA_SETS = (
    DataSet("bccd", *BCCD, ONE_CHANGE + MORE_CHANGES),
    DataSet("coco10", *COCO10, ONE_CHANGE, focus="person"),
    DataSet("bccd_long", *BCCD, LONG_RUNS),
)
SEEDS = (0, 1, 2)
