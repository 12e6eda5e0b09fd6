"""What a reader is told: where the annotations and images are, and which of them belong to the split."""

import hashlib
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam

from pipelines import beam_storage
from pipelines.annotations import Problem
from pipelines.split_report import HASHES_NAME, PARTS_FOLDER, REJECTED_NAME
from ssd_dist.core.errors import DataError, UsageError

# Enough pieces for any number of local workers.
PIECES = 64


@dataclass(frozen=True)
class Source:
    """The flags that concern reading.

    Attributes:
      inputs: folders, files or patterns, as each format has it.
      image_dir: where the images are, if not where the format keeps them.
      split: the split of the source to read; empty if none was asked for.
      fallback_split: its name in the output, tried where `split` is empty.
      split_by: shares of a split by hash, or empty; the share is that of `fallback_split`.
    """

    inputs: tuple[str, ...]
    image_dir: str = ""
    split: str = ""
    fallback_split: str = ""
    split_by: tuple[tuple[str, float], ...] = ()

    @property
    def split_name(self) -> str:
        """The split to look for; empty where `split_by` cuts the whole source, the same whole for each share."""
        return self.split or ("" if self.split_by else self.fallback_split)

    def keeps(self, image_id: str) -> bool:
        """Whether the image is in this split by its hash; always, without `split_by`."""
        return not self.split_by or hashed_split(image_id, self.split_by) == self.fallback_split


def hashed_split(image_id: str, shares: tuple[tuple[str, float], ...]) -> str:
    """The split of an image, by its id alone: it stays there however the data set grows."""
    digest = hashlib.sha256(image_id.encode("utf-8", "surrogatepass")).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    bound = 0.0
    for name, share in shares:
        bound += share
        if point < bound:
            return name
    return shares[-1][0]


def parse_split_by(text: str) -> tuple[tuple[str, float], ...]:
    """Reads `train:0.8,val:0.1,test:0.1`.

    Raises:
      UsageError: if it is of another form or the shares do not add up to 1.
    """
    shares = []
    for part in filter(None, text.split(",")):
        name, _, share = part.partition(":")
        try:
            shares.append((name.strip(), float(share)))
        except ValueError:
            raise UsageError(f"--split_by={text}: expected NAME:SHARE, got {part!r}; e.g. train:0.8,val:0.2") from None
    if not all(name and share > 0 for name, share in shares):
        raise UsageError(f"--split_by={text}: every split needs a name and a share above 0")
    if len({name for name, _ in shares}) < len(shares):
        raise UsageError(f"--split_by={text}: a split is there twice; give each one share")
    if shares and abs(sum(share for _, share in shares) - 1) > 1e-6:
        raise UsageError(f"--split_by={text}: the shares add up to {sum(share for _, share in shares):g}, not to 1")
    return tuple(shares)


@dataclass(frozen=True)
class Location:
    """Where an image lies: its path, the stems to look under if its name has the wrong suffix, or what is wrong."""

    path: str = ""
    stems: tuple[str, ...] = ()
    problem: Problem | None = None


def locate_image(folder: str, filename: str, stem: str = "", home: str = "") -> Location:
    """Where an image of that file name lies.

    Where it is not there, one of the same stem, or of `stem`, will do, or one of the same stem below `home`.
    """
    clean = beam_storage.relative_path(filename)
    if clean is None:
        return Location(problem=Problem("path_traversal", f"file name {filename!r} leads out of {folder}"))
    stems = dict.fromkeys(name for name in (posixpath.splitext(clean)[0], stem) if name)
    candidates = [beam_storage.join(folder, name) for name in stems]
    if home and home != folder:
        candidates.append(beam_storage.join(home, posixpath.splitext(clean)[0]))
    return Location(beam_storage.join(folder, clean), tuple(candidates))


def find_inputs(pattern: str, suffixes: tuple[str, ...], names: tuple[str, ...]) -> list[str]:
    """The files that an input stands for: itself, those a pattern matches, or in a folder those of the first name.

    Raises:
      DataError: if there are none.
    """
    if beam_storage.is_pattern(pattern):
        found = beam_storage.match_files(pattern)
        if not found:
            raise DataError(f"--input={pattern} matches no file; check the pattern")
        return found
    require_input(pattern)
    if pattern.endswith(suffixes) or beam_storage.is_file(pattern):
        return [pattern]
    for name in names:
        found = beam_storage.match_below(pattern, name)
        if found:
            return found
    raise DataError(f"--input={pattern} holds none of {', '.join(names)}; name the files themselves")


def first_folder(candidates: list[str], what: str, mend: str) -> str:
    """The first of the folders that exists, other than one of shards.

    Raises:
      DataError: naming `what` is missing and where it was looked for.
    """
    for candidate in candidates:
        if beam_storage.exists(candidate) and not holds_shards(candidate):
            return candidate
    raise DataError(f"no {what} in {' or '.join(dict.fromkeys(candidates))}; {mend}")


def holds_shards(folder: str) -> bool:
    """Whether all that is in a folder was written by prepare, whose output may lie within the data set."""
    if not beam_storage.list_files(beam_storage.join(folder, PARTS_FOLDER)):
        return False
    parts = beam_storage.join(folder, PARTS_FOLDER, "")
    return all(
        path.startswith(parts)
        or path.endswith((".tfrecord", REJECTED_NAME, HASHES_NAME))
        or beam_storage.storage.TEMPORARY in posixpath.basename(path)
        for path in beam_storage.match_below(folder, "**")
    )


def find_listings(
    pattern: str, source: Source, suffixes: tuple[str, ...], of_split: tuple[str, ...], of_any: tuple[str, ...]
) -> list[str]:
    """The files of annotations that an input stands for, by the names they have for a split, or for any.

    Raises:
      DataError: if there are none; or several where `split_by` is to cut one, as those of different splits may give
        an id to two images.
    """
    if source.split_name:
        return find_inputs(pattern, suffixes, of_split)
    found = find_inputs(pattern, suffixes, of_any)
    if len(found) > 1 and not beam_storage.is_pattern(pattern):
        names = ", ".join(beam_storage.path_below(pattern, path) for path in found)
        raise DataError(
            f"--split_by: which of {names:.200} is to be split? name it as --input, or its split with --source_split"
        )
    return found


def find_images(path: str, home: str, source: Source) -> str:
    """The folder of the images of a file of annotations in a data set's folder, or beside the file itself.

    Raises:
      DataError: if it cannot be told.
    """
    if source.image_dir:
        return first_folder([source.image_dir], "images", "check --image_dir")
    split, name = source.split_name, posixpath.basename(path).partition(".")[0]
    # Without a split to look for, by what the file is called.
    name = name.removeprefix("instances_").removesuffix("_labels")
    names = (split, f"images/{split}", "images") if split else (f"images/{name}", "images", name)
    folders = [beam_storage.join(home, name) for name in names]
    return first_folder([*folders, folder_of(path)], "images", "name their folder with --image_dir")


def folder_of(path: str) -> str:
    """The folder that a file lies in."""
    return posixpath.dirname(path) or "."


def require_input(path: str) -> None:
    """Refuses a path that does not exist.

    Raises:
      DataError: naming it.
    """
    if not beam_storage.exists(path):
        raise DataError(f"--input={path} does not exist or is empty; check the path")


class SpreadInputs(beam.PTransform):
    """What there is to read, dealt to the workers.

    Dask's runner cuts everything into as many partitions as the first elements fill; empty lists fill up the few.
    """

    def __init__(self, inputs: Sequence[object]) -> None:
        super().__init__()
        self._inputs = inputs

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection:
        """Emits each input once."""
        return (
            begin
            | "List" >> beam.Create([[one] for one in self._inputs] + [[]] * PIECES)
            | "Spread" >> beam.Reshuffle()
            | "Unpack" >> beam.FlatMap(list).with_output_types(Any)
        )
