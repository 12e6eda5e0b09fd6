"""Evaluation during training: judge the averaged weights, write the row, keep the best.

swap in the EMA -> detect over all workers -> metrics, verdict and best model on the chief -> swap back
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import orbit

from ssd_dist.evaluation.detections import Detections, GroundTruth
from ssd_dist.evaluation.evaluator import DetectorEvaluator
from ssd_dist.evaluation.metrics import evaluate_detections
from ssd_dist.runs.checkpoints import BestModel
from ssd_dist.runs.console_progress import TrainingProgress
from ssd_dist.runs.gfile_storage import explain_write_errors
from ssd_dist.runs.metrics_log import MetricsLog
from ssd_dist.training.state import TrainState


class PeriodicEvaluation:
    """Evaluates the present model on request and offers it as the best; `truths` is needed on the chief alone.

    `show` is told the detections of each evaluation, on the chief.
    """

    def __init__(
        self,
        evaluator: DetectorEvaluator,
        state: TrainState,
        best: BestModel,
        truths: Sequence[GroundTruth],
        classes: Sequence[str],
        metric: str,
        show: Callable[[int, Sequence[Detections]], None] | None = None,
    ) -> None:
        self.best = best
        self.evaluator = evaluator
        self._state = state
        self._truths = truths
        self._classes = classes
        self._metric = metric
        self._show = show

    def judge(
        self, controller: orbit.Controller, step: int, log: MetricsLog | None, progress: TrainingProgress
    ) -> None:
        """Evaluates after `step` steps; called on all workers together.

        Raises:
          Interrupted: if the run is to stop; nothing was judged.
        """
        with self._state.ema.eval_context() if self._state.ema else nullcontext():
            controller.evaluate(self.evaluator.steps)
            if log is None:
                return
            metrics = evaluate_detections(self._truths, self.evaluator.detections, self._classes).as_dict()
            log.write("eval", step, metrics)
            if self._show is not None:
                with explain_write_errors(f"pictures and weights of step {step}"):
                    self._show(step, self.evaluator.detections)
            progress.say(
                f"step {step}  "
                + "  ".join(f"{name} {_show(metrics[name])}" for name in ("coco/AP", "coco/AP50", "voc/mAP"))
            )
            value = metrics[self._metric]
            if value is not None and self.best.offer(step, value):
                progress.say(f"step {step}  best {self._metric} so far")


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
