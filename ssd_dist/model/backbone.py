"""MobileNetV2 (Sandler et al. 2018) as the body of the detector: three taps at strides 8, 16 and 32.

image [B, S, S, 3] in [-1, 1]
  -> block_6_expand_relu   stride  8 (38 x 38 at 300)
  -> block_13_expand_relu  stride 16 (19 x 19)
  -> out_relu              stride 32 (10 x 10)
"""

import os
import uuid
from pathlib import Path

import tf_keras
from tf_keras import layers
from tf_keras.src.applications import mobilenet_v2

from ssd_dist.core.config import BackboneConfig, ModelConfig
from ssd_dist.core.errors import CheckpointError
from ssd_dist.model.batch_norm import ReplicaBatchNormalization, SyncBatchNormalization
from ssd_dist.model.convolutions import choose_convolution

# What Keras has weights of; for images of another size it takes those of 224.
IMAGENET_WIDTHS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
IMAGENET_SIZES = (96, 128, 160, 192, 224)
TAPS = ("block_6_expand_relu", "block_13_expand_relu", "out_relu")


def build_backbone(config: BackboneConfig, model: ModelConfig, sync_batch_norm: bool = False) -> tf_keras.Model:
    """The network from an image to its three taps, with the weights that the config names.

    Raises:
      CheckpointError: if the weight file is missing, is of another width, or cannot be downloaded.
    """
    shape = (model.input_size, model.input_size, 3)
    stock = tf_keras.applications.MobileNetV2(shape, alpha=model.width, include_top=False, weights=None)

    def clone_layer(layer: layers.Layer) -> layers.Layer:
        # Keras's MobileNetV2 fixes momentum 0.999, with which a short run is judged on ImageNet's statistics.
        if not isinstance(layer, layers.BatchNormalization):
            options = layer.get_config()
            return choose_convolution(type(layer), options).from_config(options)
        kind = SyncBatchNormalization if sync_batch_norm else ReplicaBatchNormalization
        norm = kind.from_config({**layer.get_config(), "momentum": model.batch_norm_momentum})
        # What learns nothing must not change by its statistics either.
        norm.trainable = not config.freeze_batch_norm and config.lr_scale > 0
        return norm

    network = tf_keras.models.clone_model(stock, clone_function=clone_layer)
    _load_weights(network, config, model)
    return tf_keras.Model(network.input, [network.get_layer(name).output for name in TAPS], name="backbone")


def check_weights_file(config: BackboneConfig) -> None:
    """Checks that the weights are here, if they are a file.

    Raises:
      CheckpointError: if it does not exist.
    """
    if config.weights not in ("none", "imagenet") and not Path(config.weights).is_file():
        raise CheckpointError(
            f"backbone.weights: file {config.weights} does not exist; give a Keras weight file, `imagenet` or `none`"
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
            f"backbone.weights: {config.weights} is not a MobileNetV2 without top of width {model.width}: {error}"
        ) from None


def _download_imagenet(model: ModelConfig) -> list:
    """ImageNet weights through Keras's own download and cache; CheckpointError where they cannot be had."""
    shape = (model.input_size, model.input_size, 3)
    path = _imagenet_file(model)
    try:
        if model.width in IMAGENET_WIDTHS and not path.exists():
            # Aside: another worker of this host may be at it as well, and one that is killed leaves half a file.
            aside = f"{path.name}.{uuid.uuid4().hex}"
            origin = mobilenet_v2.BASE_WEIGHT_PATH + path.name
            os.replace(tf_keras.utils.get_file(aside, origin, cache_subdir=path.parent.name), path)
        return tf_keras.applications.MobileNetV2(shape, alpha=model.width, include_top=False).get_weights()
    except Exception as error:  # Keras raises a bare Exception when a download fails
        damaged = f"delete {path} if it is damaged, or " if path.exists() else ""
        raise CheckpointError(
            f"backbone.weights: imagenet of width {model.width} cannot be had ({error}); {damaged}"
            "set backbone.weights to a weight file on this machine, or to none"
        ) from None


def _imagenet_file(model: ModelConfig) -> Path:
    """Where Keras keeps the weights that it takes for this model."""
    cache = Path.home() / ".keras"
    if not os.access(cache, os.W_OK):
        cache = Path("/tmp/.keras")
    size = model.input_size if model.input_size in IMAGENET_SIZES else 224
    return cache / "models" / f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{float(model.width)}_{size}_no_top.h5"
