"""Trains a detector, or resumes a run: python -m ssd_dist.cli.train --config=configs/x.yaml --model_dir=RUN."""

from pathlib import Path
from typing import Any

from absl import flags  # type: ignore[import-untyped]

from ssd_dist.core.commands import config_from_flags, define_config_flags, required_flag, run_command
from ssd_dist.core.environment_variables import set_tensorflow_defaults
from ssd_dist.core.folder_names import REPORT_NAME, check_folder_name
from ssd_dist.core.printable import print_line, print_warning
from ssd_dist.core.stage_line import StageLine, show_stages
from ssd_dist.fitting.results_table import print_training_results


def main(_: list[str]) -> int:
    """Runs the experiment given by the flags and returns the exit code."""
    config = config_from_flags()
    if flags.FLAGS["model_dir"].value:
        check_folder_name(flags.FLAGS["model_dir"].value)
    if flags.FLAGS["dry_run"].value:
        from ssd_dist.checks.dry_run import describe_dry_run, print_dry_run

        print_dry_run(describe_dry_run(config, flags.FLAGS["model_dir"].value, flags.FLAGS["allow_new_data"].value))
        return 0
    model_dir = required_flag("model_dir")
    # TensorFlow takes seconds to import, so it is imported after the flags are checked and signal handlers are set.
    from ssd_dist.cluster.preemption import StopRequest

    if flags.FLAGS["preflight"].value:
        from ssd_dist.checks.preflight import run_preflight

        return run_preflight(config, model_dir, flags.FLAGS["allow_new_data"].value)
    stop = StopRequest()
    # On the chief, the split and the metrics of the report.
    results: list[tuple[str, dict[str, Any] | None]] = []
    with show_stages("start TensorFlow", model_dir, "train") as stages:
        from ssd_dist.training.run import run_training

        def write() -> None:
            results.append(write_documents(stages))

        best = run_training(config, model_dir, stop, write, flags.FLAGS["allow_new_data"].value, stages)
    if best is not None:
        print_line(f"best {best['metric']} {best['value']:.4f} at step {best['step']}: {model_dir}/best")
    if flags.FLAGS["summary"].value and results:
        print_training_results(model_dir, *results[0])
    return 0


def write_documents(stages: StageLine) -> tuple[str, dict[str, Any] | None]:
    """Writes RUN/model_card.md of the finished run and, unless --noreport, RUN/report.html, as ssd-inspect does.

    Returns:
      The split and the metrics of the evaluation in the report; "" and None without one.
    """
    from ssd_dist.core.errors import first_line
    from ssd_dist.report.model_card import MODEL_CARD_NAME, write_model_card

    model_dir = flags.FLAGS["model_dir"].value
    # The model is trained and saved, so no error of the documents may fail the run.
    try:
        write_model_card(model_dir)
    except Exception as error:
        print_warning(f"{MODEL_CARD_NAME} was not written: {first_line(error)}")
    if not flags.FLAGS["report"].value:
        return "", None
    from ssd_dist.report.run_page import build_run_page

    try:
        (evaluation,) = build_run_page([model_dir], str(Path(model_dir) / REPORT_NAME), "auto", "auto", (), stages)
    except Exception as error:
        print_warning(
            f"{REPORT_NAME} was not written: {first_line(error)}; try again with ssd-inspect --model_dir={model_dir}"
        )
        return "", None
    return ("", None) if evaluation is None else (evaluation.split_name, evaluation.as_dict())


def run_main() -> None:
    """Console script `ssd-train`."""
    define_config_flags()
    flags.DEFINE_string("model_dir", None, "Folder of the run, for checkpoints, metrics and the best model.")
    flags.DEFINE_bool("report", True, "Write RUN/report.html after training: curves, errors, images with predictions.")
    flags.DEFINE_bool("summary", True, "Print a table of metrics, thresholds and files after training.")
    flags.DEFINE_bool(
        "allow_new_data", False, "Resume a run on other data of the same classes than it was trained on so far."
    )
    flags.DEFINE_bool("dry_run", False, "Print model size, FLOPs, memory, data and cluster, without training.")
    flags.DEFINE_bool("preflight", False, "Check cluster, data, folder and memory on every worker, without training.")
    set_tensorflow_defaults()
    run_command(main)


if __name__ == "__main__":
    run_main()
