"""Explains why a dataset has no classes: no box can be used, so everything is rejected, and no image is read."""

from collections.abc import Iterable, Iterator, Sequence

from pipelines.annotations import Image, Problem
from pipelines.rejection_limits import describe_rejections
from pipelines.shard_plan import Member
from pipelines.shard_reports import Rejected
from pipelines.validate import Rejection, reject_box, reject_image

NO_CLASSES = Problem("no_classes", "the annotations contain no classes")
# Reasons that follow from others: annotations that cannot be read list no images.
CONSEQUENCES = (NO_CLASSES.reason, "not_annotated", "not_listed", "image_rejected")


def reject_members(members: Iterable[Member]) -> Iterator[Rejected]:
    """Yields the rejections of all images and boxes, with the problems that their annotations have."""
    for member in members:
        for line in _reject_member(member.image, is_image=not member.orphan):
            yield Rejected.of(member.place, line)


def _reject_member(image: Image, is_image: bool) -> Iterator[Rejection]:
    if image.problem is not None:
        yield from reject_image(image, image.problem, is_image)
        return
    yield from reject_image(image._replace(packed=b""), NO_CLASSES)
    yield from (reject_box(image, box, box.problem or NO_CLASSES) for box in image.boxes)


def explain_missing_classes(rejected: Sequence[Rejected]) -> str:
    """Returns the message of the error, with the most frequent cause that the rejections contain."""
    causes = [line for line in rejected if line.reason not in CONSEQUENCES]
    if not causes:
        return "no classes: the annotations contain none; check --input, --input_format and --source_split"
    return f"no classes: no annotation can be used; {describe_rejections(causes)}"
