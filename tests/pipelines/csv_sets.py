"""The header and the box of most CSV files in tests; reads the images and boxes of a split."""

from pipelines.annotations import Image, Listing, SeparateBox
from pipelines.readers.csv import find_files, group_files, read_entries
from pipelines.readers.sources import Source
from ssd_dist.core.config import Config

SMALL = Config.model_validate({"model": {"input_size": 64}})
HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
# The box of most tests, ymin, xmin, ymax, xmax in pixels of an image of 64 x 48 pixels.
BOX = (12.0, 10.0, 36.0, 50.0)


def read(path, split="train", source_split="", image_dir="", split_by=()):
    """Returns the images and boxes of a split."""
    source = Source((str(path),), image_dir, source_split, split, split_by)
    values = [value for group in group_files(find_files(source)) for value in read_entries(group, source)]
    images = [value for value in values if isinstance(value, Image)]
    listings = [value for value in values if isinstance(value, Listing)]
    assert sum(listing.images for listing in listings) == len(images)
    return images, [value for value in values if isinstance(value, SeparateBox)]
