"""What a run ends with: every number of the split, as a table on a terminal and as plain lines elsewhere."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from ssd_dist.core.manifest import Manifest, Split


def print_summary(manifest: Manifest, name: str, output: str) -> None:
    """Prints the split's numbers, and any leakage."""
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
    for leak in manifest.leakage:
        if name in leak.splits:
            print(
                f"warning: {leak.images} images are in both {leak.splits[0]} and {leak.splits[1]} "
                f"(e.g. {', '.join(leak.examples)}); training on them is refused unless data.allow_leakage is set"
            )


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
