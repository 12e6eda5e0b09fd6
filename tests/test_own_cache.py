"""What the tests and their processes keep on this machine is not among what its user keeps."""

import os
from pathlib import Path

# As modules do that start processes: before any fixture runs.
AT_COLLECTION = os.environ.get("XDG_CACHE_HOME", "")


def test_the_users_cache_is_left_alone():
    assert os.environ["XDG_CACHE_HOME"] == AT_COLLECTION
    assert Path(AT_COLLECTION).is_dir()
    assert Path(AT_COLLECTION).resolve() != (Path.home() / ".cache").resolve()
