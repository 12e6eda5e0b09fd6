"""The training loop on orbit: what runs in each step on each replica, and what it reports.

train(n):                                  [eager]
  train_loop_begin
  for _ in range(n):                       [one traced tf.while_loop]
    batch = next(iterator)
    on each replica:
      count positives and negatives -> all-reduce          labels only, so before the forward pass
      forward -> mining -> loss / global count
      backward -> optimizer.apply                          all-reduce in two parts, skip, clip, update, EMA
      batch-norm statistics -> mean                        with the second part
      add the losses to this replica's own sums            no communication
  train_loop_end: sum over replicas -> metrics
"""

import time

import numpy as np
import orbit
import tensorflow as tf

from ssd_dist.cluster.clock import LoopClock
from ssd_dist.core.anchors import generate_anchors
from ssd_dist.core.config import Config
from ssd_dist.data.augmentation import apply_color_map
from ssd_dist.data.batch import TrainBatch
from ssd_dist.model.batch_norm import moving_statistics
from ssd_dist.model.detector import normalize_image
from ssd_dist.training.losses import Miner, multibox_losses, reduce_losses
from ssd_dist.training.mining import mine_global, mine_per_image
from ssd_dist.training.parameter_groups import pack_values, unpack_values
from ssd_dist.training.precision import AMPContext
from ssd_dist.training.state import REPORTED_SUMS, TrainState
from ssd_dist.training.targets import TargetCounts, count_rows, count_targets, negative_quota


class DetectorTrainer(orbit.StandardTrainer):
    """Trains a detector under any strategy; create it in strategy scope."""

    def __init__(
        self,
        config: Config,
        strategy: tf.distribute.Strategy,
        state: TrainState,
        dataset: tf.distribute.DistributedDataset,
        total_steps: int,
    ) -> None:
        super().__init__(dataset, orbit.StandardTrainerOptions(use_tf_while_loop=True))
        self._config = config
        self._strategy = strategy
        # Only the network, whose shapes are fixed; targets have as many positives as the batch has.
        compiled = config.train.jit_compile
        self._model = tf.function(state.model, autograph=False, jit_compile=True) if compiled else state.model
        self._optimizer = state.optimizer
        self._loss_scale = state.loss_scale
        self._statistics = moving_statistics(state.model)
        self._step = state.step
        self._precision = AMPContext(config.amp).precision
        self._anchor_count = len(generate_anchors(config.anchors, config.model.input_size))
        self._totals = state.report_totals
        self._sums = tf.Variable(
            tf.zeros([len(REPORTED_SUMS)], tf.float64),
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
            name="sums",
        )
        self._first_skipped = tf.Variable(0, trainable=False, dtype=tf.int64, name="first_skipped")
        self._clock = LoopClock()
        self._waited = tf.Variable(0.0, trainable=False, dtype=tf.float64, name="waited")
        self._total_steps = total_steps
        self._totals_finite = True
        self._elapsed, self._timed_steps = 0.0, 0

    def train_loop_begin(self) -> None:
        """Starts the clock of one inner loop."""
        self._loop_started = time.perf_counter()
        self._loop_first_step = int(self._step.numpy())

    # Nothing below needs AutoGraph, whose conversion would cost seconds of every start.
    @tf.autograph.experimental.do_not_convert
    def train_step(self, iterator: tf.distribute.DistributedIterator) -> None:
        """One step over all replicas; traced once."""
        asked = self._clock.read()
        with tf.control_dependencies([asked]):
            batch = next(iterator)
        with tf.control_dependencies([self._strategy.experimental_local_results(batch.positions)[0]]):
            arrived = self._clock.read()
        self._waited.assign_add(arrived - asked)
        # Nothing computes before the clock was read: on one core the reading could come after the whole step.
        with tf.control_dependencies([arrived]):
            batch = tf.nest.map_structure(tf.identity, batch, expand_composites=True)
        skipped_before = self._loss_scale.skipped_steps.read_value()
        if self._config.train.accumulate_steps == 1:
            self._strategy.run(self._train_replica, args=(batch,))
        else:
            self._train_in_parts(batch)
        self._step.assign_add(1)
        first = (self._loss_scale.skipped_steps > skipped_before) & (self._first_skipped == 0)
        self._first_skipped.assign(tf.where(first, self._step, self._first_skipped))

    def train_loop_end(self) -> dict[str, float]:
        """The report of the steps since the last one, every `log_every` steps and at the end; empty between.

        Losses and counts are means over steps; rates are over the time spent in inner loops.
        """
        self._elapsed += time.perf_counter() - self._loop_started
        step = int(self._step.numpy())
        self._timed_steps += step - self._loop_first_step
        # The totals are part of the checkpoint: a run resumed between two reports reports the same.
        self._totals.assign_add(tf.concat([self._sums.read_value(), [step - self._loop_first_step]], 0))
        self._sums.assign(tf.zeros_like(self._sums))
        self._totals_finite = bool(np.isfinite(self._totals.numpy()).all())
        if step % self._config.train.log_every and step != self._total_steps:
            return {}
        *sums, steps = self._totals.numpy().tolist()
        report = {
            # To float32: the order in which float64 sums were added is not to be seen.
            **{name: float(np.float32(total / steps)) for name, total in zip(REPORTED_SUMS, sums, strict=True)},
            "lr": float(self._optimizer.current_learning_rate()),
            "loss_scale": float(self._loss_scale.scale.numpy()),
            "skipped_steps": int(self._loss_scale.skipped_steps.numpy()),
            # The clocks are not: of a resumed run they time its own steps.
            **_measure_speed(
                self._timed_steps * self._config.train.global_batch_size, self._elapsed, float(self._waited.numpy())
            ),
        }
        self._totals.assign(tf.zeros_like(self._totals))
        self._waited.assign(0.0)
        self._elapsed, self._timed_steps = 0.0, 0
        return report

    def find_divergence(self) -> tuple[int, str] | None:
        """The first step since it was last asked whose gradient or loss is not finite, and which; equal on all workers.

        A loss without its gradient is dated by the present step. What was found is forgotten.
        """
        first, finite = int(self._first_skipped.numpy()), self._totals_finite
        self._first_skipped.assign(0)
        self._totals_finite = True
        if finite:
            return (first, "the gradient is not finite") if first else None
        return first or int(self._step.numpy()), "the loss is NaN or infinite"

    def _train_in_parts(self, batch: TrainBatch) -> None:
        # The counts are those of the whole batch, so that the parts' gradients add up to its gradient.
        counts, totals, before = self._strategy.run(self._look_at_batch, args=(batch,))
        tf.while_loop(
            lambda part: part < self._config.train.accumulate_steps,
            lambda part: self._train_part(batch, counts, totals, part),
            [tf.constant(0)],
            parallel_iterations=1,
        )
        self._strategy.run(self._apply_parts, args=(before,))

    def _train_part(
        self, batch: TrainBatch, counts: TargetCounts, totals: TargetCounts, part: tf.Tensor
    ) -> list[tf.Tensor]:
        self._strategy.run(self._accumulate_part, args=(batch, counts, totals, part))
        return [part + 1]

    def _train_replica(self, batch: TrainBatch) -> None:
        counts, totals, before = self._look_at_batch(batch)
        gradients = self._backward(batch, counts, totals)
        (sums,) = self._optimizer.apply(gradients, [self._pack_statistics()])
        self._share_statistics(sums, before)

    def _backward(self, batch: TrainBatch, counts: TargetCounts, totals: TargetCounts) -> list[tf.Tensor | None]:
        """Gradients of this replica's share of the global loss; adds its loss to the report."""
        config = self._config
        images = config.train.global_batch_size
        pixels = apply_color_map(normalize_image(batch.images), batch.color_maps)
        with tf.GradientTape() as tape:
            outputs = self._model(pixels, training=True)
            losses = multibox_losses(
                self._precision.cast("loss", outputs["logits"]),
                self._precision.cast("loss", outputs["offsets"]),
                batch.targets,
                config.loss,
                self._choose_miner(batch, counts, totals),
            )
            mined = counts._replace(quota=count_rows(losses.negatives))
            classification = reduce_losses(losses.classification, mined, totals, images, config.loss)
            localization = reduce_losses(losses.localization, mined, totals, images, config.loss)
            loss = classification + config.loss.localization_weight * localization
            scaled = loss * tf.cast(self._loss_scale.scale, loss.dtype)
        report = (loss, classification, localization, tf.reduce_sum(mined.positives), tf.reduce_sum(mined.quota))
        self._sums.assign_add(tf.stack([tf.cast(value, tf.float64) for value in report]))
        return tape.gradient(scaled, self._optimizer.variables_to_train)

    def _look_at_batch(self, batch: TrainBatch) -> tuple[TargetCounts, TargetCounts, tf.Tensor]:
        """What is known before the forward pass: counts of this batch and of the global one, and the statistics."""
        counts = count_targets(batch.targets, self._anchor_count, self._config.mining)
        return counts, self._sum_counts(counts), self._pack_statistics()

    def _pack_statistics(self) -> tf.Tensor:
        return pack_values(self._statistics, [tf.identity(variable) for variable in self._statistics])

    def _share_statistics(self, sums: tf.Tensor, before: tf.Tensor) -> None:
        """Gives all replicas the mean of their moving statistics; what overflowed stays as it was."""
        mean = sums / self._strategy.num_replicas_in_sync
        values = unpack_values(self._statistics, tf.where(tf.math.is_finite(mean), mean, before))
        for variable, value in zip(self._statistics, values, strict=True):
            variable.assign(value)

    def _apply_parts(self, before: tf.Tensor) -> None:
        (sums,) = self._optimizer.apply_accumulated([self._pack_statistics()])
        self._share_statistics(sums, before)

    def _accumulate_part(self, batch: TrainBatch, counts: TargetCounts, totals: TargetCounts, part: tf.Tensor) -> None:
        """Adds up the gradients of one of `accumulate_steps` equal parts of the batch."""
        parts = self._strategy.num_replicas_in_sync * self._config.train.accumulate_steps
        size = self._config.train.global_batch_size // parts

        def take(value: tf.Tensor) -> tf.Tensor:
            return tf.ensure_shape(value[part * size : (part + 1) * size], [size, *value.shape[1:]])

        self._optimizer.accumulate(
            self._backward(tf.nest.map_structure(take, batch), tf.nest.map_structure(take, counts), totals)
        )

    def _sum_counts(self, counts: TargetCounts) -> TargetCounts:
        """The counts of the global batch: the one small all-reduce of a step, known from the labels alone."""
        context = tf.distribute.get_replica_context()
        positives, candidates, quota = tf.unstack(context.all_reduce(tf.distribute.ReduceOp.SUM, counts.totals()))
        if self._config.mining.scope == "global":
            quota = negative_quota(
                positives, candidates, self._config.mining, images=self._config.train.global_batch_size
            )
        return TargetCounts(positives, candidates, quota)

    def _choose_miner(self, batch: TrainBatch, counts: TargetCounts, totals: TargetCounts) -> Miner:
        if self._config.mining.scope == "image":
            return lambda losses, candidates: mine_per_image(losses, candidates, counts.quota)
        return lambda losses, candidates: mine_global(
            losses, candidates, totals.quota, batch.positions, self._config.train.global_batch_size
        )


def _measure_speed(images: float, elapsed: float, waited: float) -> dict[str, float]:
    """Images a second, what they would be if no step waited for its data, and the share of the time that was waited."""
    # The clock of the waits ticks in steps of 10 ms, so a short report may have waited for more than it lasted.
    computed = max(elapsed - waited, 1e-3 * elapsed)
    return {
        "images_per_second": images / elapsed,
        "images_per_second_without_wait": images / computed,
        "data_wait": waited / elapsed,
    }
