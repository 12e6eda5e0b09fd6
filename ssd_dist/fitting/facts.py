"""The facts from which `ssd-fit` makes its choices: the survey of the dataset, and the machine."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ssd_dist.core.errors import DataError
from ssd_dist.core.manifest import TRAIN_SPLIT


@dataclass(frozen=True)
class DatasetFacts:
    """What the survey of a labeled dataset found.

    Attributes:
      classes: number of classes.
      images: number of images of each split.
      sizes: int64 [M, 2], height and width in pixels of the sampled training images.
      box_sizes: float64 [N, 2], height and width of their objects, as fractions of the image.
      images_per_class: how many of these images have an object of each class.
    """

    classes: int
    images: Mapping[str, int]
    sizes: npt.NDArray[np.int64]
    box_sizes: npt.NDArray[np.float64]
    images_per_class: Mapping[str, int]

    @classmethod
    def read(cls, path: Path) -> "DatasetFacts":
        """Reads the file that `ssd-prepare --survey` wrote.

        Raises:
          DataError: if the dataset has no training split, or no object in it.
        """
        survey = json.loads(path.read_text())
        splits = survey["splits"]
        if TRAIN_SPLIT not in splits:
            raise DataError(
                f"the dataset has no training split (it has {', '.join(splits) or 'none'}); rename its folder or "
                "list file to train, or prepare it with --split=train and use ssd-train"
            )
        train = splits[TRAIN_SPLIT]
        facts = cls(
            classes=len(survey["classes"]),
            images={name: split["images"] for name, split in splits.items()},
            sizes=np.array(train["sizes"], np.int64).reshape(-1, 2),
            box_sizes=np.array(train["box_sizes"], np.float64).reshape(-1, 2),
            images_per_class=train.get("images_per_class", {}),
        )
        if not len(facts.box_sizes):
            raise DataError(
                f"none of the {facts.train_images} training images has a usable object; ssd-prepare reports why"
            )
        return facts

    @property
    def train_images(self) -> int:
        """The number of images of the training split."""
        return self.images[TRAIN_SPLIT]

    @property
    def small_side(self) -> float:
        """The side (root of the area) below which a tenth of the objects are, as a fraction of the image side."""
        return float(np.quantile(np.sqrt(self.box_sizes.prod(axis=1)), 0.1))

    def count_rare_classes(self, share: float) -> int:
        """Returns the number of classes in less than `share` of the sampled images, and much rarer than the others.

        They are in less than half as many images as the most frequent class. A class of one image does not count: it is
        probably an error, and cannot be learned.
        """
        counts = self.images_per_class.values()
        limit = min(share * len(self.sizes), max(counts, default=0) / 2)
        return sum(1 < count < limit for count in counts)

    @property
    def image_side(self) -> int:
        """The median of the longer sides of the images, in pixels."""
        return int(np.median(self.sizes.max(axis=1)))


@dataclass(frozen=True)
class MachineFacts:
    """The machine that trains.

    Attributes:
      gpus: number of GPUs.
      memory: bytes of main memory that this process may use.
      missing_weights: why the ImageNet weights cannot be loaded; empty if they can.
    """

    gpus: int
    memory: int
    missing_weights: str = ""


@dataclass(frozen=True)
class TrainingCost:
    """The cost of a training step.

    Attributes:
      bytes_per_image: memory of the activations of one image.
      model_bytes: size of one copy of the weights.
      seconds_per_image: measured time per image, if all devices share the batch; None if there is no time limit.
    """

    bytes_per_image: int
    model_bytes: int
    seconds_per_image: float | None = None


@dataclass(frozen=True)
class TimeLimit:
    """The limit of the whole command, `--minutes`.

    Attributes:
      spent: seconds since the start of the stage that makes the choices.
      left: seconds until the limit.
    """

    spent: float
    left: float
