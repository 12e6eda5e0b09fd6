"""Tests the config keys; errors state file or flag, key, value and fix."""

import math
from pathlib import Path

import numpy as np
import pytest
from config_errors import get_load_error
from pydantic import ValidationError

from ssd_dist.core.config import Config, DataConfig, OptimizerConfig
from ssd_dist.core.config_files import flatten_config, load_config
from ssd_dist.core.errors import UsageError

# Keys that must not change, because existing configs contain them.
STABLE_KEYS = [
    "data.dir",
    "data.targets",
    "data.views",
    "data.cache_dir",
    "data.on_corrupt",
    "data.allow_leakage",
    "anchors.sizes",
    "anchors.aspect_ratios",
    "matching.policy",
    "matching.positive_iou",
    "matching.negative_iou",
    "model.input_size",
    "model.width",
    "model.head",
    "model.batch_norm_momentum",
    "model.batch_norm_group",
    "backbone.weights",
    "backbone.lr_scale",
    "backbone.freeze_batch_norm",
    "loss.beta",
    "loss.normalizer",
    "loss.reduction",
    "loss.label_smoothing",
    "mining.ratio",
    "mining.scope",
    "mining.min_negatives_per_image",
    "amp.enabled",
    "amp.policy",
    "amp.loss_scale",
    "amp.force_fp32",
    "ema.enabled",
    "ema.decay",
    "ema.update_every",
    "ema.warmup_steps",
    "optimizer.name",
    "optimizer.lr",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "schedule.warmup_steps",
    "schedule.min_lr",
    "train.epochs",
    "train.steps",
    "train.global_batch_size",
    "train.seed",
    "train.deterministic",
    "train.accumulate_steps",
    "train.log_every",
    "train.steps_per_loop",
    "train.jit_compile",
    "eval.every_epochs",
    "eval.every_steps",
    "eval.metric",
    "eval.use_ema",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "cluster.strategy",
    "cluster.logical_cpus",
    "cluster.health_timeout",
]


def test_stable_keys_exist():
    assert set(STABLE_KEYS) <= set(flatten_config(Config()))


def test_the_configs_of_the_repository_load():
    repository = Path(__file__).parents[2]
    files = sorted((repository / "configs").glob("*.yaml"))
    assert files
    for file in files:
        load_config(file)


def test_a_config_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Config().train.epochs = 3


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("optimizer.lr=1e-3", "optimizer", "lr", 0.001),  # YAML 1.1 reads this as a string
        ("optimizer.lr=1E-3", "optimizer", "lr", 0.001),
        ("optimizer.lr=+.5e-1", "optimizer", "lr", 0.05),
        ("optimizer.lr=1", "optimizer", "lr", 1.0),
        ("train.epochs=3", "train", "epochs", 3),
        ("train.deterministic=false", "train", "deterministic", False),
        ("data.dir=", "data", "dir", ""),
        ("data.dir=/a=b", "data", "dir", "/a=b"),
        ("data.dir=gs://bucket/x", "data", "dir", "gs://bucket/x"),
        ("data.dir='12'", "data", "dir", "12"),
        ("amp.loss_scale=dynamic", "amp", "loss_scale", "dynamic"),
        ("amp.loss_scale=1024", "amp", "loss_scale", 1024.0),
        ("amp.force_fp32=[loss]", "amp", "force_fp32", ("loss",)),
        ("anchors.sizes=[.1,.2,.3,.4,.5,.6,.7]", "anchors", "sizes", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)),
        ("train={epochs: 9}", "train", "epochs", 9),
    ],
)
def test_override_values_are_parsed_as_yaml(write, override, section, key, value):
    given_ = getattr(getattr(load_config(write(""), [override]), section), key)
    assert given_ == value
    assert type(given_) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # key, value, valid values
        ("train: {epochs: '3'}", ["train.epochs", "got '3'", "integer"]),
        ("train: {epochs: 3.0}", ["train.epochs", "got 3.0", "integer"]),
        ("train: {epochs: true}", ["train.epochs", "got True", "integer"]),
        ("train: {epochs: 1e1}", ["train.epochs", "got 10.0", "integer"]),
        ("train: {epochs: 0}", ["train.epochs", "got 0", "greater than 0"]),
        ("train: {epochs:}", ["train.epochs", "got None", "integer"]),
        ("train: {deterministic: 1}", ["train.deterministic", "got 1", "boolean"]),
        ("data: {dir: 3}", ["data.dir", "got 3", "string"]),
        ("data: {targets: offline}", ["data.targets", "'offline'", "'precomputed' or 'online'"]),
        ("optimizer: {lr: .nan}", ["optimizer.lr", "nan"]),
        ("optimizer: {lr: .inf}", ["optimizer.lr", "inf", "finite"]),
        ("optimizer: {lr: -1}", ["optimizer.lr", "got -1", "greater than 0"]),
        ("model: {input_size: 31}", ["model.input_size", "got 31", "greater than or equal to 32"]),
        ("model: {extra_channels: [512, 255, 256]}", ["model.extra_channels", "got 255", "multiple of 2"]),
        ("model: {extra_channels: [512, 256]}", ["model.extra_channels"]),
        ("backbone: {frozen_blocks: 18}", ["backbone.frozen_blocks", "got 18", "less than or equal to 17"]),
        ("backbone: {frozen_blocks: 3, weights: none}", ["backbone.frozen_blocks (3)", "model.init_from"]),
        ("ema: {decay: 1.0}", ["ema.decay", "got 1.0", "less than 1"]),
        ("amp: {loss_scale: dynamc}", ["amp.loss_scale", "'dynamc'", "'dynamic' or a valid number"]),
        ("amp: {loss_scale: 0}", ["amp.loss_scale", "got 0", "'dynamic' or greater than 0"]),
        ("amp: {force_fp32: loss}", ["amp.force_fp32", "'loss'", "a list"]),
        ("amp: {force_fp32: [los]}", ["amp.force_fp32", "'los'", "'loss'"]),
        ("eval: {metric: mAP}", ["eval.metric", "'mAP'", "'coco/AP', 'coco/AP50', 'voc07/mAP' or 'voc/mAP'"]),
        ("anchors: {sizes: [.1, .2]}", ["anchors.sizes", "7", "got 2"]),
        ("anchors: {sizes: [.1, .2, .3, .4, .5, .6, -1]}", ["anchors.sizes", "got -1", "greater than 0"]),
        ("anchors: {aspect_ratios: [[2], [2]]}", ["anchors.aspect_ratios", "6", "got 2"]),
        ("train: 3", ["train", "got 3", "section"]),
        ("train: [1]", ["train", "got [1]", "section"]),
        # combinations of keys
        ("matching: {positive_iou: 0.3}", ["matching.negative_iou (0.4)", "matching.positive_iou (0.3)"]),
        ("schedule: {min_lr: 5.0}", ["schedule.min_lr (5.0)", "optimizer.lr (0.001)"]),
    ],
)
def test_an_invalid_value_is_reported_with_key_value_and_valid_values(write, text, words):
    message = get_load_error(write(text))
    assert message.startswith(str(write(text))), message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # unknown key, value, valid keys of the section, most similar key
        ("train: {epoch: 3}", ["train.epoch ", "3", "epochs, steps, global_batch_size", "did you mean train.epochs?"]),
        ("trian: {epochs: 3}", ["trian", "data, anchors, matching", "did you mean train?"]),
        ("TRAIN: {epochs: 3}", ["TRAIN", "did you mean train?"]),
        ("train: {lr: 1}", ["train.lr", "did you mean optimizer.lr?"]),  # an existing name in another section
        ("lr: 1", ["x.yaml", "lr", "did you mean optimizer.lr?"]),
        ("data: {augmentation: {flips: true}}", ["data.augmentation.flips", "did you mean data.augmentation.flip?"]),
        ("train.epochs: 3", ["'train.epochs'", "dotted keys are only for --set", "train: {epochs: ...}"]),
        ("{3: 4}", ["3", "strings"]),
        ("train: {yes: 3}", ["train", "strings"]),  # YAML 1.1 reads yes as true
    ],
)
def test_an_unknown_key_is_reported_with_the_most_similar_key(write, text, words):
    message = get_load_error(write(text))
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epoch=3", ["--set train.epoch=3", "did you mean train.epochs?"]),
        ("Train.epochs=3", ["--set Train.epochs=3", "did you mean train?"]),
        ("train.epochs=many", ["--set train.epochs=many", "got 'many'", "integer"]),
        ("train.epochs=", ["--set train.epochs=", "integer"]),
        ("train.epochs", ["--set train.epochs", "KEY=VALUE"]),
        ("=3", ["--set =3", "KEY=VALUE"]),
        ("train..epochs=3", ["KEY=VALUE"]),
        ("train=3", ["--set train=3", "section"]),
        ("train.epochs.x=3", ["train.epochs", "integer"]),
        ("train.epochs=[", ["--set train.epochs=[", "not valid YAML"]),
        ("extends=base.yaml", ["--set extends=base.yaml", "is only valid at the top of a file"]),
        ("train.epochs={a: 1, a: 2}", ["'a' is given twice"]),
    ],
)
def test_an_invalid_override_is_reported(write, override, words):
    message = get_load_error(write(""), [override])
    for word in words:
        assert word in message, message


def test_defaults_need_no_coercion():
    # Strict validation would reject a default of the wrong type when it is written and read again.
    assert DataConfig() == DataConfig(**DataConfig().model_dump())
    assert OptimizerConfig() == OptimizerConfig(**OptimizerConfig().model_dump())


NUMERIC_KEYS = [key for key, value in flatten_config(Config()).items() if type(value) in (int, float)]
EXTREMES = (
    ".inf", "-.inf", ".nan", "-1", "0", "-0.0", "1e-300", "1e-45", "1e300", "1e38", "2147483647", "2147483648",
    "9223372036854775807", "9223372036854775808", "18446744073709551615", "18446744073709551616",
)  # fmt: skip


@pytest.mark.parametrize("key", NUMERIC_KEYS)
def test_an_extreme_value_is_rejected_in_one_line_or_fits_the_type_that_computes_with_it(key):
    for text in EXTREMES:
        try:
            value = flatten_config(load_config(None, [f"{key}={text}"]))[key]
        except UsageError as error:
            message = str(error)
        else:
            message = ""
        if message:
            assert key in message
            assert "\n" not in message
        elif isinstance(value, int):
            assert 0 <= value < (2**63 if key == "train.seed" else 2**31)
        else:
            assert math.isfinite(value)
            # Times are bounded by what a timer of the operating system accepts.
            assert np.isfinite(np.float32(value) ** 2)


@pytest.mark.parametrize(
    "key", ["train.global_batch_size", "eval.batch_size", "eval.max_detections", "cluster.logical_cpus"]
)
def test_a_size_that_no_memory_can_hold_is_rejected(key):
    with pytest.raises(UsageError, match=key):
        load_config(None, [f"{key}=2147483647"])


@pytest.mark.parametrize("key", ["anchors.center_variance", "loss.beta", "optimizer.lr", "train.stall_seconds"])
def test_a_divisor_does_not_become_zero_in_float32(key):
    with pytest.raises(UsageError, match=key):
        load_config(None, [f"{key}=1e-300"])
