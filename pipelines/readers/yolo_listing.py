"""Lists the images of a YOLO dataset with their label files.

Images and labels are matched by their paths without suffix: exactly, or else independent of Unicode form and case, or
else without the prefix that Label Studio adds to file names, or without the percent-encoding of its addresses.
"""

import posixpath
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from pipelines import beam_storage
from pipelines.annotations import IMAGE_SUFFIXES, Problem
from pipelines.file_names import fold_address, fold_name
from pipelines.readers.folder import is_image, list_folder
from pipelines.readers.sources import locate_image, parent_folder
from pipelines.readers.yolo_config import CLASS_FILES, NOT_LABELS
from pipelines.readers.yolo_files import list_label_paths, strip_suffix, strip_upload_prefix, swap_images
from pipelines.readers.yolo_layout import YoloLayout, read_list
from pipelines.readers.yolo_places import list_tails
from ssd_dist.core.errors import DataError
from ssd_dist.core.storage import join

# Files that tools keep beside images under the same name. Any other file with the name of a label is taken for an image
# of an unknown format.
OTHER_SUFFIXES = (".txt", ".xml", ".json", ".csv", ".npy", ".yaml", ".yml", ".md")


@dataclass(frozen=True)
class YoloEntry:
    """One image to read.

    Attributes:
      image_id: id of the image.
      row: position in the listing.
      filename: file name in the dataset.
      image: path of the image; empty if there is only a label file.
      label: path of the label file; empty if there is none.
      problem: set if the image is not usable.
      key_prefix: prefix of the category keys, which differs between inputs with different class names.
      has_names: whether the class names are known; if not, the numbers in the label file are the classes.
      keypoint_numbers: numbers per object that describe keypoints.
    """

    image_id: str
    row: int
    filename: str
    image: str
    label: str
    problem: Problem | None = None
    key_prefix: str = ""
    has_names: bool = True
    keypoint_numbers: int = 0


def list_images(layout: YoloLayout) -> Iterator[YoloEntry]:
    """Yields the images of a layout; a label file without an image is listed too, so that it is reported.

    Raises:
      DataError: if a list file cannot be read, or none of the images in the list files has a label file.
    """
    return _read_lists(layout) if layout.list_files else _read_folders(layout)


def _read_folders(layout: YoloLayout) -> Iterator[YoloEntry]:
    """Yields the images and labels of the folders, sorted by name; two images with one stem give one id twice."""
    files = _list_files(layout.images, layout)
    images = [path for path in files if is_image(path)]
    labels = list(filter(_is_text, _list_files(layout.labels, layout)))
    pairs = _pair(images, labels, filter(_is_text, files), layout)
    base = beam_storage.path_below(layout.id_root, layout.images)
    unlabeled = _find_unlabeled([image for image in images if image not in pairs], layout)
    entries = [
        (join(base, _relative_stem(layout.images, image)), image, pairs.get(image, ""))
        for image in images
        if image in pairs or image in unlabeled or not layout.needs_label
    ]
    used = set(pairs.values())
    unmatched = [path for path in labels if path not in used and not _is_other_text(path, layout)]
    entries += [(join(base, _relative_stem(layout.labels, label)), "", label) for label in unmatched]
    others = {strip_suffix(path): path for path in files if not path.lower().endswith(OTHER_SUFFIXES)}
    for image_id, image, label in sorted(entries):
        path = image or others.get(join(layout.images, _relative_stem(layout.labels, label)), "")
        filename = beam_storage.path_below(layout.images, path) if path else ""
        yield YoloEntry(image_id, 0, filename, path, label, unlabeled.get(image) or _check_suffix(path))


def _find_unlabeled(images: list[str], layout: YoloLayout) -> dict[str, Problem]:
    """Returns the images without a label file in any folder of labels, if the layout reports them."""
    if not layout.reports_unlabeled:
        return {}
    left = images
    for folder in layout.other_labels:
        listing = list_folder(folder)
        labels = list(filter(_is_text, map(listing.join, listing.names)))
        pairs = _pair(left, labels, (), replace(layout, labels=folder))
        left = [image for image in left if image not in pairs]
    folders = " or ".join((layout.labels, *layout.other_labels))
    return dict.fromkeys(left, Problem("not_annotated", f"no label file in {folders:.300} describes this image file"))


def _list_files(folder: str, layout: YoloLayout) -> list[str]:
    """Returns the files in a folder and below it, without those of other splits."""
    listing = list_folder(folder)
    excluded = tuple(f"{other}/" for other in layout.excluded if other.startswith(f"{folder.rstrip('/')}/"))
    return [path for path in map(listing.join, listing.names) if not path.startswith(excluded)]


def _is_text(path: str) -> bool:
    return path.lower().endswith(".txt")


def _is_other_text(path: str, layout: YoloLayout) -> bool:
    """Returns whether a text file without an image has the name of a file that is not a label."""
    name = posixpath.basename(path)
    return name.lower() in CLASS_FILES or (layout.images == layout.labels and NOT_LABELS.fullmatch(name) is not None)


def _check_suffix(path: str) -> Problem | None:
    if not path or path.lower().endswith(IMAGE_SUFFIXES):
        return None
    suffix = posixpath.splitext(path)[1]
    return Problem("unsupported_format", f"{path}: {suffix} images are not supported; convert the image to JPEG or PNG")


def _pair(images: list[str], labels: list[str], beside: Iterable[str], layout: YoloLayout) -> dict[str, str]:
    """Returns the label file of each image that has one.

    Args:
      images: paths of the images.
      labels: paths of the text files in the folder of the labels.
      beside: paths of the text files in the folder of the images.
      layout: the folders.
    """
    start = layout.labels.rstrip("/")
    stems = {}
    for image in images:
        below = image[len(layout.images.rstrip("/")) :]
        stems[image] = [strip_suffix(path) for path in (f"{start}{below}", *list_label_paths(image))]
    pairs: dict[str, str] = {}
    texts = list(dict.fromkeys([*beside, *labels]))
    for form, form_of_text in (
        *((str, str), (fold_name, fold_name), (fold_name, _strip_prefix)),
        *((fold_name, fold_address), (fold_name, _strip_prefix_of_address)),
    ):
        used = set(pairs.values())
        text_by_form = {form_of_text(strip_suffix(path)): path for path in texts if path not in used}
        for image in images:
            if image not in pairs:
                label = next(filter(None, (text_by_form.get(form(stem)) for stem in stems[image])), "")
                if label:
                    pairs[image] = label
    return pairs


def _strip_prefix(stem: str) -> str:
    return fold_name(strip_upload_prefix(stem))


def _strip_prefix_of_address(stem: str) -> str:
    return fold_address(strip_upload_prefix(stem))


def _relative_stem(folder: str, path: str) -> str:
    """Returns the path relative to the folder, without its suffix."""
    return strip_suffix(beam_storage.path_below(folder, path))


class _Paths:
    """Finds files by their paths, or else by the same path in another Unicode form or case.

    Args:
      paths: the files.
      key: what to compare of a path, for example all but its suffix.
    """

    def __init__(self, paths: Iterable[str], key: Callable[[str], str]) -> None:
        self._key = key
        self._exact = {key(path): path for path in paths}
        self._normalized = {fold_name(name): path for name, path in self._exact.items()}

    def find(self, candidates: Iterable[str]) -> tuple[str, str] | None:
        """Returns the first candidate that exists, and the path of its file."""
        for candidate in candidates:
            name = self._key(candidate)
            path = self._exact.get(name) or self._normalized.get(fold_name(name))
            if path:
                return candidate, path
        return None


def _read_lists(layout: YoloLayout) -> Iterator[YoloEntry]:
    """Yields the images of the list files in order; ids are relative to the deepest folder that contains them all."""
    files = _ListedFiles(layout)
    listed = [files.find(line, path) for path in layout.list_files for line in read_list(path)]
    folders = [
        posixpath.dirname(beam_storage.path_below(layout.images, one.image_id)) for one in listed if not one.problem
    ]
    shared = join(layout.images, posixpath.commonpath(folders) if folders else "")
    for one in listed:
        is_below = one.image_id.startswith(f"{shared.rstrip('/')}/")
        image_id = _relative_stem(shared, one.image_id) if is_below else strip_suffix(posixpath.basename(one.image_id))
        yield replace(one, image_id=image_id)
    images = [one for one in listed if not one.problem]
    if images and not any(one.label for one in images):
        tried = dict.fromkeys(posixpath.dirname(list_label_paths(one.image)[0]) for one in images)
        raise DataError(
            f"{layout.list_files[0]}: none of {len(images)} images has a label file in {' or '.join(tried):.300}; move "
            "the images to a folder named images and the labels to a folder named labels next to it"
        )


class _ListedFiles:
    """The files among which listed images and their labels are searched."""

    def __init__(self, layout: YoloLayout) -> None:
        self.layout = layout
        folders = dict.fromkeys([layout.images, *swap_images(layout.images), layout.labels])
        files = [path for listing in map(list_folder, folders) for path in map(listing.join, listing.names)]
        start = f"{layout.images.rstrip('/')}/"
        images = [path for path in files if is_image(path) and path.startswith(start)]
        self.images = _Paths(images, str)
        self.images_by_stem = _Paths(images, strip_suffix)
        self.labels = _Paths(filter(_is_text, files), strip_suffix)
        self.images_by_name: dict[str, set[str]] = {}
        for path in images:
            self.images_by_name.setdefault(fold_name(posixpath.basename(path)), set()).add(path)

    def find(self, line: str, list_file: str) -> YoloEntry:
        """Returns the image of a line and its label; the id is the path as the line writes it, with its suffix.

        The path may be relative to the list file, to the YAML file or to the dataset, and it may begin with folders of
        another machine.
        """
        tails = [tail for tail in list_tails(line) if tail]
        bases = dict.fromkeys((parent_folder(list_file), self.layout.home or self.layout.images, self.layout.images))
        paths = [join(base, tail) for tail in tails for base in bases]
        found = self.images.find(paths) or self.images_by_stem.find(paths)
        # A split in the path is not ignored, unless the images are in a folder of their own (`--image_dir`).
        if found is None and tails and ("/" not in tails[-1] or self.layout.images != self.layout.labels):
            alike = [*self.images_by_name.get(fold_name(posixpath.basename(tails[-1])), ())]
            found = (alike[0], alike[0]) if len(alike) == 1 else None
        if found is None:
            return self._report_missing(line)
        name, image = found
        return YoloEntry(name, 0, line, image, self._find_label(image, tails), _check_suffix(image))

    def _report_missing(self, line: str) -> YoloEntry:
        location = locate_image(self.layout.images, line)
        detail = f"{line} is not in {self.layout.images}; pass the folder of the images as --image_dir"
        problem = location.problem or Problem("missing_image", detail)
        return YoloEntry(location.path or posixpath.basename(line), 0, line, "", "", problem)

    def _find_label(self, image: str, tails: list[str]) -> str:
        bases = dict.fromkeys((self.layout.home or self.layout.labels, self.layout.labels))
        below = [name for tail in tails for name in list_label_paths(tail)]
        candidates = [*list_label_paths(image), *(join(base, name) for name in below for base in bases)]
        found = self.labels.find(candidates)
        return found[1] if found else ""
