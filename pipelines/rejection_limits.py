"""Checks what prepare rejected: a split needs images and boxes, and the rejected share has a limit.

Each error gives the counts, the most frequent reason with an example and the likely fix, and the file with all reasons.
"""

from collections import Counter
from collections.abc import Sequence

from pipelines.shard_reports import Rejected
from pipelines.split_folder import REJECTED_NAME
from ssd_dist.core.errors import DataError
from ssd_dist.core.manifest import Split
from ssd_dist.core.storage import join

# What usually fixes the rejections of a reason.
FIXES = {
    "missing_image": "set --image_dir to the folder of the images",
    "path_traversal": "set --image_dir to the folder of the images",
    "not_annotated": "check that every image has an annotation file",
    "not_listed": "check the lists of the splits",
    "unknown_class": "list all classes with --classes",
    "excluded_class": "check --include_classes and --exclude_classes",
    "size_mismatch": "check that the images were not resized after they were annotated",
    "broken_annotation": "check --input_format",
}


def check_split(name: str, split: Split, rejected: Sequence[Rejected], output: str, limit: float) -> None:
    """Checks that the split contains images and boxes and that the rejected fraction is within its limit.

    Raises:
      DataError: with the counts, the most frequent reason, an example and the path of the file with all reasons.
    """
    where = f"all reasons are in {join(output, name, REJECTED_NAME)}"
    if not split.images_read:
        raise DataError(
            f"split {name!r}: the source lists no images; check --input and --source_split, or write a small source as "
            "one split with --split_by=none"
        )
    of_images, of_boxes = divide_rejections(rejected)
    if not split.images:
        cause = describe_rejections(of_images)
        raise DataError(f"split {name!r}: all {split.images_read} images were rejected; {cause}; {where}")
    if split.boxes_read and not split.boxes:
        cause = describe_rejections(of_boxes)
        raise DataError(f"split {name!r}: all {split.boxes_read} boxes were rejected; {cause}; {where}")
    check_fractions(name, split, rejected, output, limit)


def divide_rejections(rejected: Sequence[Rejected]) -> tuple[list[Rejected], list[Rejected]]:
    """Returns the rejections of whole images and those of boxes."""
    return [line for line in rejected if not line.where], [line for line in rejected if line.where]


def check_fractions(name: str, split: Split, rejected: Sequence[Rejected], output: str, limit: float) -> None:
    """Checks that the rejected fractions of images and boxes are within the limit.

    Raises:
      DataError: with the counts, the most frequent reason, an example and the path of the file with all reasons.
    """
    where = f"all reasons are in {join(output, name, REJECTED_NAME)}"
    of_images, of_boxes = divide_rejections(rejected)
    for what, lines, number, read in (
        ("images", of_images, split.images_read - split.images, split.images_read),
        ("boxes", of_boxes, split.boxes_read - split.boxes, split.boxes_read),
    ):
        # 29 of 100 is 0.29, but 0.29 * 100 is less than 29.
        if number > (limit + 1e-9) * read:
            raise DataError(
                f"split {name!r}: {number} of {read} {what} were rejected, more than "
                f"--max_rejected_fraction={limit:g} allows; {describe_rejections(lines)}; {where}"
            )


def describe_rejections(rejected: Sequence[Rejected]) -> str:
    """Returns the most frequent reason with its count, an example and the likely fix, on one line."""
    if not rejected:
        return "no reason was recorded"
    reason, count = Counter(line.reason for line in rejected).most_common(1)[0]
    example = next(line for line in rejected if line.reason == reason)
    # Many details contain their own advice.
    fix = f"; {FIXES[reason]}" if reason in FIXES and "; " not in example.detail else ""
    return f"most frequent reason: {reason} ({count}), for example {example.image}: {example.detail}{fix}"
