"""Encodes and decodes `tf.train.Example` messages without TensorFlow.

Beam workers import this module instead of a package of 3 GB. The tests compare its bytes with TensorFlow's. The message
is Example{1: Features{1: map<string, Feature>}}, Feature{1: bytes, 2: float, 3: int64 list}. Map entries are sorted by
key, as in deterministic serialization. (If one key is a prefix of another, the implementations of protobuf sort
differently; records have no such keys.)
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from ssd_dist.core.errors import DataError

Feature: TypeAlias = Sequence[bytes] | npt.NDArray[np.float32] | npt.NDArray[np.int64]

_PACKAGE = "ssd_dist"


def encode_example(features: Mapping[str, Feature]) -> bytes:
    """Serializes features: float32 and int64 arrays [K], or sequences of bytes; empty arrays keep their type."""
    example = _Example()
    example.features.SetInParent()
    entries = example.features.feature
    for name, values in features.items():
        if not isinstance(values, np.ndarray):
            field = entries[name].bytes_list
            field.value.extend(values)
        elif values.dtype == np.int64:
            field = entries[name].int64_list
            field.value.extend(values.tolist())
        elif values.dtype == np.float32:
            field = entries[name].float_list
            field.value.extend(values.tolist())
        else:
            raise TypeError(f"a feature must be bytes, float32 or int64, not {values.dtype}")
        if not len(values):
            # Otherwise an empty list would have no type.
            field.SetInParent()
    data: bytes = example.SerializeToString(deterministic=True)
    return data


def decode_example(data: bytes) -> dict[str, Feature]:
    """Parses the bytes of a `tf.train.Example` with packed or unpacked lists.

    Raises:
      DataError: if the bytes are not an Example.
    """
    try:
        entries = _Example.FromString(data).features.feature
    except DecodeError as error:
        raise DataError(f"not a tf.train.Example: {error}") from None
    return {name: _values(feature) for name, feature in entries.items()}


def _values(feature: Any) -> Feature:
    kind = feature.WhichOneof("kind")
    if kind == "float_list":
        return np.array(feature.float_list.value, np.float32)
    if kind == "int64_list":
        return np.array(feature.int64_list.value, np.int64)
    return list(feature.bytes_list.value)


def _make_example_class() -> Any:
    """Creates the message class in a separate pool, because TensorFlow may have registered an equal message."""
    file = FileDescriptorProto(name="example.proto", package=_PACKAGE, syntax="proto3")
    lists = {"bytes": FieldDescriptorProto.TYPE_BYTES, "float": FieldDescriptorProto.TYPE_FLOAT}
    lists["int64"] = FieldDescriptorProto.TYPE_INT64
    for name, kind in lists.items():
        file.message_type.add(name=f"{name}_list").field.add(
            name="value", number=1, type=kind, label=FieldDescriptorProto.LABEL_REPEATED
        )
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(lists, start=1):
        _add_message(feature, f"{name}_list", number, f"{name}_list").oneof_index = 0
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(
        name="key", number=1, type=FieldDescriptorProto.TYPE_STRING, label=FieldDescriptorProto.LABEL_OPTIONAL
    )
    _add_message(entry, "value", 2, "Feature")
    _add_message(features, "feature", 1, "Features.FeatureEntry").label = FieldDescriptorProto.LABEL_REPEATED
    _add_message(file.message_type.add(name="Example"), "features", 1, "Features")
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Example"))


def _add_message(parent: Any, name: str, number: int, kind: str) -> Any:
    """Adds a field whose type is the message `kind`."""
    return parent.field.add(
        name=name,
        number=number,
        type=FieldDescriptorProto.TYPE_MESSAGE,
        label=FieldDescriptorProto.LABEL_OPTIONAL,
        type_name=f".{_PACKAGE}.{kind}",
    )


_Example = _make_example_class()
