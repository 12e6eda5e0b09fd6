"""Annotations in other encodings are read or rejected with a reason; a compressed file that is cut off is noticed."""

import bz2
import gzip
import json

import pytest
from raw_sets import make_coco, voc_xml
from test_fuzz_formats import MAKERS, TEXT_SUFFIXES, make_csv, read_all
from tool_exports import write

from pipelines import beam_storage
from pipelines.compressed_input import CHUNK_BYTES
from pipelines.detection import detect_format
from pipelines.json_stream import JsonStreamError, stream_arrays
from ssd_dist.core.errors import DataError


def summarize(input_format, folder):
    images, _ = read_all(input_format, folder)
    return sorted((image.image_id, [box._replace(where="") for box in image.boxes], image.problem) for image in images)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("input_format", [name for name in MAKERS if name != "tfrecord"])
def test_text_files_in_unicode_encodings_are_read_alike(tmp_path, input_format, encoding):
    MAKERS[input_format](tmp_path)
    expected = summarize(input_format, tmp_path)
    for path in (path for path in tmp_path.rglob("*") if path.suffix in TEXT_SUFFIXES):
        path.write_bytes(path.read_text().encode(encoding))
    assert summarize(input_format, tmp_path) == expected
    assert detect_format([str(tmp_path)], "").input_format == input_format


@pytest.mark.parametrize("input_format", ["labelme", "create_ml", "voc", "cvat", "coco", "yolo", "kitti"])
def test_another_encoding_is_the_reason(tmp_path, input_format):
    MAKERS[input_format](tmp_path)
    (path, *_) = sorted(path for path in tmp_path.rglob("*") if path.suffix in (".json", ".xml", ".txt"))
    text = path.read_text()
    # The first name that the file contains, with a letter of ISO-8859-1.
    name = next((name for name in ("car", "Car", "a.jpg") if name in text), "0")
    path.write_bytes(text.replace(name, "caf\xe9", 1).encode("latin-1"))
    try:
        images, _ = read_all(input_format, tmp_path)
        details = {image.problem.detail for image in images if image.problem}
    except DataError as error:
        # The only file of the dataset.
        details = {str(error)}
    assert any("unknown encoding" in detail and "UTF-8" in detail for detail in details), details


def test_a_declared_encoding_of_xml_is_used(tmp_path):
    text = '<?xml version="1.0" encoding="ISO-8859-1"?>' + voc_xml("a.jpg", [("caf\xe9", 5, 5, 30, 40)])
    write(tmp_path, "a.xml", text.encode("latin-1"))
    write(tmp_path, "a.jpg")
    ((image,), _) = read_all("voc", tmp_path)
    assert [box.category for box in image.boxes] == ["caf\xe9"]


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_all_bytes_before_the_cut_are_read_and_then_an_error_is_raised(tmp_path, suffix, compress):
    # Numbers that hardly compress, in two members with padding behind them.
    lines = [f"{number * 2654435761 % 2**32:x}\n".encode() for number in range(20_000)]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(compress(b"".join(lines[:15_000])) + compress(b"".join(lines[15_000:])) + bytes(512))
    with beam_storage.open_input(str(path)) as stream:
        assert b"".join(iter(lambda: stream.read(1000), b"")) == b"".join(lines)
    whole = compress(b"".join(lines))
    assert len(whole) > 3 * CHUNK_BYTES
    for length in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        chunks = []
        with beam_storage.open_input(str(path)) as stream, pytest.raises(EOFError, match="cut off"):
            chunks.extend(iter(lambda stream=stream: stream.read(1000), None))
        read = b"".join(chunks)
        assert b"".join(lines).startswith(read)
        # bz2 decodes blocks of 900,000 bytes.
        assert suffix == ".bz2" or len(read) >= 0.8 * length - 20


@pytest.mark.parametrize("cut", [1, 9])
def test_a_csv_file_that_is_cut_off_is_reported(tmp_path, cut):
    make_csv(tmp_path)
    text = (tmp_path / "labels.csv").read_bytes()
    (tmp_path / "labels.csv").unlink()
    (tmp_path / "labels.csv.gz").write_bytes(gzip.compress(text, 1)[:-cut])
    images, _ = read_all("csv", tmp_path)
    (problem,) = (image.problem for image in images if image.problem)
    assert (problem.reason, "damaged or incomplete" in problem.detail) == ("broken_annotation", True)


def test_a_coco_file_that_is_cut_off_is_reported(tmp_path):
    make_coco(tmp_path, {"a.jpg": [(1, 5, 5, 30, 40)]}, {1: "car"})
    path = tmp_path / "annotations/instances_train.json"
    compressed = path.with_suffix(".json.gz")
    # The text is complete, only its checksum is missing.
    compressed.write_bytes(gzip.compress(json.dumps(json.loads(path.read_text())).encode())[:-8])
    with beam_storage.open_input(str(compressed)) as stream, pytest.raises(JsonStreamError, match="cut off"):
        list(stream_arrays(stream, ("images",)))
