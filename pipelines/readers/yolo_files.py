"""Lists the image and text files of a YOLO dataset, and finds the labels that belong to a folder of images."""

import bisect
import posixpath
import re
from collections.abc import Iterator

from pipelines.file_names import fold_address, fold_name
from pipelines.readers.folder import Folder, is_image, list_folder
from pipelines.readers.yolo_config import CLASS_FILES, is_split_name

# A folder of images. The folder of their labels has the same name with `labels` instead: `images_train`,
# `labels_train`.
IMAGE_PART = re.compile(r"(images?|imgs?|jpegimages)(?![a-z])(.*)", re.IGNORECASE)
LABEL_NAMES = ("labels", "label", "Labels", "annotations")
# Label Studio puts eight hexadecimal digits and a hyphen before the name of an uploaded file.
UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-")
MAX_CANDIDATES = 20


def swap_images(folder: str) -> list[str]:
    """Returns the paths with `labels` instead of `images` in one part of a folder's path that begins so.

    `images/train` gives `labels/train` and `images_train` gives `labels_train`. The last such part is replaced first:
    `images/img_1` gives `images/labels_1`, then `labels/img_1`. The list is empty for a path without such a part.
    """
    parts = folder.split("/")
    matches = [(index, IMAGE_PART.fullmatch(part)) for index, part in enumerate(parts)]
    return [
        "/".join([*parts[:index], name + match[2], *parts[index + 1 :]])
        for index, match in reversed(matches)
        if match is not None
        for name in LABEL_NAMES
    ]


def list_label_paths(image: str) -> list[str]:
    """Returns the paths, with the suffix of the image, that its label may have: in folders of labels, then beside it.

    Only folders are renamed, because images may have names such as IMG_0001.jpg.
    """
    folder, name = posixpath.split(image)
    return [*(posixpath.join(labels, name) for labels in swap_images(folder)), image]


def is_image_part(name: str) -> bool:
    """Returns whether a folder has a usual name of a folder of images."""
    return IMAGE_PART.fullmatch(name) is not None


def strip_suffix(path: str) -> str:
    """Returns the path without its suffix."""
    return posixpath.splitext(path)[0]


def strip_upload_prefix(stem: str) -> str:
    """Returns the path without the prefix that Label Studio adds to the file name."""
    folder, name = posixpath.split(stem)
    return posixpath.join(folder, UPLOAD_PREFIX.sub("", name, count=1))


class YoloFiles:
    """The image and text files in the folders of a dataset, by their paths.

    Args:
      folder: listing of the folder of the dataset, with its labels.
      images: listing of the folder of the images; another folder if `--image_dir` is given.
      is_file: whether `--input` is a file in the folder.

    Attributes:
      folder: listing of the folder of the dataset.
      root: path of the folder of the dataset.
      image_root: path of the folder of the images.
      has_image_dir: whether `--image_dir` is given.
      is_file: whether `--input` is a file in the folder.
      images: paths of the image files, sorted.
      texts: paths of the text files.
      image_counts: number of images in each folder and below it.
      text_counts: number of text files in each folder and below it, without those of class names.
    """

    def __init__(self, folder: Folder, images: Folder, is_file: bool = False) -> None:
        self.folder = folder
        self.root = folder.path
        self.image_root = images.path
        self.has_image_dir = images is not folder
        self.is_file = is_file
        self.images: list[str] = []
        self.texts: set[str] = set()
        self.image_counts: dict[str, int] = {}
        self.text_counts: dict[str, int] = {}
        self._text_by_stem: dict[str, str] = {}
        self._add_images(images)
        self._add_texts(folder)

    def add(self, path: str) -> None:
        """Adds the files of a folder that was not listed, for example one outside of the input."""
        folder = list_folder(path)
        self._add_images(folder)
        self._add_texts(folder)

    def add_labels(self, path: str) -> None:
        """Adds only the text files of a folder that is outside the listed folders; `add` also adds its images."""
        self._add_texts(list_folder(path))

    def _add_images(self, folder: Folder) -> None:
        known = set(self.images)
        for name in filter(is_image, folder.names):
            path = folder.join(name)
            if path not in known:
                self.images.append(path)
                _count(self.image_counts, folder, name)
        self.images.sort()

    def _add_texts(self, folder: Folder) -> None:
        for name in folder.names:
            path = folder.join(name)
            if name.lower().endswith(".txt") and path not in self.texts:
                self.texts.add(path)
                if posixpath.basename(name).lower() not in CLASS_FILES:
                    _count(self.text_counts, folder, name)
                stem = strip_suffix(path)
                for name_form in (stem, strip_upload_prefix(stem)):
                    self._text_by_stem.setdefault(fold_name(name_form), path)
                    self._text_by_stem.setdefault(fold_address(name_form), path)

    def image_folders(self) -> list[str]:
        """Returns the folders that directly contain images, sorted."""
        return sorted({posixpath.dirname(path) for path in self.images})

    def images_below(self, folder: str) -> Iterator[str]:
        """Yields the images in a folder and below it."""
        start = f"{folder.rstrip('/')}/"
        for row in range(bisect.bisect_left(self.images, start), len(self.images)):
            if not self.images[row].startswith(start):
                return
            yield self.images[row]

    def find_label(self, image: str, images: str, labels: str) -> str | None:
        """Returns the label file of an image, given the folders of the images and of the labels; None without one."""
        below = image[len(images.rstrip("/")) :]
        candidates = [f"{labels.rstrip('/')}{below}", *list_label_paths(image)]
        stems = (fold_name(strip_suffix(path)) for path in candidates)
        return next((self._text_by_stem[stem] for stem in stems if stem in self._text_by_stem), None)

    def has_pairs(self, images: str, labels: str) -> bool:
        """Returns whether an image of one folder has a label in the other one."""
        return any(self.find_label(path, images, labels) for path in self.images_below(images))

    def find_labels(self, images: str, home: str, hints: list[str]) -> str:
        """Returns the folder of the labels of a folder of images; empty if there is none.

        Args:
          images: folder of the images.
          home: folder of the YAML file, whose own labels are preferred.
          hints: names of the split.
        """
        parent = posixpath.dirname(images)
        nearby = [posixpath.join(folder, name) for folder in (images, parent) for name in LABEL_NAMES]
        for folder in (*swap_images(images), images, *nearby, *self._find_elsewhere(images, home, hints)):
            if self.text_counts.get(folder) and self.has_pairs(images, folder):
                return folder
        return ""

    def _find_elsewhere(self, images: str, home: str, hints: list[str]) -> list[str]:
        """Returns folders of labels that are neither in nor beside the folder of the images.

        One task of several may have its own folder of labels, and `--image_dir` may be anywhere.
        """
        parts = images.split("/")
        first = next((row for row in reversed(range(len(parts))) if is_image_part(parts[row])), len(parts) - 1)
        tails = swap_images("/".join(parts[first:]))
        tails += [tail for hint in [parts[-1], *hints] for tail in (f"labels/{hint}", f"{hint}/labels", hint)]
        if self.image_counts.get(images, 0) < len(self.images):
            # Labels of another folder of images may have the same names, so the folder must name the split.
            tails = [tail for tail in tails if any(map(is_split_name, tail.split("/")))]
            rest = []
        else:
            rest = sorted(self.text_counts, key=lambda folder: (folder.count("/"), folder))[:MAX_CANDIDATES]
        found = [folder for tail in tails for folder in sorted(self.text_counts) if f"/{folder}".endswith(f"/{tail}")]
        found.sort(key=lambda folder: not f"{folder}/".startswith(f"{home}/"))
        return [*found, *rest]


def _count(counts: dict[str, int], folder: Folder, name: str) -> None:
    while name:
        name = posixpath.dirname(name)
        path = folder.join(name)
        counts[path] = counts.get(path, 0) + 1
