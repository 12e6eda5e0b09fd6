"""The backbone: MobileNetV2 (Sandler et al. 2018) with feature maps at strides 8, 16 and 32.

image [B, S, S, 3] in [-1, 1]
  -> block_6_expand_relu   stride  8 (38 x 38 at 300)
  -> block_13_expand_relu  stride 16 (19 x 19)
  -> out_relu              stride 32 (10 x 10)
"""

from pathlib import Path

import tf_keras
from tf_keras import layers

from ssd_dist.core.config import BackboneConfig, ModelConfig
from ssd_dist.core.errors import CheckpointError
from ssd_dist.model.batch_norm import GroupedBatchNormalization
from ssd_dist.model.convolutions import choose_convolution
from ssd_dist.model.imagenet_weights import fetch_imagenet_weights

TAPS = ("block_6_expand_relu", "block_13_expand_relu", "out_relu")
# Name prefixes of the layers before the first numbered block: the convolution with stride 2, and block 0.
FIRST_LAYERS = ("Conv1", "bn_Conv1", "expanded_conv_")


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

    frozen = frozen_prefixes(config.frozen_blocks)

    def clone_layer(layer: layers.Layer) -> layers.Layer:
        options = layer.get_config()
        if isinstance(layer, layers.BatchNormalization):
            # Keras's MobileNetV2 fixes momentum 0.999: after a short run the moving statistics would still be
            # ImageNet's.
            options |= {"momentum": model.batch_norm_momentum, "group": model.batch_norm_group}
            clone = GroupedBatchNormalization.from_config(options)
            # A backbone that is not trained must keep its moving statistics, too.
            clone.trainable = not config.freeze_batch_norm and config.lr_scale > 0
        else:
            clone = choose_convolution(type(layer), options).from_config(options)
        clone.trainable = clone.trainable and not layer.name.startswith(frozen)
        return clone

    network = tf_keras.models.clone_model(stock, clone_function=clone_layer)
    _load_weights(network, config, model)
    return tf_keras.Model(network.input, [network.get_layer(name).output for name in TAPS], name="backbone")


def frozen_prefixes(blocks: int) -> tuple[str, ...]:
    """Returns the name prefixes of the first blocks and of the convolution before them.

    >>> frozen_prefixes(2)
    ('Conv1', 'bn_Conv1', 'expanded_conv_', 'block_1_')
    """
    return (*FIRST_LAYERS, *(f"block_{block}_" for block in range(1, blocks))) if blocks else ()


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
    check_weights_file(config)
    is_path = config.weights != "imagenet"
    path = config.weights if is_path else str(fetch_imagenet_weights(model.width, model.input_size))
    try:
        network.load_weights(path)
    except (ValueError, OSError, KeyError) as error:
        raise CheckpointError(
            f"backbone.weights: {path} is not a MobileNetV2 without top of width {model.width}: {error}; "
            "give the weight file of this architecture, or set model.width to the width of the file"
        ) from None
