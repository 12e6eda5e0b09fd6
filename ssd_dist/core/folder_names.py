"""Which folders a run can be in, and what its page is called there."""

import re

from ssd_dist.core.errors import UsageError

# The page of a run, in its folder.
REPORT_NAME = "report.html"


def check_folder_name(model_dir: str) -> None:
    """Refuses a folder in which TensorFlow would not find a run's checkpoints again.

    Raises:
      UsageError: for a folder on an object store, or with a wildcard in its name; naming what does instead.
    """
    if "://" in model_dir:
        raise UsageError(
            f"--model_dir={model_dir} is on an object store, and a run needs a folder: mount the store "
            "(Cloud Storage FUSE: /gcs/BUCKET/...) and give the mounted path"
        )
    if wildcard := re.search(r"[*?\[\]\\]", model_dir):
        raise UsageError(
            f"--model_dir={model_dir}: TensorFlow takes {wildcard.group()!r} for a wildcard; name it otherwise"
        )
