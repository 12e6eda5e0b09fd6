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


def check_folder_name(model_dir: str) -> None:
    """Checks that TensorFlow can find checkpoints in a folder of this name.

    Raises:
      UsageError: for a folder on an object store, or with a wildcard in its name.
    """
    if is_remote(model_dir):
        raise UsageError(
            f"--model_dir={model_dir} is on an object store, but a run needs a local folder: mount the store "
            "(Cloud Storage FUSE: /gcs/BUCKET/...) and pass the mounted path"
        )
    if wildcard := re.search(r"[*?\[\]\\]", model_dir):
        raise UsageError(
            f"--model_dir={model_dir}: TensorFlow interprets {wildcard.group()!r} as a wildcard; choose another name"
        )
