"""Loads invalid configs and returns their messages."""

import pytest

from ssd_dist.core.config_files import load_config
from ssd_dist.core.errors import UsageError


def refusal(path, overrides=()) -> str:
    """Returns the error message for a config."""
    with pytest.raises(UsageError) as caught:
        load_config(path, overrides)
    return str(caught.value)
