"""JSON streaming: the same values and errors as json.load, for any chunk boundaries."""

import io
import json
import math
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import json_stream
from pipelines.json_stream import JsonStreamError, stream_arrays

scalars = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | st.text()
values = st.recursive(scalars, lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=8)
objects = st.dictionaries(st.sampled_from(["images", "annotations", "info", "", "é"]), values | st.lists(values))


class SlowFile(io.BytesIO):
    """A file that returns only a few bytes per read."""

    def __init__(self, data: bytes, step: int) -> None:
        super().__init__(data)
        self.step = step

    def read(self, size=-1):
        return super().read(self.step)


def read_all(data: bytes, names=("images", "annotations"), step=1 << 20):
    return list(stream_arrays(SlowFile(data, step), names))


@settings(deadline=None)
@given(content=objects, step=st.integers(1, 7), indent=st.sampled_from([None, 1]), ascii=st.booleans())
def test_result_equals_json_load_for_any_chunk_size(content, step, indent, ascii):
    data = json.dumps(content, indent=indent, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
    try:
        data.decode()
    except UnicodeDecodeError:
        return
    expected = [
        (name, index, item)
        for name, array in content.items()
        if name in ("images", "annotations") and isinstance(array, list)
        for index, item in enumerate(array)
    ]
    assert read_all(data, step=step) == expected


@settings(deadline=None)
@given(content=objects, data=st.data())
def test_truncated_text_raises_an_error(content, data):
    text = json.dumps({**content, "images": [1, 2]})
    cut = data.draw(st.integers(0, len(text) - 1))
    with pytest.raises(JsonStreamError):
        read_all(text[:cut].encode())


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "",
        "{",
        '{"images": [1 2]}',
        '{"images": [1,]}',
        '{"images": [{"id": 1]}',
        "{images: []}",
        '{"images": []} trailing',
        '{"images": [' + "[" * 100_000,
        '{"images": ["\ud800'.encode("utf-8", "surrogatepass") + b'"]}',
    ],
)
def test_errors_contain_the_position(text):
    with pytest.raises(JsonStreamError, match="character"):
        read_all(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize("step", [100, 1 << 20])
def test_integers_beyond_the_limit_of_python_are_infinite(step):
    # Only the entry with this number is unusable, so the rest of the file must be read.
    text = json.dumps({"images": [{"id": 1}, {"id": "@"}, {"id": "-@"}, {"id": 2}]})
    text = text.replace('"@"', "9" * 5000).replace('"-@"', "-" + "9" * 5000)
    found = [item["id"] for _, _, item in read_all(text.encode(), step=step)]
    assert found == [1, math.inf, -math.inf, 2]


def test_entries_before_an_error_are_yielded():
    found = []
    entries = stream_arrays(io.BytesIO(b'{"images": [1, 2, oops'), ("images",))
    with pytest.raises(JsonStreamError):
        found.extend(entries)
    assert found == [("images", 0, 1), ("images", 1, 2)]


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "big.json"
    with path.open("w") as file:
        file.write('{"annotations": [')
        file.write(",".join(json.dumps({"id": number, "bbox": [1.5, 2.5, 3.5, 4.5]}) for number in range(200_000)))
        file.write("]}")
    tracemalloc.start()
    with path.open("rb") as file:
        count = sum(1 for _ in stream_arrays(file, ("annotations",)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 200_000
    assert path.stat().st_size > 8e6
    assert peak < 6 * json_stream.CHUNK_BYTES
