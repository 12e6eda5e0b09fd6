"""Prints all counts of a split at the end of a run, as a table on a terminal and as plain lines elsewhere."""

import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from rich.console import Console
from rich.table import Table

from pipelines.manifest_writer import load_hashes
from pipelines.shard_reports import read_reports
from pipelines.split_folder import COPIES_NAME
from ssd_dist.core.manifest import MANIFEST_NAME, TRAIN_SPLIT, Manifest, Split, View
from ssd_dist.core.printable import NAME_LENGTH, join_names, make_printable, print_line, shorten
from ssd_dist.core.storage import join

# Longest printed name of a count: a class name and the words before it.
MAX_KEY_LENGTH = NAME_LENGTH + 24
# Smallest fraction of the records that training must be able to read without a warning.
MIN_USED_FRACTION = 0.9


def print_summary(manifest: Manifest, name: str, output: str) -> None:
    """Prints the counts of a split, and warnings about problems to fix before training."""
    # Names of classes and folders may contain text that rich would take for markup.
    console = Console(markup=False, emoji=False)
    title = make_printable(f"{output}, split {name}")
    rows = [(make_printable(key, MAX_KEY_LENGTH), value) for key, value in summary_rows(manifest.splits[name])]
    if console.is_terminal:
        table = Table("", "", title=title, show_header=False)
        for key, value in rows:
            table.add_row(key, value)
        console.print(table)
    else:
        print_line(title)
        for key, value in rows:
            print_line(f"  {key}: {value}")
    for warning in find_warnings(manifest, name, output):
        print_line(f"warning: {warning}")


def print_class_warnings(manifest: Manifest) -> None:
    """Prints a warning if no split contains an object of some classes, or if classes differ in case only."""
    same: dict[str, list[str]] = {}
    for name in manifest.classes:
        same.setdefault(name.casefold(), []).append(name)
    similar = [names for names in same.values() if len(names) > 1]
    if similar:
        print_line(
            f"warning: the classes {' and '.join(similar[0]):.200} differ in case only; if they are one class, give "
            "it one name in the annotations"
        )
    splits = manifest.splits.values()
    unused = [name for name in manifest.classes if not any(_count_objects(split, name) for split in splits)]
    if unused[:1] == [*manifest.classes[:1]] and any("unknown_class" in split.rejected_boxes for split in splits):
        print_line(
            f"warning: no split contains an object of {unused[0]:.100}, and boxes of unknown classes were rejected; if "
            "these are YOLO labels whose class numbers begin with 1, subtract 1: the first class has the number 0"
        )
    elif unused:
        print_line(
            f"warning: no split contains an object of {', '.join(unused):.500}; the model has an output for each "
            "class, so omit classes that will not occur with --exclude_classes"
        )


def print_missing_splits(manifest: Manifest, output: str, omitted: Collection[str] = ()) -> None:
    """Prints a warning if the output lacks the split that training reads, or the one that it evaluates on.

    Args:
      manifest: the manifest of the output.
      output: its folder.
      omitted: splits that may be missing because they have no usable image, which is reported elsewhere.
    """
    names = manifest.splits
    if TRAIN_SPLIT not in names:
        print_line(
            f"warning: {output} has no split {TRAIN_SPLIT}, which training reads, only {join_names(names)}; add it "
            f"with --split={TRAIN_SPLIT} --source_split=NAME, or divide the source with --split_by=train:0.8,val:0.2"
        )
    elif "val" not in names:
        effect = "on the split test" if "test" in names else "nothing, so it cannot choose the best checkpoint"
        fix = "add it with --split=val --source_split=NAME, or divide the source with --split_by=train:0.8,val:0.2"
        advice = "" if "val" in omitted else f"; {fix}"
        print_line(f"warning: {output} has no split val; training evaluates {effect}{advice}")


def find_warnings(manifest: Manifest, name: str, output: str) -> Iterator[str]:
    """Yields a message for each property of the split that would harm training."""
    split = manifest.splits[name]
    for leak in manifest.leakage:
        if name in leak.splits:
            yield (
                f"{leak.images} images are in both {leak.splits[0]} and {leak.splits[1]} "
                f"(e.g. {join_names(leak.examples)}); remove them from one split, because training refuses them unless "
                "data.allow_leakage is set"
            )
    yield from split.warnings
    if rotated := split.rejected_images.get("rotated_image"):
        yield (
            f"{rotated} images were annotated before their EXIF rotation; other rotated images, whose boxes fit both "
            "ways, are in the shards, and their boxes are probably wrong; annotate the upright images"
        )
    # One hash for each different file.
    copies = split.images - len(load_hashes(join(output, split.image_hashes)))
    if copies:
        yield (
            f"{copies} images are byte for byte copies of other images of this split under other ids, see "
            f"{join(output, name, COPIES_NAME)}; if their annotations differ, objects annotated in only one copy are "
            "trained as background in the other; remove the copies or merge their annotations"
        )
    # The reports are many files, so they are read only if needed.
    reports = read_reports(output, name) if "unknown_class" in split.rejected_boxes else []
    unknown = sorted({class_name for report in reports for class_name in report.unknown_classes})
    if unknown:
        yield (
            f"boxes of {shorten(join_names(unknown), 500)} were rejected, so these objects are trained as background: "
            f"{join(output, MANIFEST_NAME)} does not contain these classes; prepare the split with most classes "
            "first, or list all classes with --classes, and write to another --output"
        )
    counts = [shard.examples for shard in split.views[0].shards]
    used, even = len(counts) * min(counts), split.views[0].examples // len(counts)
    if used < MIN_USED_FRACTION * split.views[0].examples and min(counts) < even:
        yield (
            f"the smallest of {len(counts)} shards holds {min(counts)} records and could hold {even}; training "
            f"reads that many records of each shard, {used} of {split.views[0].examples} in total. The rejected images "
            f"are probably at regular distances that fit the number of shards; prepare with "
            f"--shards={nearest_prime(len(counts))} into another --output"
        )


def _count_objects(split: Split, label: str) -> int:
    return split.views[0].objects_per_class.get(label, 0)


def nearest_prime(shards: int) -> int:
    """Returns the odd prime nearest to a number of shards that does not divide it.

    Rejected images at regular distances are then unlikely to fall into few shards.
    """
    nearest = (number for distance in itertools.count(1) for number in (shards - distance, shards + distance))
    return next(number for number in nearest if number > 2 and shards % number and is_prime(number))


def is_prime(number: int) -> bool:
    """Returns whether a number above 1 is prime."""
    return all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def summary_rows(split: Split) -> Iterator[tuple[str, str]]:
    """Yields (name, value) for each count of a split."""
    yield "images read", f"{split.images_read}"
    yield "images in shards", f"{split.images}"
    for reason, count in split.rejected_images.items():
        yield f"images rejected, {reason}", f"{count}"
    yield "boxes read", f"{split.boxes_read}"
    yield "boxes in shards", f"{split.boxes}"
    for reason, count in split.rejected_boxes.items():
        yield f"boxes rejected, {reason}", f"{count}"
    yield "boxes clipped", f"{split.clipped_boxes}"
    if split.reduced_boxes:
        yield "boxes made from polygons or rotated boxes", f"{split.reduced_boxes}"
    yield from view_rows(split.views[:1], "")
    yield from view_rows(split.views[1:], "augmented copies: ")


def view_rows(views: Sequence[View], prefix: str) -> Iterator[tuple[str, str]]:
    """Yields (name, value) for each count of augmented copies: their sum, or the mean per object."""
    if not views:
        return
    histogram: Counter[int] = Counter()
    objects: Counter[str] = Counter()
    for view in views:
        histogram.update(view.positives_per_object.histogram)
        objects.update(view.objects_per_class)
    count = sum(histogram.values())
    mean = sum(positives * times for positives, times in histogram.items()) / max(1, count)
    share = (histogram[0] + histogram[1]) / max(1, count)
    yield f"{prefix}shards", f"{sum(len(view.shards) for view in views)}"
    yield f"{prefix}bytes", f"{sum(shard.bytes for view in views for shard in view.shards)}"
    yield f"{prefix}records", f"{sum(view.examples for view in views)}"
    for name, number in objects.items():
        yield f"{prefix}objects of {name}", f"{number}"
    lowest, highest = min(histogram, default=0), max(histogram, default=0)
    yield f"{prefix}positives per object", f"{mean:.2f} (min {lowest}, max {highest}; fewer than two: {share:.1%})"
