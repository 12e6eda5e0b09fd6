"""One worker of a job: trains each variant for some steps and writes its losses and weights.

python curve_worker.py JOB.json        with TF_CONFIG if there are several workers
"""

import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tensorflow as tf
import tf_keras

from ssd_dist.cluster.strategy import create_strategy, read_worker_role
from ssd_dist.core.anchors import generate_anchors
from ssd_dist.core.config import AnchorConfig, BackboneConfig, Config, ModelConfig, QuantizationConfig
from ssd_dist.core.config_files import load_config
from ssd_dist.data.pipeline import plan_training
from ssd_dist.data.shard_files import load_manifest
from ssd_dist.model.batch_norm import GroupedBatchNormalization
from ssd_dist.model.detector import NO_QUANTIZATION
from ssd_dist.model.quantization import simulate_quantization
from ssd_dist.training import assembly
from ssd_dist.training.precision import AMPContext
from ssd_dist.training.run import make_reproducible
from ssd_dist.training.state import TrainState
from ssd_dist.training.trainer import DetectorTrainer

REPORTED = ("loss", "loss/cls", "loss/loc", "positives", "negatives", "loss_scale")


def build_tiny_detector(
    model: ModelConfig,
    backbone: BackboneConfig,
    anchors: AnchorConfig,
    class_count: int,
    quantization: QuantizationConfig = NO_QUANTIZATION,
) -> tf_keras.Model:
    """Builds a network with batch norm and the detector's output shapes from few operations, traced in a second."""
    size = model.input_size
    anchor_count = len(generate_anchors(anchors, size))
    image = tf_keras.Input([size, size, 3])
    features = tf_keras.layers.Conv2D(8, 8, strides=8, use_bias=False)(image)
    norm = GroupedBatchNormalization(model.batch_norm_group, momentum=0.9, trainable=not backbone.freeze_batch_norm)
    # TensorFlow fuses tanh with the batch norm before it; on processors with AVX-512, that fails.
    features = tf_keras.layers.Activation("tanh")(tf_keras.layers.Rescaling(0.5)(norm(features)))
    pooled = tf_keras.layers.GlobalAveragePooling2D()(features)
    hidden = tf_keras.Model(image, pooled, name="backbone")(image)
    logits = tf_keras.layers.Dense(anchor_count * (class_count + 1))(hidden)
    offsets = tf_keras.layers.Dense(anchor_count * 4)(hidden)
    tiny = tf_keras.Model(
        image,
        {
            "logits": tf_keras.layers.Reshape([anchor_count, class_count + 1])(logits),
            "offsets": tf_keras.layers.Reshape([anchor_count, 4])(offsets),
        },
    )
    return simulate_quantization(tiny, quantization, model.batch_norm_group) if quantization.aware else tiny


def train_variant(
    config: Config, strategy: tf.distribute.Strategy, steps: int, overflow_at: int | None = None
) -> dict[str, np.ndarray]:
    """Trains `steps` steps and returns their reports, the final state as vectors, and `copies` of it per local replica.

    In step `overflow_at` an infinity is added to the gradient of the last replica of all workers.
    """
    state, trainer = create_trainer(config, strategy, steps)
    if overflow_at is not None:
        pack = state.optimizer.pack

        def pack_overflow(gradients: list[tf.Tensor]) -> list[tf.Tensor]:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            overflows = (replica == strategy.num_replicas_in_sync - 1) & (state.step == overflow_at - 1)
            added = tf.where(overflows, float("inf"), 0.0)
            return pack([gradients[0] + tf.cast(added, gradients[0].dtype), *gradients[1:]])

        state.optimizer.pack = pack_overflow
    rows = [trainer.train(tf.constant(1)) for _ in range(steps)]
    averages = list(state.ema.averages.values())
    counts = [state.loss_scale.scale, state.optimizer.inner_optimizer.applied_steps, state.step]
    return {
        **{key: np.array([row[key] for row in rows]) for key in REPORTED},
        "weights": flatten(state.model.trainable_variables),
        "statistics": flatten(state.model.non_trainable_variables),
        "ema": flatten(averages),
        "applied": np.array(int(state.optimizer.inner_optimizer.applied_steps.numpy())),
        "copies": flatten_copies(strategy, [*state.model.variables, *averages, *counts]),
    }


def sum_gradients(
    config: Config, strategy: tf.distribute.Strategy, nudges: Sequence[float] = ()
) -> dict[str, np.ndarray]:
    """Computes the float64 gradient of the first batch, summed over replicas, and the batch-norm statistics.

    No weight is updated. For each value in `nudges` the same traced step then runs again on the same batch, with
    weights that differ by a relative amount of up to this value; the names of these results end with the value.
    """
    tf_keras.mixed_precision.set_global_policy("float64")
    create_batches, replicas = assembly.training_batches, len(strategy.extended.worker_devices)

    def repeat_first(*options: Any) -> tf.data.Dataset:
        # One batch for each replica of this worker.
        return create_batches(*options).take(replicas).repeat()

    with mock.patch.object(assembly, "training_batches", repeat_first):
        state, trainer = create_trainer(config, strategy, 1)
    with strategy.scope():
        recorded = [
            tf.Variable(tf.zeros(variable.shape, tf.float64), trainable=False,
                        synchronization=tf.VariableSynchronization.ON_READ,
                        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
            for variable in state.optimizer.variables_to_train
        ]  # fmt: skip

    def record(gradients: list[tf.Tensor], others: tuple[tf.Tensor, ...] = ()) -> list[tf.Tensor]:
        assert all(gradient.dtype == tf.float64 for gradient in gradients)
        sums = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, [*gradients, *others])
        for variable, total in zip(recorded, sums[: len(recorded)], strict=True):
            variable.assign(total)
        return sums[len(recorded) :]

    state.optimizer.apply = record
    initial = [variable.numpy() for variable in state.model.variables]
    row = trainer.train(tf.constant(1))
    statistics = state.model.non_trainable_variables
    results = {
        "gradient": flatten(recorded),
        "statistics": flatten(statistics),
        "positives": np.array(row["positives"]),
    }
    for nudge in nudges:
        for variable, value in zip(state.model.variables, initial, strict=True):
            variable.assign(value)
        rng = np.random.default_rng(0)
        for variable in state.optimizer.variables_to_train:
            variable.assign(variable.numpy() * (1.0 + nudge * rng.uniform(-1.0, 1.0, variable.shape)))
        trainer.train(tf.constant(1))
        results |= {f"gradient {nudge:g}": flatten(recorded), f"statistics {nudge:g}": flatten(statistics)}
    return results


def create_trainer(config: Config, strategy: tf.distribute.Strategy, steps: int) -> tuple[TrainState, DetectorTrainer]:
    """Creates state and trainer as a run does; each worker draws different initial weights and must use the chief's."""
    role = read_worker_role()
    manifest = load_manifest(config.data)
    plan = plan_training(config.data, config.train, manifest.split("train", config.data.dir), role.index, role.count)
    tf_keras.utils.set_random_seed(config.train.seed + role.index)
    with strategy.scope():
        state = assembly.create_state(config, len(manifest.classes), steps)
        dataset = assembly.distribute_training(config, strategy, plan, state)
        trainer = assembly.create_trainer(config, strategy, state, dataset, steps)
    return state, trainer


def flatten(variables: list[tf.Variable]) -> np.ndarray:
    """Concatenates all values into one vector."""
    return np.concatenate([variable.numpy().ravel() for variable in variables])


def flatten_copies(strategy: tf.distribute.Strategy, variables: list[tf.Variable]) -> np.ndarray:
    """Returns float64 [local replicas, values]: the copy of the variables of each of this worker's replicas."""
    columns = [
        [np.asarray(copy, np.float64).ravel() for copy in strategy.experimental_local_results(variable)]
        for variable in variables
    ]
    return np.stack([np.concatenate(copies) for copies in zip(*columns, strict=True)])


def main() -> None:
    """Runs the variants of a job file."""
    gc.set_threshold(50_000, 20, 50)
    job = json.loads(Path(sys.argv[1]).read_text())
    configs = {
        name: load_config(job["base"], [*job["overrides"], *variant["overrides"]])
        for name, variant in job["variants"].items()
    }
    first = next(iter(configs.values()))
    # Graph optimization would take longer than these few steps.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    divide_threads = first.train.reduction == "fast"
    strategy = create_strategy(first.cluster, read_worker_role(), divide_threads)
    make_reproducible(first)
    real = assembly.build_detector
    for name, variant in job["variants"].items():
        assembly.build_detector = build_tiny_detector if variant["tiny"] else real
        AMPContext(configs[name].amp).setup_policy()
        if variant.get("gradient"):
            results = sum_gradients(configs[name], strategy, variant.get("nudges", ()))
        else:
            results = train_variant(configs[name], strategy, variant["steps"], variant.get("overflow_at"))
        results["replicas"] = np.array(strategy.num_replicas_in_sync)
        np.savez(Path(job["output"]) / f"{name}-{read_worker_role().index}.npz", **results)
    # Skips a last garbage collection over all graphs when the interpreter exits.
    gc.freeze()


if __name__ == "__main__":
    main()
