"""Reads the YAML files of datasets, such as the data.yaml of YOLO."""

from typing import Any

from pipelines import beam_storage
from ssd_dist.core.errors import DataError
from ssd_dist.core.yaml_text import MAX_BYTES, TextLoader, YamlError, parse_yaml


def read_yaml(path: str) -> dict[Any, Any]:
    """Returns the content of a YAML file; an empty dict for an empty file.

    Every value is text, except decimal integers and null: `names: [yes, 2026-11-25, 1.5]` are three texts. Aliases,
    tags and repeated keys are errors.

    Raises:
      DataError: with one line, if the file is missing, larger than 1 MB, not UTF-8, not valid YAML, or not a section of
        `key: value`.
    """
    # Checked first, so that a huge file is not read.
    size = beam_storage.size(path) if beam_storage.exists(path) else 0
    if size > MAX_BYTES:
        raise DataError(f"{path} has {size / 1e6:.1f} MB; a YAML file may have at most {MAX_BYTES / 1e6:g} MB")
    try:
        content = parse_yaml(beam_storage.read_text(path), TextLoader)
    except YamlError as error:
        raise DataError(f"{path}: not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: expected `key: value` lines, got a {'list' if isinstance(content, list) else 'value'}"
        )
    return content
