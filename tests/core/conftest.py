"""What the tests of the config share."""

import pytest


@pytest.fixture
def write(tmp_path):
    """Writes a YAML file of that text and name; gives its path."""

    def write_file(text: str, name: str = "x.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file
