"""The steps at which training pauses: to report, to evaluate, to save a checkpoint."""

from dataclasses import dataclass

from ssd_dist.core.config import CheckpointConfig, EvalConfig, TrainConfig


@dataclass(frozen=True)
class StepIntervals:
    """Intervals in steps, counted from step 0, so that a resumed run pauses at the same steps; 0 means never.

    Attributes:
      total: steps of the whole run.
      report: steps between training reports.
      evaluation: steps between evaluations.
      checkpoint: steps between checkpoints.
      loop: maximum number of steps that run inside TensorFlow without returning to Python.
    """

    total: int
    report: int
    evaluation: int
    checkpoint: int
    loop: int

    @classmethod
    def from_config(
        cls, train: TrainConfig, evaluation: EvalConfig, checkpoint: CheckpointConfig, steps_per_epoch: int, total: int
    ) -> "StepIntervals":
        """Creates the intervals of a run; `eval.every_steps` above 0 overrides `eval.every_epochs`."""
        return cls(
            total=total,
            report=train.log_every,
            evaluation=evaluation.every_steps or evaluation.every_epochs * steps_per_epoch,
            checkpoint=checkpoint.every_steps,
            loop=train.steps_per_loop,
        )

    def steps_to_next(self, step: int) -> int:
        """Returns the number of steps from `step` to the next multiple of any interval, at least 1."""
        intervals = (self.loop, self.report, self.evaluation, self.checkpoint)
        distances = [interval - step % interval for interval in intervals if interval]
        return max(1, min(self.total - step, *distances))

    def evaluation_due(self, step: int) -> bool:
        """Returns whether to evaluate after `step` steps; the last step is always evaluated."""
        return bool(self.evaluation) and (step % self.evaluation == 0 or step == self.total)

    def checkpoint_due(self, step: int) -> bool:
        """Returns whether to save a checkpoint after `step` steps; the last step is always saved."""
        return step > 0 and (step == self.total or (bool(self.checkpoint) and step % self.checkpoint == 0))
