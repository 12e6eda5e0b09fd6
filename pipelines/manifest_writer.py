"""Adds up the reports of all shards and writes the rejections, the image hashes and the manifest.

reports of all shards -> OUT/train/rejected.jsonl, OUT/train/image_hashes.npy -> OUT/dataset.json, last
"""

import contextlib
import io
import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import numpy.typing as npt

from pipelines import beam_storage
from pipelines.missing_classes import explain_missing_classes
from pipelines.rejection_limits import check_fractions, check_split
from pipelines.shard_reports import (
    Rejected,
    ShardReport,
    ViewReport,
    map_hashes_to_names,
    read_report,
    read_reports,
)
from pipelines.split_folder import COPIES_NAME, HASHES_NAME, PARTS_FOLDER, REJECTED_NAME
from pipelines.split_lock import check_job_id
from pipelines.suspicious_boxes import add_up, find_causes
from ssd_dist.core.config import Config
from ssd_dist.core.errors import DataError
from ssd_dist.core.manifest import (
    MANIFEST_NAME,
    CropSettings,
    Leakage,
    Manifest,
    PositivesPerObject,
    Split,
    View,
    fingerprint,
    target_spec,
)
from ssd_dist.core.storage import TEMPORARY, join

LEAKAGE_EXAMPLES = 5
SHARD_FILE = re.compile(r"(view\d{2,}-\d{5,}-of-\d{5,}\.tfrecord|\d{5,}-of-\d{5,}\.json)")


@dataclass(frozen=True)
class ManifestJob:
    """Settings of the job that writes the manifest.

    Attributes:
      output: folder of the manifest.
      config: the experiment.
      max_rejected_fraction: largest accepted fraction of rejected images, and of rejected boxes, in each split.
      job_id: id of the job, see `split_lock.py`.
      optional: splits to omit if they contain no images. A small source may leave a split empty.
    """

    output: str
    config: Config
    max_rejected_fraction: float
    job_id: str = ""
    optional: frozenset[str] = frozenset()


@dataclass(frozen=True)
class PreparedSplit:
    """A split whose shards are written.

    Attributes:
      name: name of the split.
      entry: its entry in the manifest.
      names: file names of its images, keyed by the hash of their bytes.
    """

    name: str
    entry: Split
    names: dict[int, str]


class WriteManifest(beam.DoFn):
    """Adds up the reports of all shards, writes the manifest and yields its path."""

    def __init__(self, job: ManifestJob) -> None:
        super().__init__()
        self._job = job

    def process(self, group: tuple[int, Iterable[tuple[str, str]]]) -> Iterator[str]:
        """Receives (name of the split, path) of all reports as one group."""
        yield write_manifest(sorted(group[1]), self._job)


def write_manifest(reports: Sequence[tuple[str, str]], job: ManifestJob) -> str:
    """Writes the rejections and the hashes, then adds the splits to the manifest; returns the path of the manifest.

    Args:
      reports: name of the split and path of each report.
      job: output folder, config and limit.

    Raises:
      DataError: if there are no classes, no usable image was found, too much was rejected, or another run changed the
        classes meanwhile.
    """
    paths_by_split: dict[str, list[str]] = {}
    for split, path in reports:
        paths_by_split.setdefault(split, []).append(path)
    classes = read_report(reports[0][1]).classes
    if not classes:
        raise DataError(reject_all_splits(paths_by_split, job.output))
    omitted = [
        name
        for name in sorted(job.optional & paths_by_split.keys())
        if not any(read_report(path).images for path in paths_by_split[name])
    ]
    for name in omitted:
        reject_split(name, paths_by_split.pop(name), job)
    prepared = [write_split(name, paths, job) for name, paths in paths_by_split.items()]
    for name in (*paths_by_split, *omitted):
        check_job_id(job.output, name, job.job_id)
    path = join(job.output, MANIFEST_NAME)
    with beam_storage.locked(job.output):
        manifest = read_manifest(job.output)
        others = set() if manifest is None else {*manifest.splits} - {*paths_by_split} - job.optional
        if manifest is not None and others and manifest.classes != classes:
            # The same label would stand for different classes in different splits.
            raise DataError(f"{path}: another run wrote it meanwhile with other classes; run this one again")
        beam_storage.write_bytes(path, add_splits(manifest, prepared, classes, job).to_json().encode())
    for written in prepared:
        kept = [*paths_by_split[written.name], *(shard.file for view in written.entry.views for shard in view.shards)]
        delete_stale_files(join(job.output, written.name), kept)
    for name in omitted:
        delete_stale_files(join(job.output, name), [])
        beam_storage.delete_files([join(job.output, name, file) for file in (HASHES_NAME, COPIES_NAME)])
    return path


def reject_all_splits(paths_by_split: Mapping[str, Sequence[str]], output: str) -> str:
    """Writes the rejections of all splits of a dataset without classes; returns the reason."""
    rejected = [
        line
        for name, paths in paths_by_split.items()
        for line in write_rejections(join(output, name), list(map(read_report, paths)))
    ]
    files = " and ".join(join(output, name, REJECTED_NAME) for name in paths_by_split)
    return f"{explain_missing_classes(rejected)}; all reasons are in {files}"


def reject_split(name: str, paths: list[str], job: ManifestJob) -> None:
    """Writes the rejections of a split without a usable image.

    Raises:
      DataError: if too much was rejected.
    """
    reports = list(map(read_report, paths))
    rejected = write_rejections(join(job.output, name), reports)
    split = merge_reports(reports, "", rejected, None)
    check_fractions(name, split, rejected, job.output, job.max_rejected_fraction)


def write_rejections(folder: str, reports: Sequence[ShardReport]) -> list[Rejected]:
    """Writes the rejections of a split, a line for each image or box, and returns them in the order of the source."""
    rejected = sorted((line for report in reports for line in report.rejected), key=lambda line: line.index)
    lines = [json.dumps(line.model_dump(exclude={"index"}), ensure_ascii=False) for line in rejected]
    beam_storage.write_bytes(join(folder, REJECTED_NAME), "".join(f"{line}\n" for line in lines).encode())
    return rejected


def write_split(name: str, paths: list[str], job: ManifestJob) -> PreparedSplit:
    """Writes the rejections and the hashes of a split, from the reports of its shards.

    Raises:
      DataError: if it contains no usable image, or too much was rejected.
    """
    reports = list(map(read_report, paths))
    folder = join(job.output, name)
    rejected = write_rejections(folder, reports)
    names = map_hashes_to_names(reports)
    crops = CropSettings.from_config(job.config.data.augmentation) if len(reports[0].views) > 1 else None
    split = merge_reports(reports, f"{name}/{HASHES_NAME}", rejected, crops)
    check_split(name, split, rejected, job.output, job.max_rejected_fraction)
    _write_copies(join(folder, COPIES_NAME), reports)
    beam_storage.write_bytes(join(folder, HASHES_NAME), array_to_bytes(np.array(sorted(names), np.uint64)))
    return PreparedSplit(name, split, names)


def _write_copies(path: str, reports: list[ShardReport]) -> None:
    """Writes one line per group of images with the same bytes: their file names; no file if there are none."""
    names_by_digest: dict[str, list[str]] = {}
    for image in (image for report in reports for image in report.images):
        names_by_digest.setdefault(image.digest, []).append(image.name)
    groups = sorted(sorted(names) for names in names_by_digest.values() if len(names) > 1)
    if groups:
        lines = "".join(json.dumps({"images": names}, ensure_ascii=False) + "\n" for names in groups)
        beam_storage.write_bytes(path, lines.encode())
    else:
        beam_storage.delete_files([path])


def delete_stale_files(folder: str, kept: list[str]) -> None:
    """Deletes temporary files of killed or repeated attempts, and shards of an earlier run with another shard count.

    A trainer that reads every shard in the folder would otherwise read the same images twice.
    """
    names = {posixpath.basename(path) for path in kept}
    # Deeper folders are not searched, because a link there may lead out of the folder.
    found = [*beam_storage.list_files(folder), *beam_storage.list_files(join(folder, PARTS_FOLDER))]
    stale = [
        path
        for path, name in zip(found, map(posixpath.basename, found), strict=True)
        if TEMPORARY in name or (SHARD_FILE.fullmatch(name) and name not in names)
    ]
    beam_storage.delete_files(stale)


def merge_reports(
    reports: list[ShardReport], hashes: str, rejected: list[Rejected], crops: CropSettings | None
) -> Split:
    """Returns the manifest's entry of a split.

    Args:
      reports: the reports of all its shards.
      hashes: path of the image hashes, relative to the manifest.
      rejected: all rejections.
      crops: how the augmented copies were cropped, or None without augmented copies.
    """
    images = Counter(line.reason for line in rejected if not line.where)
    boxes = Counter(line.reason for line in rejected if line.where)
    boxes_written = sum(report.boxes for report in reports)
    files_per_view = zip(*(report.views for report in reports), strict=True)
    return Split(
        images_read=sum(report.images_read for report in reports),
        images=sum(len(report.images) for report in reports),
        boxes_read=sum(report.boxes_read for report in reports),
        boxes=boxes_written,
        rejected_images=dict(sorted(images.items())),
        rejected_boxes=dict(sorted(boxes.items())),
        clipped_boxes=sum(report.clipped_boxes for report in reports),
        reduced_boxes=sum(report.reduced_boxes for report in reports),
        warnings=tuple(find_causes(add_up(report.suspicious for report in reports), boxes_written)),
        image_hashes=hashes,
        views=tuple(_merge_files(files, reports[0].classes) for files in files_per_view),
        windows=crops,
    )


def _merge_files(files: tuple[ViewReport, ...], classes: tuple[str, ...]) -> View:
    objects = sum((Counter(file.objects) for file in files), Counter())
    positives = sum((Counter(file.positives) for file in files), Counter())
    count = sum(positives.values())
    return View(
        examples=sum(file.examples for file in files),
        shards=tuple(file.shard for file in files if file.shard is not None),
        objects_per_class={name: objects.get(name, 0) for name in classes},
        images_per_class=_count_images(files, classes),
        positives_per_object=PositivesPerObject(
            mean=sum(number * objects_ for number, objects_ in positives.items()) / max(1, count),
            minimum=min(positives, default=0),
            maximum=max(positives, default=0),
            histogram=dict(sorted(positives.items())),
        ),
    )


def _count_images(files: tuple[ViewReport, ...], classes: tuple[str, ...]) -> dict[str, int] | None:
    """Returns the number of images of each class; None if a shard was written by a version that did not count them."""
    if any(file.images_per_class is None and file.examples for file in files):
        return None
    images = sum((Counter(file.images_per_class) for file in files), Counter())
    return {name: images[name] for name in classes}


def read_manifest(output: str) -> Manifest | None:
    """Returns the manifest in a folder, or None if there is none."""
    path = join(output, MANIFEST_NAME)
    return Manifest.from_json(beam_storage.read_text(path), path) if beam_storage.exists(path) else None


def add_splits(
    manifest: Manifest | None, prepared: Sequence[PreparedSplit], classes: tuple[str, ...], job: ManifestJob
) -> Manifest:
    """Returns the manifest with the splits added or replaced, and with the leakage between all splits.

    Args:
      manifest: the manifest so far, or None.
      prepared: the splits.
      classes: names of the classes.
      job: output folder and config.
    """
    config = job.config
    spec = target_spec(config.anchors, config.matching, config.model.input_size)
    # An optional split that was omitted does not keep its entry of an earlier job.
    new = {split.name for split in prepared} | job.optional
    entries = {} if manifest is None else {name: old for name, old in manifest.splits.items() if name not in new}
    leakage = [] if manifest is None else [leak for leak in manifest.leakage if not new & {*leak.splits}]
    names_by_split = {split.name: split.names for split in prepared}
    for split in prepared:
        found = (find_leakage(job.output, split, name, entry, names_by_split) for name, entry in entries.items())
        leakage += filter(None, found)
        entries[split.name] = split.entry
    return Manifest(
        classes=classes,
        image_size=spec["image_size"],
        anchors=spec["anchors"],
        matching=spec["matching"],
        fingerprint=fingerprint(config.anchors, config.matching, config.model.input_size),
        splits=dict(sorted(entries.items())),
        leakage=tuple(sorted(leakage, key=lambda leak: leak.splits)),
    )


def find_leakage(
    output: str, split: PreparedSplit, other: str, entry: Split, names_by_split: Mapping[str, dict[int, str]]
) -> Leakage | None:
    """Returns the images of this split whose source bytes are also in another split, or None if there are none.

    Args:
      output: folder of the manifest.
      split: this split.
      other: name of the other split.
      entry: manifest entry of the other split.
      names_by_split: file names of the images, keyed by hash, of the splits of this job.
    """
    names = split.names
    path = join(output, entry.image_hashes)
    shared = np.intersect1d(load_hashes(path), np.array(sorted(names), np.uint64))
    if not len(shared):
        return None
    first, second = sorted((split.name, other))
    if first == other:
        # The examples are the names in the first split, so that the manifest does not depend on which split was
        # prepared last. The reports of a split of another job may disappear while it is prepared again.
        with contextlib.suppress(FileNotFoundError):
            found = names_by_split.get(other) or map_hashes_to_names(read_reports(output, other))
            names = {**names, **found}
    examples = sorted(names[int(digest)] for digest in shared)[:LEAKAGE_EXAMPLES]
    return Leakage(splits=(first, second), images=len(shared), examples=tuple(examples))


def array_to_bytes(array: npt.NDArray[np.uint64]) -> bytes:
    """Returns the array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def load_hashes(path: str) -> npt.NDArray[np.uint64]:
    """Returns the sorted hashes of the images of a split.

    Raises:
      DataError: if the file is missing or damaged.
    """
    try:
        return np.asarray(np.load(io.BytesIO(beam_storage.read_bytes(path)), allow_pickle=False), np.uint64)
    except FileNotFoundError:
        raise DataError(
            f"{path}: missing, although the manifest refers to it; prepare that split again first"
        ) from None
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: damaged ({error}); prepare that split again first") from None
