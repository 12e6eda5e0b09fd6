"""The exported detector: pixels or encoded images in, detections with class names out.

encoded bytes [N]  -> decode -> resize to S x S ->|
uint8 [N, S, S, 3] -> normalize -> network (batch norm folded) -> softmax, decode boxes, NMS -> detections
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
import tf_keras

from ssd_dist.core.anchors import generate_anchors
from ssd_dist.core.config import AnchorConfig, EvalConfig
from ssd_dist.export.folding import fold_batch_norm
from ssd_dist.model.detector import normalize_image
from ssd_dist.model.layer_names import find_following_norm, layers_by_part, name_variables
from ssd_dist.model.postprocessing import DetectionBatch, detect
from ssd_dist.model.quantization import list_limits, shift_pixels


@dataclass(frozen=True)
class OutputDecoder:
    """Decodes the network's outputs to detections.

    Attributes:
      anchors: float32 [A, 4], normalized. A NumPy array: a captured tensor would become an input of an ONNX graph,
        an array becomes a constant.
      anchor_config: the anchor settings, of which the variances that scale the offsets are used.
      eval_config: the evaluation settings, of which the score threshold and the settings of NMS are used.
    """

    anchors: np.ndarray
    anchor_config: AnchorConfig
    eval_config: EvalConfig

    @classmethod
    def create(cls, anchor_config: AnchorConfig, eval_config: EvalConfig, input_size: int) -> "OutputDecoder":
        """Creates the decoder for a model with a square input of `input_size` pixels."""
        return cls(generate_anchors(anchor_config, input_size), anchor_config, eval_config)

    def decode(self, outputs: dict[str, tf.Tensor]) -> DetectionBatch:
        """Decodes `logits` [N, A, C + 1] and `offsets` [N, A, 4]."""
        return detect(outputs, tf.constant(self.anchors), self.anchor_config, self.eval_config)


class ServedDetector(tf.Module):
    """The signatures of an exported model; without `postprocess` they return logits and offsets."""

    def __init__(
        self, model: tf_keras.Model, decoder: OutputDecoder, size: int, classes: Sequence[str], postprocess: bool
    ) -> None:
        super().__init__()
        folded = fold_batch_norm(model)
        # The model is held in a closure and its variables in a dict. As an attribute, saving would visit every layer
        # and trace a dozen functions per layer, which takes four times as long and gives a larger file.
        self._network: Callable[[tf.Tensor], dict[str, tf.Tensor]] = lambda pixels: folded(pixels, training=False)
        self._weights = {layer.name: _list_variables(layer) for _, layer in layers_by_part(folded)}
        # Those of the outputs belong to no part of the network.
        self._limits = tuple(list_limits(folded))
        self.is_rounded = bool(self._limits)
        # Without them, a later training could not start from the export: folding cannot be reversed.
        self._batch_norms = {
            layer.name: {norm.name: {k: tf.Variable(v, trainable=False) for k, v in _list_variables(norm).items()}}
            for _, layer in layers_by_part(model)
            if (norm := find_following_norm(layer)) is not None
        }
        self.size = size
        self.postprocess = postprocess
        self.decoder = decoder
        # A tuple: tf.Module would replace a list by an object that is saved.
        self.classes = tuple(classes)
        self._names = np.array(["", *classes])

    def detect_pixels(self, images: tf.Tensor, with_names: bool = False) -> dict[str, tf.Tensor]:
        """Detects objects in pixels [N, S, S, 3] in 0..255.

        Args:
          images: the pixels.
          with_names: whether the class name of each detection is returned as `names`.

        Returns:
          `boxes`, `labels` and `scores`; without post-processing `logits` and `offsets`.
        """
        normalize = shift_pixels if self.is_rounded else normalize_image
        return self.detect_normalized(normalize(images), with_names)

    def detect_normalized(self, pixels: tf.Tensor, with_names: bool = False) -> dict[str, tf.Tensor]:
        """Detects objects in float32 pixels [N, S, S, 3] that are normalized as the network needs them."""
        outputs = self._network(pixels)
        if not self.postprocess:
            return {name: tf.identity(value, name) for name, value in outputs.items()}
        found = self.decoder.decode(outputs)
        names = {"names": tf.gather(tf.constant(self._names), found.labels)} if with_names else {}
        return {name: tf.identity(value, name) for name, value in (found._asdict() | names).items()}

    def detect_encoded(self, encoded: tf.Tensor) -> dict[str, tf.Tensor]:
        """Detects objects in encoded images [N] (JPEG, PNG, BMP or GIF) of any size; EXIF orientation is ignored."""

        def read(data: tf.Tensor) -> tf.Tensor:
            image = tf.io.decode_image(data, channels=3, expand_animations=False)
            image = tf.image.resize(image, [self.size, self.size], antialias=True)
            return tf.cast(tf.round(tf.clip_by_value(image, 0.0, 255.0)), tf.uint8)

        pixels = tf.map_fn(read, encoded, fn_output_signature=tf.TensorSpec([self.size, self.size, 3], tf.uint8))
        return self.detect_pixels(pixels, with_names=True)


def _list_variables(layer: tf_keras.layers.Layer) -> dict[str, tf.Variable]:
    """Returns the variables of a layer by their own names, e.g. "kernel"."""
    return {name.rpartition("/")[2]: variable for name, variable in name_variables(layer).items()}
