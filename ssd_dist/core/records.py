"""The records of a shard: the features of the TF Object Detection API and sparse anchor targets.

    image + objects + targets  <->  features by key  <->  bytes of a tf.train.Example

All code outside the training graph reads and writes shards through `Record`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ssd_dist.core.boxes import BoolArray, FloatArray, IntArray
from ssd_dist.core.errors import DataError
from ssd_dist.core.example_proto import Feature, decode_example, encode_example
from ssd_dist.core.matching import Targets

BOX_KEYS = tuple(f"image/object/bbox/{side}" for side in ("ymin", "xmin", "ymax", "xmax"))


@dataclass(frozen=True)
class Objects:
    """The objects of one image.

    Attributes:
      boxes: float32 [N, 4], normalized.
      labels: int64 [N], 1-based.
      names: N class names.
      difficult: bool [N], Pascal VOC's flag; VOC metrics ignore these objects.
      is_crowd: bool [N], COCO's flag; a crowd is a region with uncounted objects.
      area: float32 [N], in pixels of the original image.
    """

    boxes: FloatArray
    labels: IntArray
    names: tuple[str, ...]
    difficult: BoolArray
    is_crowd: BoolArray
    area: FloatArray

    def list_classes(self) -> list[str]:
        """Returns the names of the classes, each once, without crowds."""
        return list(dict.fromkeys(name for name, crowd in zip(self.names, self.is_crowd, strict=True) if not crowd))


@dataclass(frozen=True)
class Record:
    """One image in a shard; `encoded` is a JPEG of `height` x `width` pixels."""

    encoded: bytes
    height: int
    width: int
    original_height: int
    original_width: int
    source_id: str
    filename: str
    objects: Objects
    targets: Targets

    def to_bytes(self) -> bytes:
        """Serializes the record as a `tf.train.Example`."""
        objects, targets = self.objects, self.targets
        features: dict[str, Feature] = {
            "image/encoded": [self.encoded],
            "image/format": [b"jpeg"],
            "image/height": _int64(self.height),
            "image/width": _int64(self.width),
            "image/original/height": _int64(self.original_height),
            "image/original/width": _int64(self.original_width),
            "image/source_id": [self.source_id.encode()],
            "image/filename": [self.filename.encode()],
            **{key: np.ascontiguousarray(objects.boxes[:, side]) for side, key in enumerate(BOX_KEYS)},
            "image/object/class/label": objects.labels.astype(np.int64),
            "image/object/class/text": [name.encode() for name in objects.names],
            "image/object/difficult": objects.difficult.astype(np.int64),
            "image/object/is_crowd": objects.is_crowd.astype(np.int64),
            "image/object/area": objects.area.astype(np.float32),
            "target/positive/anchor": targets.anchors.astype(np.int64),
            "target/positive/label": targets.labels.astype(np.int64),
            "target/positive/box": targets.offsets.astype(np.float32).reshape(-1),
            "target/ignored/anchor": targets.ignored.astype(np.int64),
        }
        return encode_example(features)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Record":
        """Parses one record; `targets.objects` is empty, because it is not stored.

        Raises:
          DataError: if the bytes are not a record written by prepare.
        """
        features = decode_example(data)
        try:
            return cls(
                encoded=_blob(features, "image/encoded"),
                height=_number(features, "image/height"),
                width=_number(features, "image/width"),
                original_height=_number(features, "image/original/height"),
                original_width=_number(features, "image/original/width"),
                source_id=_blob(features, "image/source_id").decode(),
                filename=_blob(features, "image/filename").decode(),
                objects=Objects(
                    boxes=np.stack([_floats(features, key) for key in BOX_KEYS], axis=-1),
                    labels=_ints(features, "image/object/class/label"),
                    names=tuple(name.decode() for name in _blobs(features, "image/object/class/text")),
                    difficult=_ints(features, "image/object/difficult").astype(bool),
                    is_crowd=_ints(features, "image/object/is_crowd").astype(bool),
                    area=_floats(features, "image/object/area"),
                ),
                targets=Targets(
                    anchors=_ints(features, "target/positive/anchor"),
                    labels=_ints(features, "target/positive/label"),
                    offsets=_floats(features, "target/positive/box").reshape(-1, 4),
                    ignored=_ints(features, "target/ignored/anchor"),
                    objects=np.zeros(0, np.int64),
                ),
            )
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise DataError(f"not a record written by prepare: {error!r}") from None


def _int64(value: int) -> npt.NDArray[np.int64]:
    return np.array([value], np.int64)


def _blobs(features: Mapping[str, Feature], key: str) -> list[bytes]:
    values = features[key]
    if isinstance(values, np.ndarray):
        raise TypeError(f"{key} is {values.dtype}, not bytes")
    return list(values)


def _blob(features: Mapping[str, Feature], key: str) -> bytes:
    return _blobs(features, key)[0]


def _number(features: Mapping[str, Feature], key: str) -> int:
    return int(_ints(features, key)[0])


def _ints(features: Mapping[str, Feature], key: str) -> IntArray:
    return np.asarray(_typed(features, key, np.int64), np.int64)


def _floats(features: Mapping[str, Feature], key: str) -> FloatArray:
    return np.asarray(_typed(features, key, np.float32), np.float32)


def _typed(features: Mapping[str, Feature], key: str, dtype: type) -> Feature:
    values = features[key]
    if not isinstance(values, np.ndarray) or values.dtype != dtype:
        raise TypeError(f"{key} is {getattr(values, 'dtype', 'bytes')}, not {np.dtype(dtype)}")
    return values
