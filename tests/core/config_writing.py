"""Configs that are refused."""

import pytest

from ssd_dist.core.config_files import load_config
from ssd_dist.core.errors import UsageError


def refusal(path, overrides=()) -> str:
    """What the user is told of a config."""
    with pytest.raises(UsageError) as caught:
        load_config(path, overrides)
    return str(caught.value)
