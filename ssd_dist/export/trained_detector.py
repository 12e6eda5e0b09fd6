"""The Python interface of a trained detector, loaded from a run or from an export: `ssd_dist.Detector`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from ssd_dist.core.config_files import format_override
from ssd_dist.core.errors import UsageError
from ssd_dist.core.folder_names import CONFIG_NAME
from ssd_dist.core.images import ImageError, convert_to_rgb
from ssd_dist.evaluation.detections import Detections
from ssd_dist.evaluation.evaluation_summary import summarize_evaluation
from ssd_dist.evaluation.thresholds import DEFAULT, parse_thresholds
from ssd_dist.export.export_folder import find_export_folder
from ssd_dist.export.exported_detector import evaluate_export, open_exported_detector
from ssd_dist.inference.image_files import read_image
from ssd_dist.inference.loaded_detector import LoadedDetector, open_run
from ssd_dist.inference.tiles import count_images_per_batch, detect_images
from ssd_dist.inference.trained_model import evaluate_split


@dataclass(frozen=True)
class ImageDetections:
    """The objects that were detected in one image, sorted by descending score.

    Attributes:
      names: the class name of each object.
      scores: float32 [D], from 0 to 1.
      boxes: float32 [D, 4], `[ymin, xmin, ymax, xmax]` as fractions of the image, upright by its EXIF orientation.
    """

    names: tuple[str, ...]
    scores: npt.NDArray[np.float32]
    boxes: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Detector:
    """A trained detector.

    Attributes:
      folder: the run or the export that it was loaded from.
      checkpoint: the checkpoint of the run; empty for an export.
      loaded: input size, batch size, class names and the network.
    """

    folder: str
    checkpoint: str
    loaded: LoadedDetector

    @classmethod
    def load(cls, folder: str | Path, checkpoint: str = "best") -> "Detector":
        """Loads a detector.

        Args:
          folder: the folder of a run or of an export (SavedModel, TFLite, ONNX or OpenVINO), the file of an export, or
            a folder that contains one export.
          checkpoint: "best", "last" or the path of a checkpoint; has no effect for an export.

        Raises:
          CheckpointError: if the folder contains neither a run nor an export, or several exports, or the checkpoint
            does not exist.
        """
        name = str(folder)
        export = None if (Path(folder) / CONFIG_NAME).exists() else find_export_folder(folder)
        if export is not None:
            return cls(str(export), "", open_exported_detector(name))
        return cls(name, checkpoint, open_run(name, checkpoint, ()))

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names."""
        return self.loaded.classes

    def predict(
        self,
        images: Sequence[str | Path | Image.Image | npt.NDArray[np.uint8]],
        score_threshold: float | str | Path = DEFAULT,
        tiles: int = 1,
    ) -> list[ImageDetections]:
        """Detects objects in images.

        Args:
          images: image files, local or on an object store, images of PIL, or RGB pixels, uint8 [H, W, 3]; of any
            size.
          score_threshold: objects with a lower score are omitted. A number, or any value of `--score_threshold` of
            `ssd-predict`: "RUN/metrics.json" has a threshold for each class, "0.4,dog:0.3" another one for dogs.
          tiles: N; above 1, objects are also detected in N x N overlapping tiles of each image, which finds smaller
            objects and takes up to 1 + N * N times as long.

        Returns:
          The detections of each image, in the order of `images`.

        Raises:
          UsageError: if `images` is a single image, an array is not an RGB image, or the threshold or `tiles` is not
            valid.
          ImageError: if a file is not an image, or an image has floating-point samples.
          OSError: if a file cannot be read; like that of an ImageError, the message starts with its name.
        """
        if isinstance(images, (str, Path, Image.Image)):
            name, item = ("this", "image") if isinstance(images, Image.Image) else (images, repr(str(images)))
            raise UsageError(f"predict: {name} is one image; give a list: [{item}]")
        thresholds = parse_thresholds(str(score_threshold), self.classes)
        results: list[ImageDetections] = []
        at_once = count_images_per_batch(self.loaded.batch_size, tiles)
        for start in range(0, len(images), at_once):
            batch = images[start : start + at_once]
            found = detect_images(self.loaded, [_open_image(image) for image in batch], [""] * len(batch), tiles)
            results.extend(self._select(detections, thresholds) for detections in found)
        return results

    def evaluate(self, dataset: str | Path, split: str = "val") -> dict[str, Any]:
        """Evaluates the detector on prepared data.

        Args:
          dataset: the folder that `ssd-prepare` wrote, or `RUN/data` of `ssd-fit`.
          split: name of the split.

        Returns:
          The content of the JSON file of `ssd-evaluate`: `coco/AP`, `coco/AP50` and the other metrics, `per_class`,
          `analysis` with the best score threshold of each class, and `constant_box`.

        Raises:
          DataError: if the data is missing, has no such split, or has another image size than the detector.
          CheckpointError: if the data has other classes.
        """
        data = [format_override("data.dir", str(dataset))]
        if self.checkpoint:
            # TensorFlow has started, so it can no longer split the CPU into the replicas of the training.
            overrides = [*data, "cluster.strategy=one_device"]
            _, manifest, ground_truths, detections = evaluate_split(self.folder, self.checkpoint, split, overrides)
        else:
            _, manifest, ground_truths, detections = evaluate_export(self.folder, "", split, data)
        return summarize_evaluation(ground_truths, detections, manifest.classes)

    def _select(self, found: Detections, thresholds: npt.NDArray[np.float64]) -> ImageDetections:
        shown = found.scores >= thresholds[found.labels - 1]
        names = tuple(self.classes[label - 1] for label in found.labels[shown])
        return ImageDetections(names, found.scores[shown], found.boxes[shown])


def _open_image(image: str | Path | Image.Image | npt.NDArray[np.uint8]) -> Image.Image:
    if isinstance(image, Image.Image):
        return convert_to_rgb(ImageOps.exif_transpose(image))
    if isinstance(image, (str, Path)):
        try:
            return read_image(str(image))
        except ImageError as error:
            raise ImageError(error.reason, f"{image}: {error}") from None
        except OSError as error:
            raise type(error)(f"{image}: {error.strerror or error}") from None
    if not isinstance(image, np.ndarray):
        raise UsageError(f"predict: {image!r} is not an image; give a path, an image of PIL, or RGB pixels as uint8")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UsageError(
            f"predict: an image is {image.dtype} {list(image.shape)}; give RGB pixels as uint8 [height, width, 3]"
        )
    return Image.fromarray(image)
