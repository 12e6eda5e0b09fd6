"""Names of the files in the folder of a prepared split.

OUT/train/view00-00003-of-00008.tfrecord   records of one shard
OUT/train/rejected.jsonl                   rejected images and boxes
OUT/train/image_hashes.npy                 hashes of the image files, by which leakage between splits is found
OUT/train/copies.jsonl                     groups of images with the same bytes; only if there are any
OUT/train/.parts/                          job.json, one report per shard, the lock, and the id of a running job

Readers, the shard writer and the manifest writer use these names.
"""

import posixpath

from pipelines import beam_storage
from ssd_dist.core.storage import TEMPORARY, join

PARTS_FOLDER = ".parts"
REJECTED_NAME = "rejected.jsonl"
HASHES_NAME = "image_hashes.npy"
COPIES_NAME = "copies.jsonl"
JOB_ID_NAME = "job_id"


def contains_only_output(folder: str) -> bool:
    """Returns whether a folder contains files of a prepared split and no others.

    The output of prepare may be inside the dataset that it reads. A reader must not take such a folder for images.
    """
    if not beam_storage.list_files(join(folder, PARTS_FOLDER)):
        return False
    parts = join(folder, PARTS_FOLDER, "")
    return all(
        path.startswith(parts)
        or path.endswith((".tfrecord", REJECTED_NAME, HASHES_NAME, COPIES_NAME))
        or TEMPORARY in posixpath.basename(path)
        for path in beam_storage.match_below(folder, "**")
    )
