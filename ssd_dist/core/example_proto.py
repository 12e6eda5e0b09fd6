"""`tf.train.Example` bytes without TensorFlow.

A Beam worker imports this instead of a 3 GB package; the tests hold it byte for byte to the real thing.
Wire format: Example{1: Features{1: map<string, Feature>}}, Feature{1: bytes, 2: float, 3: int64 list},
lists packed, map entries sorted by key as deterministic serialisation has them (but where one key begins with
another, on which protobuf's own implementations differ; no record has such keys).
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ssd_dist.core.errors import DataError

Feature: TypeAlias = Sequence[bytes] | npt.NDArray[np.float32] | npt.NDArray[np.int64]


def encode_example(features: Mapping[str, Feature]) -> bytes:
    """Serialises features: float32 and int64 arrays [K], or sequences of bytes; empty arrays keep their type."""
    entries: list[bytes] = []
    for name in sorted(features):
        key, feature = _key(name), _encode_feature(features[name])
        header = _header(2, len(feature))
        entries += (_header(1, len(key) + len(header) + len(feature)), key, header, feature)
    return _field(1, b"".join(entries))


def decode_example(data: bytes) -> dict[str, Feature]:
    """Parses bytes of a `tf.train.Example`; takes packed and unpacked lists.

    Raises:
      DataError: if the bytes are no Example.
    """
    try:
        features: dict[str, Feature] = {}
        for _, body in _fields(data):
            for _, entry in _fields(_bytes(body)):
                parts = dict(_fields(_bytes(entry)))
                features[_bytes(parts[1]).decode()] = _decode_feature(_bytes(parts.get(2, b"")))
        return features
    except (IndexError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"not a tf.train.Example: {error}") from None


def _encode_feature(values: Feature) -> bytes:
    if not isinstance(values, np.ndarray):
        return _field(1, b"".join(_field(1, value) for value in values))
    if values.dtype == np.float32:
        packed, kind = values.astype("<f4").tobytes(), 2
    elif values.dtype == np.int64:
        packed, kind = b"".join(map(_varint, values.tolist())), 3
    else:
        raise TypeError(f"a feature holds bytes, float32 or int64, not {values.dtype}")
    return _field(kind, _field(1, packed) if packed else b"")


def _decode_feature(data: bytes) -> Feature:
    values: list[bytes | int] = []
    for kind, body in _fields(data):
        values = [value for _, value in _fields(_bytes(body))]
        if kind == 1:
            return [_bytes(value) for value in values]
        if kind == 2:
            return np.frombuffer(b"".join(_bytes(value) for value in values), "<f4").astype(np.float32)
        integers = [n for value in values for n in ([value] if isinstance(value, int) else _varints(value))]
        return np.array([n - (1 << 64) if n >> 63 else n for n in integers], np.int64)
    return []


def _field(number: int, body: bytes) -> bytes:
    return _header(number, len(body)) + body


# Lengths and the few names come again and again.
@lru_cache(maxsize=1 << 14)
def _header(number: int, length: int) -> bytes:
    return bytes([number << 3 | 2]) + _varint(length)


@lru_cache(maxsize=1 << 10)
def _key(name: str) -> bytes:
    return _field(1, name.encode())


# Anchor numbers come again and again.
@lru_cache(maxsize=1 << 14)
def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        wire = tag & 7
        if wire == 0:
            value, position = _read_varint(data, position)
            yield tag >> 3, value
            continue
        if wire == 2:
            size, position = _read_varint(data, position)
        elif wire == 5:
            size = 4
        else:
            raise ValueError(f"wire type {wire}")
        if position + size > len(data):
            raise ValueError("cut short")
        yield tag >> 3, data[position : position + size]
        position += size


def _varints(data: bytes) -> Iterator[int]:
    position = 0
    while position < len(data):
        value, position = _read_varint(data, position)
        yield value


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position += 1
        if byte < 128:
            # Ten bytes carry 70 bits; protobuf drops the upper six.
            return value & (1 << 64) - 1, position
        shift += 7
        if shift > 63:
            raise ValueError("a varint of more than 64 bits")


def _bytes(value: bytes | int) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where bytes belong")
    return value
