"""The manifest `dataset.json`: the contents of a prepared dataset, and the anchors and matching of its targets."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ssd_dist.core.anchors import feature_sizes, generate_anchors
from ssd_dist.core.config import AnchorConfig, AugmentationConfig, Config, MatchingConfig
from ssd_dist.core.errors import DataError
from ssd_dist.core.printable import NAME_LENGTH, escape, is_encodable, make_printable, shorten

FORMAT_VERSION = 1
MANIFEST_NAME = "dataset.json"
# The training split, which may have augmented copies; other splits only have whole images, for evaluation.
TRAIN_SPLIT = "train"
# NMS separates labels by two factors of 64 values each (`model/postprocessing.py`); label 0 is the background.
MOST_CLASSES = 64 * 64 - 1

# At most 63 bits, so that sums of counts and their conversion to float succeed.
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]


def _check_relative_path(path: str) -> str:
    """Rejects a path that may lead out of the folder of the manifest, on any system or object store."""
    parts = path.split("/")
    if not all(parts) or {".", ".."} & {*parts} or "\\" in path or ":" in path or escape(path) != path:
        raise ValueError(
            f"{_show(path)} is not a relative path inside the dataset: it must have neither '..', ':', a backslash, "
            "control characters, nor a '/' at its start or end"
        )
    return path


def is_split_name(name: str) -> bool:
    """Returns whether a split may have this name: a plain folder name."""
    return bool(name) and name not in (".", "..") and not {"/", "\\"} & {*name} and escape(name) == name


def _check_name(name: str) -> str:
    if not is_split_name(name):
        raise ValueError(f"{_show(name)} is not the name of a split: it must be a plain folder name, such as train")
    return name


def _show(text: str) -> str:
    return repr(shorten(text, NAME_LENGTH))


RelativePath = Annotated[str, AfterValidator(_check_relative_path)]
OptionalPath = Annotated[str, AfterValidator(lambda path: path and _check_relative_path(path))]
SplitName = Annotated[str, AfterValidator(_check_name)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Shard(_Part):
    """One TFRecord file; `file` is relative to the manifest, `sha256` over the whole file."""

    file: RelativePath
    examples: Count
    bytes: Count
    sha256: Sha256


class View(_Part):
    """One augmented copy of all images of a split; copy 0 holds the whole images, the others crops and expansions.

    `images_per_class` counts the images with an object of each class, without crowds; null in manifests of earlier
    versions.
    """

    examples: Count
    shards: Annotated[tuple[Shard, ...], Field(min_length=1)]
    objects_per_class: dict[str, Count]
    images_per_class: dict[str, Count] | None = None
    positives_per_object: "PositivesPerObject"

    @model_validator(mode="after")
    def _check_counts(self) -> "View":
        total = sum(shard.examples for shard in self.shards)
        if total != self.examples:
            raise ValueError(f"examples is {self.examples}, but the shards have {total}")
        if max((self.images_per_class or {}).values(), default=0) > total:
            raise ValueError(f"images_per_class counts more images than the {total} examples")
        return self


class PositivesPerObject(_Part):
    """Statistics of the positive anchors per object; `histogram` maps that number to the number of objects."""

    mean: FiniteFloat
    minimum: Count
    maximum: Count
    histogram: dict[Count, Count]


class CropSettings(_Part):
    """Limits of the crops and expansions in the augmented copies, as in `AugmentationConfig`."""

    largest_expansion: FiniteFloat
    smallest_crop: FiniteFloat

    @classmethod
    def from_config(cls, augmentation: AugmentationConfig) -> "CropSettings":
        """Returns the limits of a config."""
        return cls(largest_expansion=augmentation.largest_expansion, smallest_crop=augmentation.smallest_crop)


class Split(_Part):
    """One split. Every image read is in the shards or rejected: `images_read == images + rejected images`.

    `reduced_boxes` counts boxes made from polygons or rotated boxes. `warnings` names likely errors in the annotations.
    `windows` holds the crop settings. It is null without augmented copies and in manifests of earlier versions.
    """

    images_read: Count
    images: Count
    boxes_read: Count
    boxes: Count
    rejected_images: dict[str, Count]
    rejected_boxes: dict[str, Count]
    clipped_boxes: Count
    reduced_boxes: Count = 0
    warnings: tuple[str, ...] = ()
    image_hashes: OptionalPath
    views: Annotated[tuple[View, ...], Field(min_length=1)]
    windows: CropSettings | None = None

    @model_validator(mode="after")
    def _check_sums(self) -> "Split":
        for what, read, kept, rejected in (
            ("images", self.images_read, self.images, self.rejected_images),
            ("boxes", self.boxes_read, self.boxes, self.rejected_boxes),
        ):
            if read != kept + sum(rejected.values()):
                raise ValueError(f"{what}_read is {read}, but {kept} were kept and {sum(rejected.values())} rejected")
        return self

    def count_images_per_class(self, path: str) -> dict[str, int]:
        """Returns the number of images with an object of each class, in the order of the labels.

        Raises:
          DataError: if the manifest is of an earlier version, which did not count them.
        """
        counts = self.views[0].images_per_class
        if counts is None:
            raise DataError(
                f"data.repeat_threshold needs the number of images of each class, which {path} does not have, because "
                "an earlier version prepared it; prepare again into another --output, or set data.repeat_threshold: 0"
            )
        return counts

    def check_crop_settings(self, augmentation: AugmentationConfig, path: str) -> None:
        """Checks that the augmented copies were made with the crop settings of the config.

        Raises:
          DataError: if they differ; the message lists the differences and the fix.
        """
        wanted = CropSettings.from_config(augmentation)
        if self.windows not in (None, wanted):
            differs = _differences(self.windows.model_dump(), wanted.model_dump(), "data.augmentation.")
            raise DataError(
                f"{path}: the augmented copies were prepared with crop settings that differ from the config "
                f"({differs}); prepare again with this config into another --output, or set these keys to the prepared "
                "values"
            )


class Leakage(_Part):
    """Images whose bytes occur in two splits; `examples` lists a few of them."""

    splits: tuple[str, str]
    images: Count
    examples: tuple[str, ...]


class Manifest(_Part):
    """The contents of `dataset.json`."""

    format_version: int = FORMAT_VERSION
    classes: tuple[Annotated[str, Field(min_length=1)], ...]
    image_size: Annotated[int, Field(ge=1, le=2048)]
    anchors: dict[str, Any]
    matching: dict[str, Any]
    fingerprint: Sha256
    splits: dict[SplitName, Split]
    leakage: tuple[Leakage, ...] = ()

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        _check_unique(classes, "class")
        return classes

    @field_validator("anchors")
    @classmethod
    def _check_anchors(cls, anchors: dict[str, Any]) -> dict[str, Any]:
        settings = {key: value for key, value in anchors.items() if key in AnchorConfig.model_fields}
        _check_section(AnchorConfig, settings)
        # `target_spec` adds a number and a list of numbers.
        for key, value in anchors.items():
            numbers = value if isinstance(value, list | tuple) else (value,)
            if key not in settings and not all(type(number) is int and 0 <= number < 2**31 for number in numbers):
                raise ValueError(f"{_show(key)} is neither a setting of anchors nor a number or list of numbers")
        return anchors

    @field_validator("matching")
    @classmethod
    def _check_matching(cls, matching: dict[str, Any]) -> dict[str, Any]:
        _check_section(MatchingConfig, matching)
        return matching

    @model_validator(mode="after")
    def _check_views(self) -> "Manifest":
        splits = self.splits.values()
        views = [view for split in splits for view in split.views]
        counts = [view.images_per_class for view in views if view.images_per_class is not None]
        if any(tuple(count) != self.classes for count in counts):
            raise ValueError("images_per_class must have all classes in the order of their labels")
        shards = (shard.file for view in views for shard in view.shards)
        _check_unique((*shards, *(split.image_hashes for split in splits if split.image_hashes)), "file")
        return self

    def to_json(self) -> str:
        """Returns indented JSON with a stable order of keys."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, path: str) -> "Manifest":
        """Parses the manifest read from `path`.

        Raises:
          DataError: if it is not a manifest, has another format version, or contains a path that leads out of its
            folder, a repeated name, a malformed checksum, or counts that do not add up.
        """
        try:
            tree = json.loads(text)
            # JSON can contain half of a surrogate pair, as \ud800, which no file or program outside Python accepts.
            if not is_encodable(json.dumps(tree, ensure_ascii=False)):
                raise ValueError("it contains an unpaired surrogate, which is not a valid character")
        except ValueError as error:  # also raised for bytes that are not UTF-8, and numbers of over 4,300 digits
            raise DataError(f"{path} is not valid JSON ({error}); prepare the data again") from None
        except RecursionError:
            raise DataError(f"{path} is not valid JSON (nested too deeply); prepare the data again") from None
        version = tree.get("format_version") if isinstance(tree, dict) else None
        if version != FORMAT_VERSION:
            shown = shorten(repr(version), NAME_LENGTH)
            raise DataError(
                f"{path} has format version {shown}, but this program reads {FORMAT_VERSION}; "
                "prepare again into another --output"
            )
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise DataError(f"{path}: {_describe(error)}; prepare the data again") from None

    def check_fits(self, config: Config, path: str) -> None:
        """Checks that the dataset was prepared with the image size, anchors and matching of the config.

        Raises:
          DataError: if they differ, with the differences and the fix; or if there are more than `MOST_CLASSES` classes.
        """
        if len(self.classes) > MOST_CLASSES:
            raise DataError(
                f"{path} has {len(self.classes)} classes, but a model supports at most {MOST_CLASSES}; "
                "prepare again without rare classes (--include_classes or --exclude_classes)"
            )
        input_size = config.model.input_size
        differs = _differences(self.spec(), target_spec(config.anchors, config.matching, input_size))
        # Checked even with online targets, as the shards contain resized images. The fingerprint does not show it:
        # neighboring sizes have equal anchors.
        if self.image_size != input_size:
            raise DataError(
                f"{path} was prepared with an image size that differs from the config ({differs}); "
                "prepare again with this config into another --output"
            )
        if config.data.targets == "precomputed" and self.fingerprint != fingerprint(
            config.anchors, config.matching, input_size
        ):
            raise DataError(
                f"{path} was prepared with anchors or matching that differ from the config ({differs}); "
                "prepare again with this config into another --output, or set data.targets: online"
            )

    def spec(self) -> dict[str, Any]:
        """Returns the settings that the targets were computed with, as `target_spec` does."""
        return {"image_size": self.image_size, "anchors": self.anchors, "matching": self.matching}

    def split(self, name: str, path: str) -> Split:
        """Returns the split of that name.

        Raises:
          DataError: if there is none; the message lists the existing splits.
        """
        if name not in self.splits:
            raise DataError(
                f"{path} has no split {name!r} (it has {', '.join(self.splits) or 'none'}); "
                f"prepare it with --split={name}, or choose another split"
            )
        return self.splits[name]

    def eval_split(self, name: str, path: str) -> str | None:
        """Returns the name of the split to evaluate; `auto` selects val if it exists, else test, else None.

        Raises:
          DataError: if `name` is not `auto` and there is no such split.
        """
        if name == "auto":
            return next((split for split in ("val", "test") if split in self.splits), None)
        self.split(name, path)
        return name


def _check_unique(names: Sequence[str], what: str) -> None:
    """Raises a ValueError if a name occurs twice."""
    if len({*names}) < len(names):
        name, count = Counter(names).most_common(1)[0]
        raise ValueError(f"the {what} {_show(name)} is listed {count} times")


def _check_section(section: type[BaseModel], settings: Mapping[str, Any]) -> None:
    """Raises a ValueError if the settings are not a valid section of a config."""
    try:
        section.model_validate(settings)
    except ValidationError as error:
        raise ValueError(_describe(error)) from None


def _describe(error: ValidationError) -> str:
    """Returns the key and the message of the first problem; a problem of the whole value has no key."""
    problem = error.errors(include_url=False)[0]
    key = make_printable(".".join(map(str, problem["loc"])), 2 * NAME_LENGTH)
    return f"{key + ': ' if key else ''}{problem['msg'].removeprefix('Value error, ')}"


def target_spec(anchors: AnchorConfig, matching: MatchingConfig, input_size: int) -> dict[str, Any]:
    """Returns all settings that determine the targets of an image, as JSON-serializable values."""
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
    """Returns the SHA-256 of the anchors' float32 bytes, the matching settings and the variances of the offsets."""
    digest = hashlib.sha256(generate_anchors(anchors, input_size).astype("<f4").tobytes())
    variances = {"center_variance": anchors.center_variance, "size_variance": anchors.size_variance}
    digest.update(json.dumps({**matching.model_dump(mode="json"), **variances}, sort_keys=True).encode())
    return digest.hexdigest()


def _differences(prepared: Mapping[str, Any], wanted: Mapping[str, Any], at: str = "") -> str:
    """Returns `anchors.sizes: prepared (0.1, ...), config (0.2, ...)` for each value that differs."""
    parts = []
    for key in dict.fromkeys((*prepared, *wanted)):
        old, new = prepared.get(key), wanted.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            parts.append(_differences(old, new, f"{at}{key}."))
        elif old != new:
            parts.append(f"{at}{key}: prepared {old}, config {new}")
    return "; ".join(part for part in parts if part)
