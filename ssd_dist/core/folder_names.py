"""Checks the name of a run folder; defines names of files in it and of the summary in an export folder."""

import re

from ssd_dist.core.errors import UsageError
from ssd_dist.core.storage import is_remote

# The config in a run folder; a folder with a config is a run.
CONFIG_NAME = "config.yaml"
# The report in a run folder.
REPORT_NAME = "report.html"
# The export summary in an export folder.
SUMMARY_NAME = "export.json"


def check_folder_name(folder: str, flag: str = "model_dir") -> None:
    """Checks that TensorFlow can find checkpoints in a run folder of this name.

    Args:
      folder: the run folder.
      flag: the flag that gave it, for messages.

    Raises:
      UsageError: for a folder on an object store, or with a wildcard, a line break or invalid UTF-8 in its name.
    """
    if is_remote(folder):
        raise UsageError(
            f"--{flag}={folder} is on an object store, but a run needs a local folder: mount the store "
            "(Cloud Storage FUSE: /gcs/BUCKET/...) and pass the mounted path"
        )
    if wildcard := re.search(r"[*?\[\]\\]", folder):
        raise UsageError(
            f"--{flag}={folder}: TensorFlow interprets {wildcard.group()!r} as a wildcard; choose another name"
        )
    if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", folder):
        raise UsageError(
            f"--{flag}={folder!a}: the name has a line break, another control character or invalid UTF-8; "
            "choose another name"
        )
