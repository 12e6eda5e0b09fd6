"""ssd-sample: generates a labeled dataset, for the demo and for tests.

    python -m toyset.sample --output=DIR [--seed=0] [--train=600] [--val=120]

writes images of rendered toys on floors and meadows, in the layout of COCO:

    DIR/images/{train,val}/000001.jpg ...
    DIR/annotations/instances_{train,val}.json

Each image depends only on a hash of the seed, its split and its number. Requesting more images therefore does not
change the first ones.
"""

import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from absl import flags  # type: ignore[import-untyped]
from PIL import Image
from rich.progress import track

from ssd_dist.core.commands import required_flag, run_command
from ssd_dist.core.errors import UsageError
from ssd_dist.core.printable import print_line
from ssd_dist.core.storage import write_text
from toyset.placing import Kind
from toyset.scene import draw_scene
from toyset.toys import TOYS

# Kind by image number modulo 20, so that small datasets contain every kind as well.
SPECIAL_KINDS: dict[int, Kind] = {4: "pile", 9: "crowded", 14: "empty"}
# Up to this many images, starting processes takes longer than drawing.
FEW_IMAGES = 16


@dataclass(frozen=True)
class Draft:
    """The inputs of drawing one image.

    Attributes:
      seed, split, number: seed of its random generator; numbers start at 1.
      path: path of the JPEG file.
    """

    seed: int
    split: str
    number: int
    path: str

    def generator(self) -> np.random.Generator:
        """Returns the random generator of this image."""
        digest = hashlib.sha256(f"{self.seed}/{self.split}/{self.number}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:16], "big"))

    @property
    def kind(self) -> Kind:
        """The kind of scene."""
        return SPECIAL_KINDS.get(self.number % 20, "plain")


@dataclass(frozen=True)
class Drawn:
    """COCO annotations of one image: the image entry, and the object entries, which have no ids yet."""

    image: dict[str, Any]
    objects: list[dict[str, Any]]


def run_main() -> NoReturn:
    """Runs the console script."""
    flags.DEFINE_string("output", None, "Folder for the dataset; new or empty.")
    flags.DEFINE_integer("seed", 0, "Seed of the images.", lower_bound=0)
    flags.DEFINE_integer("train", 600, "Number of training images.", lower_bound=1)
    flags.DEFINE_integer("val", 120, "Number of validation images.", lower_bound=1)
    run_command(main)


def main(_: list[str]) -> None:
    """Generates the dataset that the flags describe and prints its counts."""
    output = Path(required_flag("output"))
    for split in ("train", "val"):
        annotations = write_split(output, split, flags.FLAGS[split].value, flags.FLAGS["seed"].value)
        crowds = sum(entry["iscrowd"] for entry in annotations["annotations"])
        print_line(
            f"{split}: {len(annotations['images'])} images, {len(annotations['annotations']) - crowds} objects of "
            f"{len(annotations['categories'])} classes, {crowds} crowds in {output}"
        )


def write_split(output: Path, split: str, count: int, seed: int) -> dict[str, Any]:
    """Generates the images of a split on all cores, writes them and their annotations, and returns the annotations.

    Raises:
      UsageError: if the folder already contains the split or cannot be written.
    """
    images, listing = output / "images" / split, output / "annotations" / f"instances_{split}.json"
    try:
        if listing.exists() or (images.is_dir() and any(images.iterdir())):
            raise UsageError(
                f"--output={output}: already contains split {split!r}; give a new folder or remove the split"
            )
        images.mkdir(parents=True, exist_ok=True)
        drafts = [Draft(seed, split, number, str(images / f"{number:06d}.jpg")) for number in range(1, count + 1)]
        drawn = track(draw_all(drafts), f"drawing {split}", count, disable=not sys.stdout.isatty())
        annotations = describe_split(drawn, split, seed)
        # The annotations come last: a folder that has them is complete.
        write_text(listing, json.dumps(annotations) + "\n")
    except OSError as error:
        raise UsageError(f"--output={output}: cannot be written ({error}); give a writable folder") from None
    return annotations


def draw_all(drafts: Sequence[Draft]) -> Iterator[Drawn]:
    """Draws images with one process per core and yields them in order."""
    cores = len(os.sched_getaffinity(0))
    if cores == 1 or len(drafts) <= FEW_IMAGES:
        yield from map(draw_image, drafts)
        return
    # Forking would copy the threads and locks of the caller.
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(draw_image, drafts, chunksize=8)


def draw_image(draft: Draft) -> Drawn:
    """Draws one image, writes its JPEG file and returns its annotations."""
    rng = draft.generator()
    scene = draw_scene(rng, draft.kind)
    Image.fromarray(scene.image).save(draft.path, "JPEG", quality=int(rng.integers(82, 96)))
    height, width, _ = scene.image.shape
    image = {"id": draft.number, "file_name": Path(draft.path).name, "width": width, "height": height}
    objects = [
        {
            "image_id": draft.number,
            "category_id": TOYS[found.name].category_id,
            "bbox": list(found.box),
            "area": found.area,
            "iscrowd": int(found.is_crowd),
        }
        for found in scene.objects
    ]
    return Drawn(image, objects)


def describe_split(drawn: Iterable[Drawn], split: str, seed: int) -> dict[str, Any]:
    """Returns the COCO annotations of a split; object ids are consecutive over all images."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image in drawn:
        images.append(image.image)
        for entry in image.objects:
            annotations.append({"id": len(annotations) + 1, **entry})
    categories = [
        {"id": toy.category_id, "name": name, "supercategory": "toy"}
        for name, toy in sorted(TOYS.items(), key=lambda item: item[1].category_id)
    ]
    info = {"description": f"ssd_dist sample, split {split}, seed {seed}", "version": "1"}
    return {"info": info, "licenses": [], "images": images, "annotations": annotations, "categories": categories}


if __name__ == "__main__":
    run_main()
