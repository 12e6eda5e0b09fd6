"""The tables of `ssd-evaluate` show hostile class names as text."""

from ssd_dist.evaluation.metrics_table import print_analysis, print_metrics

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
