"""The detector as it is shipped: pixels or JPEG bytes in, named detections out.

encoded bytes [N]  -> decode -> resize to S x S ->|
uint8 [N, S, S, 3] -> normalise -> network (batch norm folded) -> softmax, decode, suppress -> detections
"""

import numpy as np
import tensorflow as tf
import tf_keras

from ssd_dist.core.config import Config
from ssd_dist.export.folding import fold_batch_norm
from ssd_dist.model.detector import normalize_image
from ssd_dist.model.postprocessing import anchor_tensor, detect


class ServedDetector(tf.Module):
    """Signatures around a trained model; `postprocess` False leaves logits and offsets to the caller."""

    def __init__(self, model: tf_keras.Model, config: Config, classes: tuple[str, ...], postprocess: bool) -> None:
        super().__init__()
        folded = fold_batch_norm(model)
        # In a closure and as a bare list: of a model that is an attribute, saving would walk every layer and trace
        # a dozen functions of each, for four times as long and into a larger file.
        self._network = lambda pixels: folded(pixels, training=False)
        self._weights = folded.variables
        self.size = config.model.input_size
        self.postprocess = postprocess
        self._config = config
        # No tensors: what a function captures becomes an input of an ONNX graph; these become constants.
        self._anchors = anchor_tensor(config).numpy()
        self._names = np.array(["", *classes])

    def detect_pixels(self, images: tf.Tensor, with_names: bool = False) -> dict[str, tf.Tensor]:
        """Detections on pixels [N, S, S, 3] in 0..255, as `boxes`, `labels`, `scores`; or `logits` and `offsets`."""
        outputs = self._network(normalize_image(images))
        if not self.postprocess:
            return {name: tf.identity(value, name) for name, value in outputs.items()}
        found = detect(outputs, tf.constant(self._anchors), self._config.anchors, self._config.eval)
        names = {"names": tf.gather(tf.constant(self._names), found.labels)} if with_names else {}
        return {name: tf.identity(value, name) for name, value in (found._asdict() | names).items()}

    def detect_encoded(self, encoded: tf.Tensor) -> dict[str, tf.Tensor]:
        """Detections on encoded images [N] (JPEG, PNG, BMP or GIF) of any size; EXIF turns are not looked at."""

        def read(data: tf.Tensor) -> tf.Tensor:
            image = tf.io.decode_image(data, channels=3, expand_animations=False)
            image = tf.image.resize(image, [self.size, self.size], antialias=True)
            return tf.cast(tf.round(tf.clip_by_value(image, 0.0, 255.0)), tf.uint8)

        pixels = tf.map_fn(read, encoded, fn_output_signature=tf.TensorSpec([self.size, self.size, 3], tf.uint8))
        return self.detect_pixels(pixels, with_names=True)
