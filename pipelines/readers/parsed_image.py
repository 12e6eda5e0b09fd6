"""The content of one image's annotation, which the parsers of the rarer formats return.

A parser is a function of the bytes of one annotation file and yields one `ParsedImage` per image, whatever the file
contains: an entry that cannot be read becomes an image or a box with a `Problem`.
"""

from typing import NamedTuple

from pipelines.annotations import Box, Problem


class ParsedImage(NamedTuple):
    """One image as an annotation file describes it.

    Attributes:
      filename: name or path of the image file as written in the annotation; empty if the parser is called with the
        annotation of one image and the annotation does not name it.
      boxes: the objects; `Box.category` is the class name.
      where: position of the entry in the annotation file, for messages.
      size: (height, width) in pixels according to the annotation, or None.
      problem: set if the entry is unusable.
      split: the split that the annotation file gives to the image; empty if it gives none.
    """

    filename: str
    boxes: tuple[Box, ...] = ()
    where: str = ""
    size: tuple[int, int] | None = None
    problem: Problem | None = None
    split: str = ""

    @property
    def reduced(self) -> int:
        """Number of boxes that are the upright box around another shape: a polygon, rotated box, ellipse or mask."""
        return sum(box.is_reduced for box in self.boxes)
