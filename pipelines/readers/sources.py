"""Describes what a reader reads, and locates annotation files, image folders and image files."""

import hashlib
import posixpath
import re
from dataclasses import dataclass

from pipelines import beam_storage
from pipelines.annotations import Problem
from pipelines.split_folder import contains_only_output
from ssd_dist.core.errors import DataError, UsageError
from ssd_dist.core.storage import is_remote, join


@dataclass(frozen=True)
class Source:
    """The values of the flags that a reader needs.

    Attributes:
      inputs: folders, files or patterns; each format documents which it accepts.
      image_dir: folder of the images; empty for the folder that the format defines.
      split: value of `--source_split`, the split of the source to read; may be empty.
      output_split: name of the split in the output; the split to read if `split` is empty.
      split_by: name and share of each split if the source is split by hash, otherwise empty. The images in the share
        of `output_split` are read.
      reads_all_names: whether `split` is the name of the split in the output, and all splits of the inputs that get
        this name are read: `val` and `valid` for `val`. An input without splits is then read as a whole.
      all_inputs: all inputs of the job, whose annotations may describe images of the same folder; empty for `inputs`.
    """

    inputs: tuple[str, ...]
    image_dir: str = ""
    split: str = ""
    output_split: str = ""
    split_by: tuple[tuple[str, float], ...] = ()
    reads_all_names: bool = False
    all_inputs: tuple[str, ...] = ()

    @property
    def split_name(self) -> str:
        """Name of the split to look for; empty if `split_by` divides the whole source.

        With `split_by` the name of the output split is not used, because every share must be taken from the same set.
        """
        return self.split or ("" if self.split_by else self.output_split)

    def includes(self, image_id: str) -> bool:
        """Returns whether the split contains the image; always true without `split_by`."""
        return not self.split_by or assign_split(image_id, self.split_by) == self.output_split


def assign_split(image_id: str, shares: tuple[tuple[str, float], ...]) -> str:
    """Returns the split of an image.

    The result depends only on the image id and the shares, so an image stays in its split when the dataset grows.
    """
    digest = hashlib.sha256(image_id.encode("utf-8", "surrogatepass")).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    bound = 0.0
    for name, share in shares:
        bound += share
        if point < bound:
            return name
    return shares[-1][0]


def parse_split_by(text: str) -> tuple[tuple[str, float], ...]:
    """Parses the value of `--split_by`, for example `train:0.8,val:0.1,test:0.1`; returns (name, share) pairs.

    Raises:
      UsageError: if the text has another form or the shares do not add up to 1.
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
        raise UsageError(f"--split_by={text}: a split is listed twice; list each split once")
    if shares and abs(sum(share for _, share in shares) - 1) > 1e-6:
        raise UsageError(f"--split_by={text}: the shares must add up to 1, not {sum(share for _, share in shares):g}")
    return tuple(shares)


@dataclass(frozen=True)
class Location:
    """Where an image file is.

    Attributes:
      path: path of the file.
      stems: paths without a suffix; if there is no file at `path`, a file with one of these stems is used.
      problem: set if the file name is not usable.
    """

    path: str = ""
    stems: tuple[str, ...] = ()
    problem: Problem | None = None


def locate_image(folder: str, filename: str, stem: str = "", dataset: str = "") -> Location:
    """Returns the location of an image file.

    Args:
      folder: folder of the images.
      filename: file name relative to `folder`.
      stem: second file name, without a suffix, to try below `folder`.
      dataset: folder of the dataset; the file name may also be relative to it. Empty to search only `folder`.

    An absolute path comes from the machine on which the images were annotated; only its base name is used.
    """
    name = posixpath.basename(filename.replace("\\", "/")) if is_absolute(filename) else filename
    clean = beam_storage.relative_path(name)
    if clean is None:
        return Location(problem=Problem("path_traversal", f"file name {filename!r} points outside of {folder}"))
    stems = dict.fromkeys(name for name in (posixpath.splitext(clean)[0], stem) if name)
    candidates = [join(folder, name) for name in stems]
    if dataset and dataset != folder:
        candidates.append(join(dataset, posixpath.splitext(clean)[0]))
    return Location(join(folder, clean), tuple(candidates))


def locate_from_annotation(annotation: str, filename: str, folder: str) -> Location | None:
    """Returns the location of an image by a name such as ../images/a.jpg, relative to the annotation file.

    Args:
      annotation: path of the annotation file.
      filename: the name in it.
      folder: a folder that contains all images.

    Returns:
      None if the name has another form or leads out of `folder`, or if the annotation is remote.
    """
    name = filename.replace("\\", "/")
    if not name.startswith("../") or is_remote(annotation):
        return None
    inside = posixpath.relpath(posixpath.join(posixpath.dirname(annotation), name), folder)
    if f"{inside}/".startswith("../"):
        return None
    # As the files of the folder are listed: equal paths are compared as text.
    path = join(folder, inside)
    return Location(path, (posixpath.splitext(path)[0],))


def is_absolute(filename: str) -> bool:
    """Returns whether a file name is an absolute path or a URL, of any operating system."""
    return bool(re.match(r"[/\\]|[A-Za-z]:[/\\]|[a-z][a-z0-9+.-]+://", filename))


def find_inputs(pattern: str, suffixes: tuple[str, ...], names: tuple[str, ...]) -> list[str]:
    """Returns the files of one `--input`.

    Args:
      pattern: a file, a pattern, or a folder.
      suffixes: suffixes of annotation files.
      names: patterns to search for in a folder; the files that match the first successful pattern are returned.

    Raises:
      DataError: if there are no files.
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
    raise DataError(f"--input={pattern}: the folder contains none of {', '.join(names)}; pass the files as --input")


def first_folder(candidates: list[str], description: str, fix: str) -> str:
    """Returns the first folder that exists and is not the output of prepare.

    Args:
      candidates: paths of folders.
      description: what the folder contains, for the message.
      fix: how to fix the error, for the message.

    Raises:
      DataError: if there is none.
    """
    for candidate in candidates:
        if beam_storage.exists(candidate) and not contains_only_output(candidate):
            return candidate
    raise DataError(f"no {description} in {' or '.join(dict.fromkeys(candidates))}; {fix}")


def find_images(path: str, dataset: str, source: Source) -> str:
    """Returns the folder of the images of an annotation file.

    Args:
      path: the annotation file.
      dataset: folder of the dataset.
      source: the split to read and `image_dir`.

    Raises:
      DataError: if no folder contains images.
    """
    if source.image_dir:
        return first_folder([source.image_dir], "images", "check --image_dir")
    split, name = source.split_name, posixpath.basename(path).partition(".")[0]
    # Without a split name the name of the annotation file is used.
    name = name.removeprefix("instances_").removesuffix("_labels")
    names = (split, f"images/{split}", "images") if split else (f"images/{name}", "images", name)
    folders = [join(dataset, name) for name in names]
    return first_folder([*folders, parent_folder(path)], "images", "pass their folder as --image_dir")


def parent_folder(path: str) -> str:
    """Returns the folder of a file."""
    return posixpath.dirname(path) or "."


def require_input(path: str) -> None:
    """Checks that an input exists.

    Raises:
      DataError: if it does not.
    """
    if not beam_storage.exists(path):
        raise DataError(f"--input={path} does not exist or is empty; check the path")
