"""The backbone: MobileNetV2 (Sandler et al. 2018) with feature maps at strides 8, 16 and 32.

image [B, S, S, 3] in [-1, 1]
  -> block_6_expand_relu   stride  8 (38 x 38 at 300)
  -> block_13_expand_relu  stride 16 (19 x 19)
  -> out_relu              stride 32 (10 x 10)
"""

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tf_keras
from tf_keras import layers
from tf_keras.src.applications import mobilenet_v2

from ssd_dist.core.config import BackboneConfig, ModelConfig
from ssd_dist.core.errors import CheckpointError
from ssd_dist.core.storage import replace_file
from ssd_dist.model.batch_norm import GroupedBatchNormalization
from ssd_dist.model.convolutions import choose_convolution

# Keras provides ImageNet weights for these widths and sizes; other image sizes use the weights of size 224.
IMAGENET_WIDTHS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
IMAGENET_SIZES = (96, 128, 160, 192, 224)
TAPS = ("block_6_expand_relu", "block_13_expand_relu", "out_relu")


def build_backbone(config: BackboneConfig, model: ModelConfig) -> tf_keras.Model:
    """Builds the backbone and loads the weights that `backbone.weights` selects.

    Args:
      config: weights, learning rate scale and freezing of the batch norms.
      model: input size, width multiplier, momentum and group of the batch norms.

    Returns:
      A model from images [B, S, S, 3] to the three feature maps.

    Raises:
      CheckpointError: if the weight file is missing, has another width, or cannot be downloaded.
    """
    shape = (model.input_size, model.input_size, 3)
    stock = tf_keras.applications.MobileNetV2(shape, alpha=model.width, include_top=False, weights=None)

    def clone_layer(layer: layers.Layer) -> layers.Layer:
        # Keras's MobileNetV2 fixes momentum 0.999: after a short run the moving statistics would still be ImageNet's.
        if not isinstance(layer, layers.BatchNormalization):
            options = layer.get_config()
            return choose_convolution(type(layer), options).from_config(options)
        options = {"momentum": model.batch_norm_momentum, "group": model.batch_norm_group}
        norm = GroupedBatchNormalization.from_config({**layer.get_config(), **options})
        # A backbone that is not trained must keep its moving statistics, too.
        norm.trainable = not config.freeze_batch_norm and config.lr_scale > 0
        return norm

    network = tf_keras.models.clone_model(stock, clone_function=clone_layer)
    _load_weights(network, config, model)
    return tf_keras.Model(network.input, [network.get_layer(name).output for name in TAPS], name="backbone")


def check_weights_file(config: BackboneConfig) -> None:
    """Checks that the weight file exists, if `backbone.weights` is a path.

    Raises:
      CheckpointError: if the file does not exist.
    """
    if config.weights not in ("none", "imagenet") and not Path(config.weights).is_file():
        raise CheckpointError(
            f"backbone.weights: file {config.weights} does not exist; give the path of a Keras weight file, "
            "`imagenet` or `none`"
        )


def _load_weights(network: tf_keras.Model, config: BackboneConfig, model: ModelConfig) -> None:
    if config.weights == "none":
        return
    if config.weights == "imagenet":
        network.set_weights(_download_imagenet(model))
        return
    check_weights_file(config)
    try:
        network.load_weights(config.weights)
    except (ValueError, OSError, KeyError) as error:
        raise CheckpointError(
            f"backbone.weights: {config.weights} is not a MobileNetV2 without top of width {model.width}: {error}; "
            "give the weight file of this architecture, or set model.width to the width of the file"
        ) from None


def _download_imagenet(model: ModelConfig) -> list[npt.NDArray[np.float32]]:
    """Loads the ImageNet weights through Keras's download and cache; raises `CheckpointError` if that fails."""
    shape = (model.input_size, model.input_size, 3)
    path = _locate_imagenet_file(model)
    try:
        if model.width in IMAGENET_WIDTHS and not path.exists():
            # Other workers on this host may download at the same time, and a worker may be killed while it downloads.
            with replace_file(path) as temporary:
                origin = mobilenet_v2.BASE_WEIGHT_PATH + path.name
                tf_keras.utils.get_file(str(temporary), origin, cache_subdir=path.parent.name)
        return tf_keras.applications.MobileNetV2(shape, alpha=model.width, include_top=False).get_weights()
    except Exception as error:  # Keras raises a bare Exception when a download fails
        damaged = f"delete {path} if it is damaged, or " if path.exists() else ""
        raise CheckpointError(
            f"backbone.weights: cannot load the ImageNet weights of width {model.width} ({error}); {damaged}"
            "set backbone.weights to the path of a weight file, or to none"
        ) from None


def _locate_imagenet_file(model: ModelConfig) -> Path:
    """Returns the path at which Keras caches the ImageNet weights for this model."""
    cache = Path.home() / ".keras"
    if not os.access(cache, os.W_OK):
        cache = Path("/tmp/.keras")
    size = model.input_size if model.input_size in IMAGENET_SIZES else 224
    return cache / "models" / f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{float(model.width)}_{size}_no_top.h5"
