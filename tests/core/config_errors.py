"""Loads invalid configs and returns the error messages."""

import pytest

from ssd_dist.core.config_files import load_config
from ssd_dist.core.errors import UsageError


def get_load_error(path, overrides=()) -> str:
    """Loads a config, which must fail, and returns the error message."""
    with pytest.raises(UsageError) as caught:
        load_config(path, overrides)
    return str(caught.value)
