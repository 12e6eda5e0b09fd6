"""Tests that YAML files of datasets give text, and that every invalid file is one line of a DataError."""

import pytest

from pipelines.yaml_files import read_yaml
from ssd_dist.core.errors import DataError


def test_class_names_stay_text(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text("names: [yes, no, on, 2026-11-25, 1.5, 0x10, 7]\nval:\nnc: 7\n'0': a\n0: b\n", encoding="utf-8-sig")
    assert read_yaml(str(path)) == {
        "names": ["yes", "no", "on", "2026-11-25", "1.5", "0x10", 7], "val": None, "nc": 7, "0": "a", 0: "b",
    }  # fmt: skip
    path.write_text("")
    assert read_yaml(str(path)) == {}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"names: {0: a, 0: b}", "not valid YAML: line 1, column 15: key 0 is given twice"),
        (b"names: [a\n", "not valid YAML: line 2, column 1"),
        (b"names:\n\t- a", "not valid YAML: line 2, column 1"),
        (b"a: &a [1, 1]\nb: &b [*a, *a]\nnames: [*b, *b]", "aliases"),
        (b"names: !!python/object/apply:os.getcwd []", "the tag !!python/object/apply:os.getcwd is not supported"),
        (b"names: [caf\xe9]", "unknown encoding"),
        (b"names: [a\x00]", "the character U+0000"),
        (b"[" * 100_000, "nested more than 100 levels deep"),
        (b"- a\n- b", "expected `key: value` lines, got a list"),
        (b"text", "expected `key: value` lines, got a value"),
        (b"#" * 1_000_001, "has 1.0 MB; a YAML file may have at most 1 MB"),
    ],
)
def test_invalid_files_are_reported_in_one_line(tmp_path, data, words):
    path = tmp_path / "data.yaml"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_yaml(str(path))
    assert str(caught.value).startswith(f"{path}")
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_missing_files_and_folders_are_reported(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(DataError, match=f"^{path} (does not exist|cannot be read)"):
            read_yaml(str(path))


@pytest.mark.timeout(60)
def test_many_keys_are_read_in_linear_time(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text("".join(f"{index}: class\n" for index in range(20_000)))
    assert len(read_yaml(str(path))) == 20_000
