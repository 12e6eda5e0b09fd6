"""Blocks on several logical devices of one GPU: one loss curve in every layout, and one replica's overflow."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from benchmarks.gpu.setup import Row, Setup, build
from ssd_dist.training.loss_scale import LossScale
from ssd_dist.training.state import TrainState

STRATEGIES = itertools.count(1)


def layouts(setup: Setup) -> Iterator[Row]:
    """Trains on 1, 2 and 4 logical devices; `exact` must give the same bits, and all replicas the same weights."""
    devices = split_device(setup, 4)
    for policy in ("float16",) if setup.tiny else ("float32", "float16"):
        for reduction in ("fast", "exact"):
            first: list[float] = []
            for replicas in (1, 2, 4):
                if setup.is_over():
                    return
                # In float16, the first loss scales may overflow: then all replicas skip the step.
                config = setup.load(8, policy, "model.batch_norm_group=2", f"train.reduction={reduction}",
                                    "train.log_every=1", "train.steps_per_loop=1")  # fmt: skip
                strategy = create_strategy(devices[:replicas])
                built = build(setup, config, strategy=strategy)
                losses = [float(built.trainer.train(tf.constant(1))["loss"]) for _ in range(setup.steps)]
                first = first or losses
                copies = [
                    {copy.numpy().tobytes() for copy in strategy.experimental_local_results(variable)}
                    for variable in built.state.model.trainable_variables
                ]
                yield {
                    "policy": policy, "reduction": reduction, "replicas": replicas, "last_loss": losses[-1],
                    "largest_difference": float(np.max(np.abs(np.divide(losses, first) - 1))),
                    "replicas_equal": all(len(each) == 1 for each in copies),
                    "skipped_steps": int(built.state.loss_scale.skipped_steps.numpy()),
                }  # fmt: skip


def overflow(setup: Setup) -> Iterator[Row]:
    """Gives replica 1 of two an infinite gradient; both must keep their weights, halve the scale and stay equal."""
    strategy = create_strategy(split_device(setup, 2))
    built = build(setup, setup.load(8, "float16", "model.batch_norm_group=2"), constant=True, strategy=strategy)
    built.trainer.train(tf.constant(setup.steps))
    optimizer, loss_scale = built.state.optimizer, built.state.loss_scale

    @tf.function(autograph=False)
    def apply(value_of_replica_1: tf.Tensor) -> None:
        def run() -> None:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            value = tf.where(tf.equal(replica, 1), value_of_replica_1, 1e-6)
            optimizer.apply([tf.fill(variable.shape, value) for variable in optimizer.variables_to_train])

        strategy.run(run)

    for name, value in (("finite", 1e-6), ("infinite", float("inf")), ("finite again", 1e-6)):
        before, scale, skipped = copy_state(strategy, built.state), *read_loss_scale(loss_scale)
        apply(tf.constant(value))
        after, new_scale, now_skipped = copy_state(strategy, built.state), *read_loss_scale(loss_scale)
        yield {
            "gradient_of_replica_1": name, "weights_changed": not np.array_equal(before[0], after[0]),
            "replicas_equal": np.array_equal(after[0], after[1]), "finite": bool(np.isfinite(after).all()),
            "scale_factor": new_scale / scale, "skipped_steps": now_skipped - skipped,
        }  # fmt: skip


def copy_state(strategy: tf.distribute.Strategy, state: TrainState) -> list[np.ndarray]:
    """Returns weights, optimizer slots and averages of each replica as one vector."""
    inner = state.optimizer.inner_optimizer
    variables = [*state.optimizer.variables_to_train, *itertools.chain(*inner.slots.values())]
    variables += state.ema.averages.values() if state.ema else []
    copies = [strategy.experimental_local_results(variable) for variable in variables]
    return [np.concatenate([copy.numpy().ravel() for copy in replica]) for replica in zip(*copies, strict=True)]


def read_loss_scale(loss_scale: LossScale) -> tuple[float, int]:
    """Returns the scale and the number of skipped steps."""
    return float(loss_scale.scale.numpy()), int(loss_scale.skipped_steps.numpy())


def split_device(setup: Setup, parts: int) -> list[str]:
    """Divides the GPU, or the CPU, into logical devices and returns their names; call before TensorFlow uses it."""
    kind = setup.device.partition(":")[0]
    limits = {"memory_limit": 8000} if kind == "GPU" else {}
    devices = [tf.config.LogicalDeviceConfiguration(**limits)] * parts
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices(kind)[0], devices)
    return [f"{kind}:{index}" for index in range(parts)]


def create_strategy(devices: Sequence[str]) -> tf.distribute.MirroredStrategy:
    """Creates a strategy whose collectives have keys of their own, as those of all strategies of a process must."""
    keys = {"_collective_key_base": 100_000 * next(STRATEGIES)}
    return type("MirroredStrategy", (tf.distribute.MirroredStrategy,), keys)(devices)
