"""The tables of `ssd-evaluate` show hostile class names as text."""

from ssd_dist.evaluation.metrics_table import describe_split, print_analysis, print_metrics

NAMES = ("[red]cat[/red]", "a\x1b[31m", "b\nc", "x" * 10_000)
TOTALS = (
    "coco/AP", "coco/AP50", "coco/AP75", "coco/AP_small", "coco/AP_medium", "coco/AP_large", "coco/AR100", "voc07/mAP",
    "voc/mAP",
)  # fmt: skip


def test_names_are_escaped_and_shortened(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    values = {"coco/AP": 0.1, "coco/AP50": 0.2, "voc07/AP": 0.3, "voc/AP": None, "objects": 4}
    print_metrics({**dict.fromkeys(TOTALS, 0.5), "per_class": dict.fromkeys(NAMES, values)}, "[bold]run[/] \x1b[31m")
    point = {"threshold": 0.4, "f1": 0.5, "precision": 0.5, "recall": 0.5}
    errors = {"counts": {"missed": 1}, "ap_gain_if_mended": {"missed": 0.1}}
    print_analysis({"operating_points": dict.fromkeys(NAMES, point), "errors": errors, "calibration": {"error": 0.25}})
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "[bold]run[/] \\x1b[31m" in printed
    for name in ("[red]cat[/red]", "a\\x1b[31m", "b\\nc", "x…x"):
        assert printed.count(f" {name} " if "…" not in name else name) == 2, name
    assert max(map(len, printed.splitlines())) < 200


def test_the_training_split_is_called_that():
    assert describe_split("test") == "test"
    assert describe_split("train").startswith("train (the training split")


def test_the_baseline_stands_beside_the_metric(capsys):
    metrics = {**dict.fromkeys(TOTALS, 0.5), "per_class": {}}
    print_metrics(metrics, "run", {"coco/AP": 0.125, "coco/AP50": 0.25})
    lines = capsys.readouterr().out.splitlines()
    for name, value in (("COCO AP, IoU", "0.125"), ("COCO AP50, IoU", "0.250")):
        (row,) = [index for index, line in enumerate(lines) if name in line]
        assert "same box on every image" in lines[row + 1]
        assert value in lines[row + 1]
    print_metrics(metrics, "run", None)
    assert "same box" not in capsys.readouterr().out
