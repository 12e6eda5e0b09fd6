"""Makes small YOLO datasets of one box per image, and reads the images and classes of a split."""

from pipelines.annotations import Category, Image
from pipelines.readers.sources import Source
from pipelines.readers.yolo import choose_layouts, list_labels, read_label

# `write_files` writes an image.
IMAGE = None
# A box of class 1: y 0.4..0.6, x 0.2..0.4.
LINE = "1 0.3 0.5 0.2 0.2\n"
CORNERS = (0.4, 0.2, 0.6, 0.4)
NAMES = "names: [bolt, nut]\n"
DATA = "train: images/train\nval: images/val\n" + NAMES


def values_of(folder, split="train", image_dir="", **rest):
    """Returns the values that the reader yields for a split."""
    source = Source((str(folder),), str(image_dir), output_split=split, **rest)
    entries = list(list_labels(choose_layouts(source), source))
    return [value for entry in entries for _, value in read_label(entry)]


def images_of(folder, split="train", image_dir="", **rest):
    """Returns the images of a split."""
    return [value for value in values_of(folder, split, image_dir, **rest) if isinstance(value, Image)]


def classes_of(folder, split="train", image_dir=""):
    """Returns the class names of a split in the order of their numbers."""
    found = {value for value in values_of(folder, split, image_dir) if isinstance(value, Category)}
    return [category.name for category in sorted(found, key=lambda category: category.order)]


def pairs(*stems, images="", labels="", line=LINE):
    """Returns images and their label files."""
    files = {}
    for stem in stems:
        files |= {f"{images}{stem}.jpg": IMAGE, f"{labels}{stem}.txt": line}
    return files
