"""One worker of a layout: trains each variant for some steps and, on the chief, writes its losses and weights.

python curve_worker.py JOB.json        with TF_CONFIG where there are several workers
"""

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras

from ssd_dist.core.anchors import generate_anchors
from ssd_dist.core.config import Config
from ssd_dist.core.config_files import load_config
from ssd_dist.data.pipeline import plan_training
from ssd_dist.data.storage import load_manifest
from ssd_dist.model.batch_norm import SyncBatchNormalization
from ssd_dist.training import state as state_module
from ssd_dist.training.cluster import create_strategy, read_worker_role
from ssd_dist.training.run import distribute_training, make_reproducible
from ssd_dist.training.state import create_state
from ssd_dist.training.trainer import DetectorTrainer


def build_tiny_detector(config: Config, class_count: int) -> tf_keras.Model:
    """Outputs of the real detector's shapes from few operations: traced in a second, and with batch norm to share."""
    size = config.model.input_size
    anchors = len(generate_anchors(config.anchors, size))
    kind = SyncBatchNormalization if config.train.sync_batch_norm else tf_keras.layers.BatchNormalization
    image = tf_keras.Input([size, size, 3])
    features = tf_keras.layers.Conv2D(8, 8, strides=8, use_bias=False)(image)
    norm = kind(momentum=0.9, trainable=not config.backbone.freeze_batch_norm)
    features = tf_keras.layers.Activation("tanh")(norm(features))
    backbone = tf_keras.Model(image, tf_keras.layers.GlobalAveragePooling2D()(features), name="backbone")
    hidden = backbone(image)
    logits = tf_keras.layers.Dense(anchors * (class_count + 1))(hidden)
    offsets = tf_keras.layers.Dense(anchors * 4)(hidden)
    return tf_keras.Model(
        image,
        {
            "logits": tf_keras.layers.Reshape([anchors, class_count + 1])(logits),
            "offsets": tf_keras.layers.Reshape([anchors, 4])(offsets),
        },
    )


def train_variant(config: Config, strategy: tf.distribute.Strategy, steps: int) -> dict[str, np.ndarray]:
    """Losses and positives of each step, and the final weights, averages and scale as one vector each."""
    role = read_worker_role()
    manifest = load_manifest(config.data)
    plan = plan_training(config, manifest.split("train", config.data.dir), role.index, role.count)
    tf_keras.utils.set_random_seed(config.train.seed)
    with strategy.scope():
        state = create_state(config, len(manifest.classes), steps)
        trainer = DetectorTrainer(config, strategy, state, distribute_training(config, strategy, plan, state), steps)
    rows = []
    for _ in range(steps):
        rows.append(trainer.train(tf.constant(1)))

    def flatten(variables: list[tf.Variable]) -> np.ndarray:
        return np.concatenate([variable.numpy().ravel() for variable in variables])

    return {
        **{
            key: np.array([row[key] for row in rows])
            for key in ("loss", "loss/cls", "loss/loc", "positives", "negatives")
        },
        "weights": flatten(state.model.trainable_variables),
        "statistics": flatten(state.model.non_trainable_variables),
        "ema": flatten(list(state.ema.averages.values())),
        "applied": np.array(int(state.optimizer.applied_steps.numpy())),
    }


def main() -> None:
    """Runs the variants of a job file."""
    job = json.loads(Path(sys.argv[1]).read_text())
    configs = {
        name: load_config(job["base"], [*job["overrides"], *variant["overrides"]])
        for name, variant in job["variants"].items()
    }
    first = next(iter(configs.values()))
    # Graph optimization takes longer than these few steps.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    strategy = create_strategy(first.cluster)
    make_reproducible(first)
    real = state_module.build_detector
    for name, variant in job["variants"].items():
        state_module.build_detector = build_tiny_detector if variant["tiny"] else real
        results = train_variant(configs[name], strategy, variant["steps"])
        if read_worker_role().is_chief:
            np.savez(Path(job["output"]) / f"{name}.npz", **results)


if __name__ == "__main__":
    main()
