"""The inner training loop on orbit: what each step computes on each replica, and what it reports.

train(n):                                  [eager]
  train_loop_begin
  for _ in range(n):                       [one traced tf.while_loop]
    batch = next(iterator)
    on each replica:
      count positives and negatives -> all-reduce          needs only the labels, so before the forward pass
      forward -> mining -> loss / global count
      backward -> optimizer.apply                          two all-reduces, finite check, clip, update, EMA
      batch-norm statistics -> mean                        sent with the second all-reduce
      add the losses to this replica's sums                no communication
  train_loop_end: sum over replicas -> metrics

With `train.accumulate_steps` or `train.reduction: exact` a replica runs the forward and backward pass several times per
step, once for each part of its images, and adds up the gradients before the optimizer (part_sums.py).
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import orbit
import tensorflow as tf

from ssd_dist.cluster.clock import read_clock
from ssd_dist.core.config import LossConfig, MiningConfig, TrainConfig
from ssd_dist.data.augmentation import apply_color_map
from ssd_dist.data.batch import TrainBatch
from ssd_dist.model.batch_norm import get_moving_statistics
from ssd_dist.model.detector import normalize_image
from ssd_dist.model.quantization import list_limits
from ssd_dist.training.batch_division import BatchDivision
from ssd_dist.training.losses import Miner, background_losses, multibox_losses, reduce_losses
from ssd_dist.training.mining import mine_global, mine_per_image
from ssd_dist.training.parameter_groups import count_values, pack_values, unpack_values
from ssd_dist.training.part_sums import PartRows, create_part_sums, round_for_exact_sum
from ssd_dist.training.precision import PrecisionConfig
from ssd_dist.training.state import REPORTED_SUMS, TrainState
from ssd_dist.training.targets import TargetCounts, candidate_mask, count_rows, count_targets, negative_quota


class DetectorTrainer(orbit.StandardTrainer):
    """Trains a detector under any strategy; create it in strategy scope."""

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        state: TrainState,
        dataset: tf.distribute.DistributedDataset,
        train: TrainConfig,
        division: BatchDivision,
        loss: LossConfig,
        mining: MiningConfig,
        precision: PrecisionConfig,
        anchor_count: int,
        total_steps: int,
    ) -> None:
        """Creates the trainer.

        Args:
          strategy: distributes the replicas.
          state: the state of the run.
          dataset: the training batches, starting at the state's step.
          train: compilation and report interval are used.
          division: the division of the global batch between replicas and parts.
          loss: the loss.
          mining: hard-negative mining.
          precision: whether the loss is computed in float32.
          anchor_count: number of anchors of the detector.
          total_steps: steps of the whole run; the last one is always reported.
        """
        super().__init__(dataset, orbit.StandardTrainerOptions(use_tf_while_loop=True))
        self._train_config = train
        self._division = division
        self._loss_config = loss
        self._mining_config = mining
        self._strategy = strategy
        # XLA compiles only the network, whose shapes are fixed; the number of positives differs between batches.
        network = tf.function(state.model, autograph=False, jit_compile=True) if train.jit_compile else state.model
        self._model = network
        self._optimizer = state.optimizer
        self._loss_scale = state.loss_scale
        self._statistics = [*get_moving_statistics(state.model), *list_limits(state.model)]
        self._step = state.step
        self._precision = precision
        self._anchor_count = anchor_count
        self._totals = state.report_totals
        self._sums = tf.Variable(
            tf.zeros([len(REPORTED_SUMS)], tf.float64),
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
            name="sums",
        )
        if division.is_in_parts:
            sizes = [*(group.size for group in self._optimizer.inner_optimizer.groups), count_values(self._statistics)]
            self._part_sums = create_part_sums(strategy, sizes, division.passes, division.is_exact)
        if division.is_in_parts and mining.scope == "global":
            self._mining_losses = PartRows(strategy, division.passes, [division.images_at_once, anchor_count])
        self._on_gpus = any("GPU" in device for device in strategy.extended.worker_devices)
        self._first_skipped = tf.Variable(0, trainable=False, dtype=tf.int64, name="first_skipped")
        self._waited = tf.Variable(0.0, trainable=False, dtype=tf.float64, name="waited")
        self._total_steps = total_steps
        self._totals_finite = True
        self._elapsed, self._timed_steps = 0.0, 0

    def train_loop_begin(self) -> None:
        """Starts timing one inner loop."""
        self._loop_started = time.perf_counter()
        self._loop_first_step = int(self._step.numpy())

    # The step needs no AutoGraph, whose conversion would add seconds to every start.
    @tf.autograph.experimental.do_not_convert
    def train_step(self, iterator: tf.distribute.DistributedIterator) -> None:
        """Runs one step on all replicas; traced once."""
        # A GPU is idle once it has computed the last step; the host has queued that step long before, and requests the
        # next batch meanwhile. On a CPU, the last step is done when the batch is requested.
        idle_since = read_clock(after=self._read_local_sums() if self._on_gpus else ())
        with tf.control_dependencies([] if self._on_gpus else [idle_since]):
            batch = next(iterator)
        with tf.control_dependencies([self._strategy.experimental_local_results(batch.positions)[0]]):
            arrived = read_clock()
        self._waited.assign_add(tf.maximum(arrived - idle_since, 0.0))
        # No computation starts before the clock is read: on one core the clock could be read after the whole step.
        with tf.control_dependencies([arrived]):
            batch = tf.nest.map_structure(copy_in_place, batch, expand_composites=True)
        skipped_before = self._loss_scale.skipped_steps.read_value()
        if self._division.is_in_parts:
            self._train_in_parts(batch)
        else:
            self._strategy.run(self._train_replica, args=(batch,))
        self._step.assign_add(1)
        first = (self._loss_scale.skipped_steps > skipped_before) & (self._first_skipped == 0)
        self._first_skipped.assign(tf.where(first, self._step, self._first_skipped))

    def _read_local_sums(self) -> Sequence[tf.Tensor]:
        """Returns the sums for the report of each replica of this worker, which its last step has updated."""
        return self._strategy.experimental_local_results(self._strategy.run(self._sums.read_value))

    def train_loop_end(self) -> dict[str, float]:
        """Returns the training report every `log_every` steps and after the last step; an empty dict otherwise.

        Losses and counts are means over the steps since the last report; rates use the time spent in inner loops.
        """
        self._elapsed += time.perf_counter() - self._loop_started
        step = int(self._step.numpy())
        self._timed_steps += step - self._loop_first_step
        # The totals are part of the checkpoint, so a run resumed between two reports gives the same report.
        self._totals.assign_add(tf.concat([self._sums.read_value(), [step - self._loop_first_step]], 0))
        self._sums.assign(tf.zeros_like(self._sums))
        self._totals_finite = bool(np.isfinite(self._totals.numpy()).all())
        if step % self._train_config.log_every and step != self._total_steps:
            return {}
        *sums, steps = self._totals.numpy().tolist()
        report = {
            **{name: float(np.float32(total / steps)) for name, total in zip(REPORTED_SUMS, sums, strict=True)},
            "lr": float(self._optimizer.current_learning_rate()),
            "loss_scale": float(self._loss_scale.scale.numpy()),
            "skipped_steps": int(self._loss_scale.skipped_steps.numpy()),
            # Times are not part of the checkpoint: a resumed run reports those of its own steps.
            **_compute_speed(self._timed_steps * self._division.images, self._elapsed, float(self._waited.numpy())),
        }
        self._totals.assign(tf.zeros_like(self._totals))
        self._waited.assign(0.0)
        self._elapsed, self._timed_steps = 0.0, 0
        return report

    def find_divergence(self) -> tuple[int, str] | None:
        """Returns the first step since the last call whose gradient or loss was not finite; equal on all workers.

        If only a loss was not finite, its exact step is unknown and the current step is returned.

        Returns:
          (step, reason), or None if all were finite.
        """
        first, finite = int(self._first_skipped.numpy()), self._totals_finite
        self._first_skipped.assign(0)
        self._totals_finite = True
        if finite:
            return (first, "the gradient is not finite") if first else None
        return first or int(self._step.numpy()), "the loss is NaN or infinite"

    def _train_in_parts(self, batch: TrainBatch) -> None:
        # The counts are those of the whole batch, so that the gradients of the parts sum to the batch's gradient.
        counts, totals, before = self._strategy.run(self._prepare_step, args=(batch,))
        mined = None
        if self._mining_config.scope == "global":
            self._loop_over_parts(self._store_mining_losses, batch, before)
            mined = self._strategy.run(self._mine_stored_losses, args=(batch, totals))
        self._loop_over_parts(self._accumulate_part, batch, before, counts, totals, mined)
        self._strategy.run(self._apply_accumulated, args=(before,))

    def _loop_over_parts(self, run_part: Callable[..., None], *values: Any) -> None:
        """Calls `run_part(part, *values)` on all replicas for one part after another."""

        def run(part: tf.Tensor) -> list[tf.Tensor]:
            self._strategy.run(run_part, args=(part, *values))
            return [part + 1]

        tf.while_loop(lambda part: part < self._division.passes, run, [tf.constant(0)], parallel_iterations=1)

    def _train_replica(self, batch: TrainBatch) -> None:
        counts, totals, before = self._prepare_step(batch)
        gradients = self._compute_gradients(batch, counts, totals, self._choose_miner(batch, counts, totals))
        (sums,) = self._optimizer.apply(gradients, [self._pack_statistics()])
        self._average_statistics(sums, before)

    def _compute_gradients(
        self, batch: TrainBatch, counts: TargetCounts, totals: TargetCounts, mine: Miner
    ) -> list[tf.Tensor | None]:
        """Computes scaled gradients of this replica's share of the global loss; adds the loss to the report."""
        images = self._division.images
        with tf.GradientTape() as tape:
            outputs = self._run_network(batch)
            losses = multibox_losses(
                self._precision.cast("loss", outputs["logits"]),
                self._precision.cast("loss", outputs["offsets"]),
                batch.targets,
                self._loss_config,
                mine,
            )
            mined = counts._replace(quota=count_rows(losses.negatives))
            classification = reduce_losses(losses.classification, mined, totals, images, self._loss_config)
            localization = reduce_losses(losses.localization, mined, totals, images, self._loss_config)
            loss = classification + self._loss_config.localization_weight * localization
            scaled = self._optimizer.scale_loss(loss)
        report = (loss, classification, localization, tf.reduce_sum(mined.positives), tf.reduce_sum(mined.quota))
        self._sums.assign_add(round_for_exact_sum(tf.stack([tf.cast(value, tf.float64) for value in report])))
        return tape.gradient(scaled, self._optimizer.variables_to_train)

    def _run_network(self, batch: TrainBatch) -> dict[str, tf.Tensor]:
        pixels = apply_color_map(normalize_image(batch.images), batch.color_maps)
        # Datasets distributed to several replicas lose the static batch size, which batch norm divides into groups.
        pixels = tf.ensure_shape(pixels, [self._division.images_at_once, *pixels.shape[1:]])
        return self._model(pixels, training=True)

    def _prepare_step(self, batch: TrainBatch) -> tuple[TargetCounts, TargetCounts, tf.Tensor]:
        """Computes what the step needs before the forward pass.

        Returns:
          Counts of this replica's batch, counts of the global batch, and the batch-norm statistics before the step.
        """
        counts = count_targets(batch.targets, self._anchor_count, self._mining_config)
        return counts, self._sum_counts(counts), self._pack_statistics()

    def _pack_statistics(self) -> tf.Tensor:
        return pack_values(self._statistics, [tf.identity(variable) for variable in self._statistics])

    def _average_statistics(self, sums: tf.Tensor, before: tf.Tensor) -> None:
        """Assigns the mean over replicas and passes to the moving statistics; keeps old values where it overflowed."""
        mean = sums / (self._strategy.num_replicas_in_sync * self._division.passes)
        self._assign_statistics(tf.where(tf.math.is_finite(mean), mean, before))

    def _assign_statistics(self, packed: tf.Tensor) -> None:
        for variable, value in zip(self._statistics, unpack_values(self._statistics, packed), strict=True):
            variable.assign(value)

    def _accumulate_part(
        self,
        part: tf.Tensor,
        batch: TrainBatch,
        before: tf.Tensor,
        counts: TargetCounts,
        totals: TargetCounts,
        mined: tf.Tensor | None,
    ) -> None:
        """Accumulates the gradients and statistics of one part of this replica's images."""
        # Each part updates the statistics of the last step, so their mean does not depend on the order of the parts.
        self._assign_statistics(before)
        batch_part, counts_part = self._slice_part((batch, counts), part)
        mined_part = None if mined is None else self._slice_part(mined, part)
        mine = self._choose_miner(batch_part, counts_part, totals, mined_part)
        gradients = self._compute_gradients(batch_part, counts_part, totals, mine)
        self._part_sums.add(part, [*self._optimizer.pack(gradients), self._pack_statistics()])

    def _store_mining_losses(self, part: tf.Tensor, batch: TrainBatch, before: tf.Tensor) -> None:
        """Stores the losses that global mining ranks: it needs those of all parts before the first gradient."""
        self._assign_statistics(before)
        outputs = self._run_network(self._slice_part(batch, part))
        _, losses = background_losses(self._precision.cast("loss", outputs["logits"]), self._loss_config)
        self._mining_losses.assign(part, tf.cast(losses, tf.float32))

    def _mine_stored_losses(self, batch: TrainBatch, totals: TargetCounts) -> tf.Tensor:
        losses = tf.reshape(self._mining_losses.read(), [-1, self._anchor_count])
        candidates = candidate_mask(batch.targets, self._anchor_count)
        return mine_global(losses, candidates, totals.quota, batch.positions, self._division.images)

    def _apply_accumulated(self, before: tf.Tensor) -> None:
        *gradients, statistics = self._part_sums.take()
        (sums,) = self._optimizer.apply_packed(gradients, [statistics])
        self._average_statistics(sums, before)

    def _slice_part(self, values: Any, part: tf.Tensor) -> Any:
        """Returns the rows of one part, of tensors in any structure."""
        size = self._division.images_at_once

        def slice_rows(value: tf.Tensor) -> tf.Tensor:
            return tf.ensure_shape(value[part * size : (part + 1) * size], [size, *value.shape[1:]])

        return tf.nest.map_structure(slice_rows, values)

    def _sum_counts(self, counts: TargetCounts) -> TargetCounts:
        """Sums the counts over replicas: the one small all-reduce of a step, which needs only the labels."""
        context = tf.distribute.get_replica_context()
        positives, candidates, quota = tf.unstack(context.all_reduce(tf.distribute.ReduceOp.SUM, counts.totals()))
        if self._mining_config.scope == "global":
            quota = negative_quota(positives, candidates, self._mining_config, images=self._division.images)
        return TargetCounts(positives, candidates, quota)

    def _choose_miner(
        self, batch: TrainBatch, counts: TargetCounts, totals: TargetCounts, mined: tf.Tensor | None = None
    ) -> Miner:
        """Returns what selects the negatives; `mined` are those that were selected in advance."""
        if mined is not None:
            return lambda losses, candidates: mined
        if self._mining_config.scope == "image":
            return lambda losses, candidates: mine_per_image(losses, candidates, counts.quota)
        return lambda losses, candidates: mine_global(
            losses, candidates, totals.quota, batch.positions, self._division.images
        )


def copy_in_place(tensor: tf.Tensor) -> tf.Tensor:
    """Returns a copy on the device of the tensor; TensorFlow may place a copy without a device on the first GPU."""
    with tf.device(tensor.device):
        return tf.identity(tensor)


def _compute_speed(images: float, elapsed: float, waited: float) -> dict[str, float]:
    """Computes images per second, with and without the time spent waiting for data, and that time's share.

    Args:
      images: images trained on.
      elapsed: seconds spent in inner loops.
      waited: seconds of these spent waiting for data.
    """
    return {
        "images_per_second": images / elapsed,
        "images_per_second_without_wait": images / (elapsed - waited),
        "data_wait": waited / elapsed,
    }
