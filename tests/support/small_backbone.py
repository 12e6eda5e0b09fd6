"""A backbone of a few blocks, which builds, converts and runs in a fraction of the time of a whole MobileNetV2."""

import itertools

import tf_keras
from tf_keras import layers

from ssd_dist.model.batch_norm import GroupedBatchNormalization


def build_few_blocks(config, model):
    """Builds a small backbone from the layer types of MobileNetV2, with feature maps at strides 8, 16 and 32."""
    numbers = itertools.count()

    def add(kind, *arguments, **options):
        # The same names in every model, as in MobileNetV2.
        return kind(*arguments, name=f"layer_{next(numbers)}", **options)

    def normalize(x, relu=True):
        x = add(GroupedBatchNormalization, model.batch_norm_group)(x)
        return add(layers.ReLU, 6.0)(x) if relu else x

    image = tf_keras.Input((model.input_size, model.input_size, 3))
    x, taps = normalize(add(layers.Conv2D, 8, 3, 2, "same", use_bias=False)(image)), []
    for _ in range(4):
        wide = normalize(add(layers.Conv2D, 24, 1, use_bias=False)(x))
        padded = add(layers.ZeroPadding2D, ((0, 1), (0, 1)))(wide)
        taps.append(normalize(add(layers.DepthwiseConv2D, 3, 2, use_bias=False)(padded)))
        narrow = normalize(add(layers.Conv2D, 8, 1, use_bias=False)(taps[-1]), relu=False)
        deep = normalize(add(layers.DepthwiseConv2D, 3, 1, "same", use_bias=False)(narrow), relu=False)
        x = add(layers.Add)([narrow, deep])
    return tf_keras.Model(image, taps[1:], name="backbone")
