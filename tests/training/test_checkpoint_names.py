"""The names of a checkpoint's variables never change: runs that older versions started must resume."""

import pytest
import tensorflow as tf

from ssd_dist.core.config import Config
from ssd_dist.training.assembly import create_state

pytestmark = pytest.mark.usefixtures("small_backbone")

GROUPS = ("backbone_kernels", "backbone_vectors", "head_kernels", "head_vectors")
# Of commit 23244a9, which wrote the first runs; names of the model's own variables are Keras layer indices.
COUNTERS = {
    "evaluated", "loss_scale/good_steps", "loss_scale/scale", "loss_scale/skipped_steps", "optimizer/applied_steps",
    "recoveries", "report_totals", "step",
}  # fmt: skip
EMA = {"ema/updates", *(f"ema/averages/{group}" for group in GROUPS)}
ADAMW = {f"optimizer/slots/{group}/{slot}" for group in GROUPS for slot in (0, 1)}
SGD = {f"optimizer/slots/{group}/0" for group in GROUPS}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, COUNTERS | EMA | ADAMW),
        ({"amp": {"enabled": True}, "optimizer": {"name": "sgd"}}, COUNTERS | EMA | SGD),
        ({"ema": {"enabled": False}, "train": {"accumulate_steps": 2}}, COUNTERS | ADAMW),
        (
            {"backbone": {"weights": "none", "lr_scale": 0.0}},
            {name for name in COUNTERS | EMA | ADAMW if "backbone" not in name},
        ),
    ],
)
def test_the_variables_have_the_names_of_older_runs(tmp_path, overrides, expected):
    small = {"model": {"input_size": 64, "width": 0.1}, "backbone": {"weights": "none"}}
    state = create_state(Config.model_validate(small | overrides), class_count=3, total_steps=1)
    path = state.checkpoint().write(str(tmp_path / "ckpt"))
    suffix = "/.ATTRIBUTES/VARIABLE_VALUE"
    names = {name.removesuffix(suffix) for name, _ in tf.train.list_variables(path) if name.endswith(suffix)}
    assert {name for name in names if not name.startswith("model/")} == expected
    model = {name for name in names if name.startswith("model/")}
    assert len(model) == len(state.model.variables)
    assert all(name.startswith("model/layer_with_weights-") for name in model)
