"""Config keys of earlier versions: a config that sets one is rejected, the stored config of a run is converted."""

from typing import Any

SYNC_BATCH_NORM = "train.sync_batch_norm"


def explain_removed_key(key: str, given: Any) -> str | None:
    """Returns what replaced a removed key and the equivalent value; None for any other key."""
    if key != SYNC_BATCH_NORM:
        return None
    equivalent = {
        True: "train.global_batch_size / train.accumulate_steps, for the statistics of the global batch",
        False: "the number of images of a replica, for the statistics of each replica's batch",
    }.get(given is True)
    return (
        f"{key} (given: {given!r}) was replaced by model.batch_norm_group, the number of images that share batch-norm "
        f"statistics; remove it, or set model.batch_norm_group to {equivalent}"
    )


def convert_stored_config(tree: dict[str, Any]) -> None:
    """Replaces the removed keys in the stored config of a run, which an earlier version may have written.

    Without synchronization, statistics were those of each replica, whose number the config does not contain: such a run
    resumes with the default group.

    Args:
      tree: the values of every key by section; changed in place.
    """
    train, model = tree.get("train"), tree.get("model")
    if not isinstance(train, dict) or not isinstance(model, dict) or "sync_batch_norm" not in train:
        return
    is_synchronized = train.pop("sync_batch_norm")
    images, parts = train.get("global_batch_size"), train.get("accumulate_steps")
    if is_synchronized is True and isinstance(images, int) and isinstance(parts, int) and parts > 0:
        model["batch_norm_group"] = images // parts
