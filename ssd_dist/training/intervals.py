"""The steps at which training pauses: to report, to evaluate, to save."""

from dataclasses import dataclass

from ssd_dist.core.config import Config


@dataclass(frozen=True)
class StepIntervals:
    """Intervals in steps, counted from step 0 so that a resumed run pauses where an undisturbed one does; 0: never."""

    total: int
    report: int
    evaluation: int
    checkpoint: int
    loop: int

    @classmethod
    def from_config(cls, config: Config, steps_per_epoch: int, total: int) -> "StepIntervals":
        """`eval.every_steps` goes before `every_epochs`."""
        return cls(
            total=total,
            report=config.train.log_every,
            evaluation=config.eval.every_steps or config.eval.every_epochs * steps_per_epoch,
            checkpoint=config.checkpoint.every_steps,
            loop=config.train.steps_per_loop,
        )

    def steps_to_next(self, step: int) -> int:
        """How many steps may run in one go after `step`."""
        intervals = (self.loop, self.report, self.evaluation, self.checkpoint)
        distances = [interval - step % interval for interval in intervals if interval]
        return max(1, min(self.total - step, *distances))

    def evaluation_due(self, step: int) -> bool:
        """Whether to evaluate after `step` steps; always at the end."""
        return bool(self.evaluation) and (step % self.evaluation == 0 or step == self.total)

    def checkpoint_due(self, step: int) -> bool:
        """Whether to save after `step` steps; always at the end."""
        return step > 0 and (step == self.total or (bool(self.checkpoint) and step % self.checkpoint == 0))
