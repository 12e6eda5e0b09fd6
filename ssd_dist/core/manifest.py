"""`dataset.json`: what a prepared data set holds and for which anchors and matching it was made."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ssd_dist.core.anchors import feature_sizes, generate_anchors
from ssd_dist.core.config import AnchorConfig, AugmentationConfig, Config, MatchingConfig
from ssd_dist.core.errors import DataError

FORMAT_VERSION = 1
MANIFEST_NAME = "dataset.json"
# The split that is trained on and has views; the others are only ever evaluated, on the plain view.
TRAIN_SPLIT = "train"
# Suppression sets labels apart by two powers of two, each one of 64: `model/postprocessing.py`. Label 0 is background.
MOST_CLASSES = 64 * 64 - 1

Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Shard(_Part):
    """One TFRecord file; `file` is relative to the manifest, `sha256` over the whole file."""

    file: str
    examples: Count
    bytes: Count
    sha256: str


class View(_Part):
    """One rendering of every image of a split: view 0 is plain, the others are cropped or expanded."""

    examples: Count
    shards: tuple[Shard, ...]
    objects_per_class: dict[str, Count]
    positives_per_object: "PositivesPerObject"


class PositivesPerObject(_Part):
    """How many anchors answer for each object; `histogram` maps that number to the objects that have it."""

    mean: float
    minimum: Count
    maximum: Count
    histogram: dict[int, Count]


class CropSettings(_Part):
    """How far the views beyond the plain one reach around the image and into it: `AugmentationConfig`."""

    largest_expansion: float
    smallest_crop: float

    @classmethod
    def of(cls, augmentation: AugmentationConfig) -> "CropSettings":
        """Those that a config asks for."""
        return cls(largest_expansion=augmentation.largest_expansion, smallest_crop=augmentation.smallest_crop)


class Split(_Part):
    """One split. Every image read is in the shards or rejected: `images_read == images + rejected images`.

    `windows` is null where there is but the plain view, or where it was not written down yet.
    """

    images_read: Count
    images: Count
    boxes_read: Count
    boxes: Count
    rejected_images: dict[str, Count]
    rejected_boxes: dict[str, Count]
    clipped_boxes: Count
    image_hashes: str
    views: tuple[View, ...]
    windows: CropSettings | None = None

    def check_crop_settings(self, augmentation: AugmentationConfig, path: str) -> None:
        """Refuses windows that the views do not have.

        Raises:
          DataError: naming what differs and how to mend it.
        """
        wanted = CropSettings.of(augmentation)
        if self.windows not in (None, wanted):
            differs = _differences(self.windows.model_dump(), wanted.model_dump(), "data.augmentation.")
            raise DataError(
                f"the views in {path} were prepared with other windows than the config asks for ({differs}): "
                "prepare again with this config into another --output, or take over what was prepared"
            )


class Leakage(_Part):
    """Images whose bytes appear in two splits; `examples` names a few of them."""

    splits: tuple[str, str]
    images: Count
    examples: tuple[str, ...]


class Manifest(_Part):
    """The whole of `dataset.json`."""

    format_version: int = FORMAT_VERSION
    classes: tuple[str, ...]
    image_size: int
    anchors: dict[str, Any]
    matching: dict[str, Any]
    fingerprint: str
    splits: dict[str, Split]
    leakage: tuple[Leakage, ...] = ()

    def to_json(self) -> str:
        """Readable JSON with a stable order of keys."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, path: str) -> "Manifest":
        """Parses the manifest read from `path`.

        Raises:
          DataError: if it is no manifest or one of another format version.
        """
        try:
            tree = json.loads(text)
        except ValueError as error:  # bytes may also be no UTF-8
            raise DataError(f"{path} is not valid JSON ({error}); prepare the data again") from None
        version = tree.get("format_version") if isinstance(tree, dict) else None
        if version != FORMAT_VERSION:
            raise DataError(
                f"{path} has format version {version!r}, this program reads {FORMAT_VERSION}; "
                "prepare again into another --output"
            )
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            problem = error.errors()[0]
            key = ".".join(map(str, problem["loc"]))
            raise DataError(f"{path}: {key}: {problem['msg']}; prepare the data again") from None

    def check_fits(self, config: Config, path: str) -> None:
        """Refuses a config whose image size, anchors or matching are not those the targets were made for.

        Raises:
          DataError: naming what differs and how to mend it; or if there are more than `MOST_CLASSES`.
        """
        if len(self.classes) > MOST_CLASSES:
            raise DataError(
                f"{path} has {len(self.classes)} classes, and detections of at most {MOST_CLASSES} are told apart: "
                "prepare again without the rare ones (--include_classes or --exclude_classes)"
            )
        input_size = config.model.input_size
        differs = _differences(self.spec(), target_spec(config.anchors, config.matching, input_size))
        # The images are in the shards, and neighbouring sizes share their anchors, and so the fingerprint.
        if self.image_size != input_size:
            raise DataError(
                f"{path} was prepared with other images than the config asks for ({differs}): "
                "prepare again with this config into another --output"
            )
        if config.data.targets == "precomputed" and self.fingerprint != fingerprint(
            config.anchors, config.matching, input_size
        ):
            raise DataError(
                f"{path} was prepared for other targets than the config asks for ({differs}): "
                "prepare again with this config into another --output, or set data.targets: online"
            )

    def spec(self) -> dict[str, Any]:
        """What the targets were made for."""
        return {"image_size": self.image_size, "anchors": self.anchors, "matching": self.matching}

    def split(self, name: str, path: str) -> Split:
        """The split of that name.

        Raises:
          DataError: naming the splits that there are.
        """
        if name not in self.splits:
            raise DataError(
                f"{path} has no split {name!r} (it has {', '.join(self.splits) or 'none'}); "
                f"prepare it with --split={name}, or name another one"
            )
        return self.splits[name]

    def eval_split(self, name: str, path: str) -> str | None:
        """The split to evaluate on: the one named, or for `auto` val, else test, else none.

        Raises:
          DataError: if it is named and not there.
        """
        if name == "auto":
            return next((split for split in ("val", "test") if split in self.splits), None)
        self.split(name, path)
        return name


def target_spec(anchors: AnchorConfig, matching: MatchingConfig, input_size: int) -> dict[str, Any]:
    """All that decides the targets of an image, as plain data."""
    return {
        "image_size": input_size,
        "anchors": {
            **anchors.model_dump(mode="json"),
            "feature_sizes": list(feature_sizes(input_size)),
            "count": len(generate_anchors(anchors, input_size)),
        },
        "matching": matching.model_dump(mode="json"),
    }


def fingerprint(anchors: AnchorConfig, matching: MatchingConfig, input_size: int) -> str:
    """SHA-256 over the anchors' float32 bytes and the matching spec (with the variances of the offsets)."""
    digest = hashlib.sha256(generate_anchors(anchors, input_size).astype("<f4").tobytes())
    variances = {"center_variance": anchors.center_variance, "size_variance": anchors.size_variance}
    digest.update(json.dumps({**matching.model_dump(mode="json"), **variances}, sort_keys=True).encode())
    return digest.hexdigest()


def _differences(prepared: Mapping[str, Any], wanted: Mapping[str, Any], at: str = "") -> str:
    """`anchors.sizes: prepared (0.1, ...), config (0.2, ...)` for each leaf that differs."""
    parts = []
    for key in dict.fromkeys((*prepared, *wanted)):
        old, new = prepared.get(key), wanted.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            parts.append(_differences(old, new, f"{at}{key}."))
        elif old != new:
            parts.append(f"{at}{key}: prepared {old}, config {new}")
    return "; ".join(part for part in parts if part)
