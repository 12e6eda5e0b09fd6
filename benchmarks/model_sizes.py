"""Prints the size and the times of the detector by width and input size: python -m benchmarks.model_sizes.

The times are relative to width 1.0 at 300 pixels, measured in turns, because machines are noisy: of detection with one
image, without NMS, and of a forward and backward pass with a batch.
"""

from collections.abc import Callable

import tensorflow as tf
import tf_keras

from benchmarks.machine import name_processor
from benchmarks.rows import take_turns
from ssd_dist.core.config import AnchorConfig, BackboneConfig, ModelConfig
from ssd_dist.fitting.choose_config import build_gradient_computation
from ssd_dist.model.cost import Cost, count_cost
from ssd_dist.model.detector import build_detector

WIDTHS = (0.35, 0.5, 0.75, 1.0, 1.4)
SIZES = (224, 300, 400, 512)
CLASSES = 20
BATCH = 8
ROUNDS = 5


def main() -> None:
    reference = build(1.0, 300)
    detect_reference, train_reference = make_functions(reference, 300)
    print(f"{CLASSES} classes, batches of {BATCH} images, {name_processor()}\n")
    print("| width | input | million parameters | million multiply-adds | detection | training |")
    print("|---|---|---|---|---|---|")
    for width in WIDTHS:
        for size in SIZES:
            model = build(width, size)
            cost = sum(count_cost(model).values(), Cost())
            detect, train = make_functions(model, size)
            detection, training = (
                ours / theirs
                for ours, theirs in (
                    take_turns(detect, detect_reference, 4 * ROUNDS),
                    take_turns(train, train_reference, ROUNDS),
                )
            )
            millions = f"{cost.parameters / 1e6:.2f} | {cost.multiply_adds / 1e6:.0f}"
            print(f"| {width} | {size} | {millions} | {detection:.2f} | {training:.2f} |", flush=True)


def build(width: float, size: int) -> tf_keras.Model:
    """Returns the detector with random weights."""
    model = ModelConfig(width=width, input_size=size, batch_norm_group=BATCH)
    return build_detector(model, BackboneConfig(weights="none"), AnchorConfig(), CLASSES)


def make_functions(model: tf_keras.Model, size: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Returns functions that detect objects in one image, and compute the gradient of a batch."""
    image = tf.zeros([1, size, size, 3])

    @tf.function
    def detect() -> list[tf.Tensor]:
        return tf.nest.flatten(model(image, training=False))

    return lambda: [output.numpy() for output in detect()], build_gradient_computation(model, size, BATCH)


if __name__ == "__main__":
    main()
