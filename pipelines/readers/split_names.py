"""Finds the split of a file in its name or in the names of its folders."""

import posixpath
import re

from pipelines.readers.splits import SYNONYMS, output_split

SPLITS = frozenset(name for names in SYNONYMS.values() for name in names)


def split_words(name: str) -> list[str]:
    """Returns the words of a name, which are separated by spaces and punctuation."""
    return [word for word in re.split(r"[\W_]+", name) if word]


def is_split(name: str) -> bool:
    """Returns whether a name is that of a split: `train`, `Validation`, `test2017`."""
    return output_split(name).lower() in SPLITS


def find_split(path: str) -> str:
    """Returns the split that a relative path contains as a word; empty if there is none.

    The file name is searched first, then its folders from the nearest on. A name with words of several splits, such as
    `train_val`, is the name of none.
    """
    stem = posixpath.basename(path).partition(".")[0]
    for part in (stem, *reversed(posixpath.dirname(path).split("/"))):
        # Files of a split may be numbered: train00.tfrec. Four digits are the year of the dataset: train2017.
        plain = [re.sub(r"(?<=[A-Za-z])\d{1,3}$", "", word) for word in split_words(part)]
        words = list(dict.fromkeys(word for word in plain if is_split(word)))
        if words:
            return words[0] if len(words) == 1 else ""
    return ""


def names_split(folder: str, split: str) -> bool:
    """Returns whether a path of folders contains a name of the split, such as training_images for `train`."""
    return any(output_split(word.lower()) == output_split(split.lower()) for word in split_words(folder))
