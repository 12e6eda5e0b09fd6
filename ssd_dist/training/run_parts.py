"""The parts of a run that the training loop works with."""

from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf

from ssd_dist.cluster.collectives import WorkerCollectives
from ssd_dist.cluster.preemption import StopRequest
from ssd_dist.cluster.watchdog import Watchdog
from ssd_dist.data.order import EpochPlan
from ssd_dist.runs.checkpoints import CheckpointStore
from ssd_dist.runs.console_progress import TrainingProgress
from ssd_dist.runs.metrics_log import MetricsLog
from ssd_dist.training.intervals import StepIntervals
from ssd_dist.training.periodic_evaluation import PeriodicEvaluation
from ssd_dist.training.state import TrainState
from ssd_dist.training.trainer import DetectorTrainer


@dataclass(frozen=True)
class TrainingData:
    """The training batches of a run.

    Attributes:
      plan: which records each step reads.
      create_dataset: creates the distributed batches, starting at the state's current step.
    """

    plan: EpochPlan
    create_dataset: Callable[[], tf.distribute.DistributedDataset]


@dataclass(frozen=True)
class WorkerGroup:
    """What the workers of a run decide together. Every method is a collective: all workers must call it.

    Attributes:
      collectives: exchanges numbers between workers.
      is_chief: whether this worker is the chief, the only one that writes to the run folder.
      stop: whether a signal asked this process to stop.
      watchdog: reports stack traces if no step finishes for a while.
    """

    collectives: WorkerCollectives
    is_chief: bool
    stop: StopRequest
    watchdog: Watchdog

    def stop_requested(self) -> bool:
        """Returns whether any worker was asked to stop."""
        return self.any(self.stop.requested)

    def any(self, flag: bool) -> bool:
        """Returns whether the flag is set on any worker."""
        return self.collectives.any(flag)

    def broadcast_from_chief(self, value: float) -> float:
        """Returns the chief's value on every worker."""
        return self.collectives.broadcast_from_chief(value, self.is_chief)

    def all_equal(self, value: float) -> bool:
        """Returns whether all workers have the chief's value."""
        return not self.collectives.any(value != self.broadcast_from_chief(value))

    def wait_for_all(self) -> None:
        """Waits until all workers have called it.

        At the end of a run this keeps workers alive until the chief has saved: the launcher stops all workers when one
        of them ends.
        """
        self.collectives.sum(0.0)


@dataclass(frozen=True)
class RunOutput:
    """Where a run reports its progress.

    Attributes:
      model_dir: the run folder.
      log: the metrics log on the chief; None on other workers.
      progress: prints to the console on the chief; prints nothing on other workers.
    """

    model_dir: str
    log: MetricsLog | None
    progress: TrainingProgress

    def report_training(self, step: int, values: dict[str, float]) -> None:
        """Prints and logs a training report."""
        self.progress.report(step, values)
        if self.log is not None:
            self.log.write("train", step, values)


@dataclass(frozen=True)
class DivergencePolicy:
    """What a run does when a loss or a gradient is not finite.

    Attributes:
      max_recoveries: how often the run may return to an earlier checkpoint (`train.recover_from_blowup`).
      overflow_is_expected: whether gradients may overflow in a healthy run, as with float16 and a dynamic loss scale.
    """

    max_recoveries: int
    overflow_is_expected: bool


@dataclass(frozen=True)
class Run:
    """A run that is ready to train.

    Attributes:
      state: model, optimizer and counters.
      trainer: runs training steps.
      evaluation: evaluates the model; None if the run does not evaluate.
      data: the training batches.
      checkpoints: saves and restores the state.
      intervals: the steps at which training pauses.
      grace_seconds: seconds between a stop signal and the end of the process (`preemption.grace_seconds`).
      workers: what the workers decide together.
      output: where progress is reported.
      divergence: what to do when a loss or a gradient is not finite.
      early_stopping: evaluations in a row without a better model that end the run; 0: never.
    """

    state: TrainState
    trainer: DetectorTrainer
    evaluation: PeriodicEvaluation | None
    data: TrainingData
    checkpoints: CheckpointStore
    intervals: StepIntervals
    grace_seconds: float
    workers: WorkerGroup
    output: RunOutput
    divergence: DivergencePolicy
    early_stopping: int
