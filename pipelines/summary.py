"""What a run ends with: every number of the split, as a table on a terminal and as plain lines elsewhere."""

import itertools
import math
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from pipelines import beam_storage
from pipelines.split_report import load_hashes, read_parts
from ssd_dist.core.manifest import MANIFEST_NAME, Manifest, Split

# The share of the records that training must reach.
EVEN = 0.9


def print_summary(manifest: Manifest, name: str, output: str) -> None:
    """Prints the split's numbers, and what is to be mended before training."""
    # Names of classes and folders may hold what looks like markup.
    console = Console(markup=False, emoji=False)
    rows = list(summary_rows(manifest.splits[name]))
    if console.is_terminal:
        table = Table("", "", title=f"{output}, split {name}", show_header=False)
        for key, value in rows:
            table.add_row(key, value)
        console.print(table)
    else:
        print(f"{output}, split {name}")
        for key, value in rows:
            print(f"  {key}: {value}")
    for warning in find_warnings(manifest, name, output):
        print(f"warning: {warning}")


def find_warnings(manifest: Manifest, name: str, output: str) -> Iterator[str]:
    """What a split has that training would suffer from."""
    split = manifest.splits[name]
    for leak in manifest.leakage:
        if name in leak.splits:
            yield (
                f"{leak.images} images are in both {leak.splits[0]} and {leak.splits[1]} "
                f"(e.g. {', '.join(leak.examples)}); training on them is refused unless data.allow_leakage is set"
            )
    # One hash for each different file.
    copies = split.images - len(load_hashes(beam_storage.join(output, split.image_hashes)))
    if copies:
        yield (
            f"{copies} images are byte for byte others of this split under other ids: where each has some of the "
            "objects, it teaches that those of the other are background; take copies out, or join their annotations"
        )
    # The parts are many files, and read for this alone.
    parts = read_parts(output, name) if "unknown_class" in split.rejected_boxes else []
    unknown = sorted({class_name for part in parts for class_name in part.unknown_classes})
    if unknown:
        yield (
            f"boxes of {', '.join(unknown):.500} were rejected, and what they show is background now: "
            f"{beam_storage.join(output, MANIFEST_NAME)} has no such class; prepare the split with most classes first, "
            "or name them all with --classes, into another --output"
        )
    counts = [shard.examples for shard in split.views[0].shards]
    used, even = len(counts) * min(counts), split.views[0].examples // len(counts)
    if used < EVEN * split.views[0].examples and min(counts) < even:
        yield (
            f"the smallest of {len(counts)} shards holds {min(counts)} records and could hold {even}; training "
            f"takes as many of each: {used} of {split.views[0].examples}. What is rejected keeps step with the shards: "
            f"prepare with --shards={near_prime(len(counts))} into another --output"
        )


def near_prime(shards: int) -> int:
    """The odd prime next to a number of shards, which does not divide it: few regular gaps are in step with both."""
    nearest = (number for distance in itertools.count(1) for number in (shards - distance, shards + distance))
    return next(number for number in nearest if number > 2 and shards % number and is_prime(number))


def is_prime(number: int) -> bool:
    """Whether a number above 1 is prime."""
    return all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def summary_rows(split: Split) -> Iterator[tuple[str, str]]:
    """(what, number) of a split."""
    yield "images read", f"{split.images_read}"
    yield "images in shards", f"{split.images}"
    for reason, count in split.rejected_images.items():
        yield f"images rejected, {reason}", f"{count}"
    yield "boxes read", f"{split.boxes_read}"
    yield "boxes in shards", f"{split.boxes}"
    for reason, count in split.rejected_boxes.items():
        yield f"boxes rejected, {reason}", f"{count}"
    yield "boxes clipped", f"{split.clipped_boxes}"
    for number, view in enumerate(split.views):
        prefix = f"view {number}: " if len(split.views) > 1 else ""
        positives = view.positives_per_object
        few = positives.histogram.get(0, 0) + positives.histogram.get(1, 0)
        share = few / max(1, sum(positives.histogram.values()))
        yield f"{prefix}shards", f"{len(view.shards)}"
        yield f"{prefix}bytes", f"{sum(shard.bytes for shard in view.shards)}"
        yield f"{prefix}records", f"{view.examples}"
        for name, count in view.objects_per_class.items():
            yield f"{prefix}objects of {name}", f"{count}"
        yield (
            f"{prefix}positives per object",
            f"{positives.mean:.2f} (min {positives.minimum}, max {positives.maximum}; fewer than two: {share:.1%})",
        )
