"""Evaluation during training: detects, computes metrics, logs them and keeps the best model.

averaged weights into the model -> detect on all workers -> on the chief: metrics, log, best model
  -> trained weights back into the model
"""

from collections.abc import Callable, Sequence

import orbit

from ssd_dist.evaluation.detections import Detections, GroundTruth
from ssd_dist.evaluation.evaluator import DetectorEvaluator
from ssd_dist.evaluation.metrics import evaluate_detections
from ssd_dist.runs.checkpoints import BestModel
from ssd_dist.runs.console_progress import TrainingProgress
from ssd_dist.runs.gfile_storage import explain_write_errors
from ssd_dist.runs.metrics_log import MetricsLog
from ssd_dist.training.state import TrainState

_PRINTED_METRICS = ("coco/AP", "coco/AP50", "voc/mAP")


class PeriodicEvaluation:
    """Evaluates the current model and keeps it if it is among the best.

    Attributes:
      best: the best models so far.
      evaluator: runs the detector on the evaluation split.
    """

    def __init__(
        self,
        evaluator: DetectorEvaluator,
        state: TrainState,
        best: BestModel,
        ground_truth: Sequence[GroundTruth],
        classes: Sequence[str],
        metric: str,
        use_ema: bool,
        log_detections: Callable[[int, Sequence[Detections]], None] | None = None,
    ) -> None:
        """Creates the evaluation.

        Args:
          evaluator: runs the detector on the evaluation split.
          state: the state of the run.
          best: keeps the best models.
          ground_truth: annotations of the split, in the order of its records; used only on the chief.
          classes: class names, without background.
          metric: the metric that decides which model is best.
          use_ema: whether to evaluate, and keep as best, the averaged weights instead of the trained ones.
          log_detections: called on the chief with the step and the detections of each evaluation.
        """
        self.best = best
        self.evaluator = evaluator
        self._state = state
        self._ground_truth = ground_truth
        self._classes = classes
        self._metric = metric
        self._use_ema = use_ema
        self._log_detections = log_detections

    @property
    def best_step(self) -> int:
        """The step of the best model so far; 0 if there is none."""
        return 0 if self.best.best is None else int(self.best.best["step"])

    def evaluate(
        self, controller: orbit.Controller, step: int, log: MetricsLog | None, progress: TrainingProgress
    ) -> None:
        """Evaluates the model after `step` steps; all workers call it together.

        Args:
          controller: orbit's controller.
          step: the current step.
          log: the metrics log on the chief; None on other workers, which only detect.
          progress: shows the progress and prints the metrics.

        Raises:
          Interrupted: if the run was asked to stop; nothing was logged or kept.
        """
        with self._state.eval_context(self._use_ema):
            progress.show_stage(f"evaluate, step {step}: batches", self.evaluator.steps)
            controller.evaluate(self.evaluator.steps)
            if log is None:
                return
            progress.show_stage(f"evaluate, step {step}: metrics")
            metrics = evaluate_detections(self._ground_truth, self.evaluator.detections, self._classes).as_dict()
            log.write("eval", step, metrics)
            if self._log_detections is not None:
                with explain_write_errors(f"TensorBoard data of step {step}"):
                    self._log_detections(step, self.evaluator.detections)
            progress.print_line(
                f"step {step}  " + "  ".join(f"{name} {_format_metric(metrics[name])}" for name in _PRINTED_METRICS)
            )
            value = metrics[self._metric]
            progress.report_metric(self._metric, value)
            if value is not None and self.best.save_if_best(step, value):
                progress.print_line(f"step {step}  best {self._metric} so far")


def _format_metric(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
