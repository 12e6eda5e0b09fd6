"""Shared fixtures of the config tests."""

import pytest


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes a YAML file with a text and a name, and returns its path."""

    def write_file(text: str, name: str = "x.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file
