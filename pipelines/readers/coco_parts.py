"""Locates the images of COCO files, and compares the files by their images."""

import re
from collections.abc import Iterable
from typing import Any, Protocol

from pipelines import beam_storage
from pipelines.file_names import base_name, stem_of
from pipelines.json_stream import JsonStreamError, stream_arrays
from pipelines.readers.folder import list_folder
from pipelines.readers.image_index import ImageIndex, locate_found
from pipelines.readers.label_studio_paths import remove_upload_prefix, to_upload_name
from pipelines.readers.sources import Location, locate_from_annotation, locate_image


class _Located(Protocol):
    @property
    def path(self) -> str: ...
    @property
    def images(self) -> str: ...
    @property
    def dataset(self) -> str: ...
    @property
    def is_indexed(self) -> bool: ...
    @property
    def split(self) -> str: ...


def read_listed(file: _Located) -> dict[str, str]:
    """Returns the ids of the images in a file by their paths; of a damaged file, those before the damage."""
    listed: dict[str, str] = {}
    locate = ImageLocator(file)
    try:
        with beam_storage.open_input(file.path) as stream:
            for _, _, item in stream_arrays(stream, ("images",)):
                if isinstance(item, dict) and isinstance(item.get("file_name"), str):
                    location = locate(item["file_name"])
                    listed[location.path] = str(normalize_id(item.get("id")))
    except (JsonStreamError, *beam_storage.UNREADABLE):
        # Reported when the file is read.
        pass
    return listed


class ImageLocator:
    """Locates the images of an annotation file.

    Args:
      file: the file.
    """

    def __init__(self, file: _Located) -> None:
        self._file = file
        listing = list_folder(file.images) if file.is_indexed else None
        self._by_name = ImageIndex(listing, file.split) if listing else None
        self._by_upload_name = ImageIndex(listing, file.split, key=to_upload_name) if listing else None

    def __call__(self, filename: str) -> Location:
        """Returns the location of the image with this name, in the folder that the name gives or in any other one.

        Label Studio adds a prefix to the names of uploaded files, which the original files do not have.
        """
        if self._by_name is None or self._by_upload_name is None:
            return _locate_directly(self._file, filename)
        folder, base = self._file.images, base_name(filename)
        found = self._by_name.find(filename) or self._by_upload_name.find(remove_upload_prefix(base))
        return locate_found(found, filename, folder) or locate_image(folder, base)


def _locate_directly(file: _Located, filename: str) -> Location:
    """Returns the location of an image in the folder that its name gives.

    A name such as ../images/a.jpg is relative to the file, if it is inside of the dataset. With `--image_dir`, it is
    below that folder.
    """
    name = filename.replace("\\", "/")
    if name.startswith("../") and not file.dataset:
        return locate_image(file.images, re.sub(r"^(\.\./)+", "", name), stem_of(name))
    beside = locate_from_annotation(file.path, filename, file.dataset) if file.dataset else None
    return beside or locate_image(file.images, filename, dataset=file.dataset)


def find_equal_ids(files: Iterable[_Located]) -> list[bool]:
    """Returns for each file whether it gives ids of earlier files to other images.

    A file that lists an image of an earlier file again is not marked: that image is a duplicate.
    """
    ids: set[str] = set()
    paths: set[str] = set()
    marks = []
    for file in files:
        listed = read_listed(file)
        marks.append(paths.isdisjoint(listed) and not ids.isdisjoint(listed.values()))
        ids.update(listed.values())
        paths |= listed.keys()
    return marks


def normalize_id(value: Any) -> Any:
    """Returns whole floats as integers, because pandas writes 1 as 1.0 in a column with gaps."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
