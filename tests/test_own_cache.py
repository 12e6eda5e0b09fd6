"""Tests that the tests and their processes have their own cache folder."""

import os
from pathlib import Path

# Read at import, before any fixture runs, as in modules that start processes.
AT_COLLECTION = os.environ.get("XDG_CACHE_HOME", "")


def test_the_tests_do_not_use_the_cache_of_the_user():
    assert os.environ["XDG_CACHE_HOME"] == AT_COLLECTION
    assert Path(AT_COLLECTION).is_dir()
    assert Path(AT_COLLECTION).resolve() != (Path.home() / ".cache").resolve()
