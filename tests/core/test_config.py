"""The config: what it takes, what it refuses, and that each refusal names file or flag, key, value and mend."""

import contextlib
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ssd_dist.core.config import Config, DataConfig, OptimizerConfig
from ssd_dist.core.config_files import dump_config, flatten_config, load_config
from ssd_dist.core.errors import UsageError

# DESIGN.md, section 2, "Config keys that stay", and the value types that a user may rely on.
CONTRACT = [
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
    "train.sync_batch_norm",
    "train.jit_compile",
    "eval.every_epochs",
    "eval.every_steps",
    "eval.metric",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "cluster.strategy",
    "cluster.logical_cpus",
    "cluster.health_timeout",
]


@pytest.fixture
def write(tmp_path):
    def write_file(text: str, name: str = "x.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def refusal(path, overrides=()) -> str:
    with pytest.raises(UsageError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_the_keys_of_the_contract_are_there():
    assert set(CONTRACT) <= set(flatten_config(Config()))


def test_an_empty_file_is_the_default(write):
    assert load_config(write("")) == Config()


def test_the_repositorys_configs_load():
    repository = Path(__file__).parents[2]
    files = sorted((repository / "configs").glob("*.yaml"))
    assert files
    for file in files:
        load_config(file)


def test_a_config_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Config().train.epochs = 3


# --- Layers: extends, files, overrides -----------------------------------------------------------------------------


def test_the_nearest_file_wins_and_overrides_win_over_files(write):
    write("train: {epochs: 1, steps: 1, seed: 1}\nmodel: {width: 0.5}", "shared/base.yaml")
    write("extends: shared/base.yaml\ntrain: {steps: 2, seed: 2}", "middle.yaml")
    config = load_config(write("extends: middle.yaml\ntrain: {seed: 3}"), ["train.log_every=4", "train.log_every=5"])
    train = config.train
    assert (train.epochs, train.steps, train.seed, train.log_every) == (1, 2, 3, 5)
    assert config.model.width == 0.5


def test_extends_is_relative_to_the_file_that_says_it(write):
    write("train: {seed: 7}", "a/base.yaml")
    write("extends: ../a/base.yaml", "b/middle.yaml")
    assert load_config(write("extends: b/middle.yaml")).train.seed == 7


def test_lists_are_replaced_as_a_whole(write):
    write("amp: {force_fp32: [loss, nms]}", "base.yaml")
    assert load_config(write("extends: base.yaml\namp: {force_fp32: [iou]}")).amp.force_fp32 == ("iou",)


@pytest.mark.parametrize("files", [{"x.yaml": "x.yaml"}, {"x.yaml": "sub/y.yaml", "sub/y.yaml": "../x.yaml"}])
def test_a_circle_is_named(write, files):
    for name, base in files.items():
        write(f"extends: {base}", name)
    message = refusal(write(f"extends: {files['x.yaml']}"))
    assert "circle" in message
    assert "x.yaml" in message


def test_a_missing_base_is_named_with_its_nearest_neighbour(write):
    write("", "base.yaml")
    message = refusal(write("extends: bsae.yaml"))
    assert "bsae.yaml does not exist" in message
    assert "base.yaml?" in message


def test_a_mistake_names_the_file_it_is_in(write):
    write("train: {epochs: none}", "base.yaml")
    message = refusal(write("extends: base.yaml\ntrain: {seed: 1}"))
    assert "base.yaml: train.epochs" in message
    assert "x.yaml" not in message


# --- Values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("optimizer.lr=1e-3", "optimizer", "lr", 0.001),  # YAML 1.1 has this as a string
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
        ("amp.force_fp32=[nms]", "amp", "force_fp32", ("nms",)),
        ("anchors.sizes=[.1,.2,.3,.4,.5,.6,.7]", "anchors", "sizes", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)),
        ("train={epochs: 9}", "train", "epochs", 9),
    ],
)
def test_overrides_are_typed_as_yaml_is(write, override, section, key, value):
    given_ = getattr(getattr(load_config(write(""), [override]), section), key)
    assert given_ == value
    assert type(given_) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # key, given, allowed
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
        ("ema: {decay: 1.0}", ["ema.decay", "got 1.0", "less than 1"]),
        ("amp: {loss_scale: dynamc}", ["amp.loss_scale", "'dynamc'", "'dynamic' or a valid number"]),
        ("amp: {loss_scale: 0}", ["amp.loss_scale", "got 0", "'dynamic' or greater than 0"]),
        ("amp: {force_fp32: loss}", ["amp.force_fp32", "'loss'", "a list"]),
        ("amp: {force_fp32: [los]}", ["amp.force_fp32", "'los'", "'loss', 'iou', 'decode', 'nms' or 'mining'"]),
        ("eval: {metric: mAP}", ["eval.metric", "'mAP'", "'coco/AP', 'coco/AP50', 'voc07/mAP' or 'voc/mAP'"]),
        ("anchors: {sizes: [.1, .2]}", ["anchors.sizes", "7", "got 2"]),
        ("anchors: {sizes: [.1, .2, .3, .4, .5, .6, -1]}", ["anchors.sizes", "got -1", "greater than 0"]),
        ("anchors: {aspect_ratios: [[2], [2]]}", ["anchors.aspect_ratios", "6", "got 2"]),
        ("train: 3", ["train", "got 3", "section"]),
        ("train: [1]", ["train", "got [1]", "section"]),
        # what belongs together
        ("matching: {positive_iou: 0.3}", ["matching.negative_iou (0.4)", "matching.positive_iou (0.3)"]),
        ("schedule: {min_lr: 5.0}", ["schedule.min_lr (5.0)", "optimizer.lr (0.001)"]),
    ],
)
def test_a_bad_value_is_refused_with_key_given_and_allowed(write, text, words):
    message = refusal(write(text))
    assert message.startswith(str(write(text))), message
    for word in words:
        assert word in message, message


def test_a_folder_may_have_the_name_of_a_date(write):
    for config in (load_config(write("data: {dir: 2026-11-25}")), load_config(write("{}"), ["data.dir=2026-13-45"])):
        assert config.data.dir.startswith("2026-1")
        assert load_config(write(dump_config(config))) == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # unknown key, what was given, what is allowed there, the nearest
        ("train: {epoch: 3}", ["train.epoch ", "3", "epochs, steps, global_batch_size", "did you mean train.epochs?"]),
        ("trian: {epochs: 3}", ["trian", "data, anchors, matching", "did you mean train?"]),
        ("train: {lr: 1}", ["train.lr", "did you mean optimizer.lr?"]),  # a right name in the wrong section
        ("lr: 1", ["x.yaml", "lr", "did you mean optimizer.lr?"]),
        ("data: {augmentation: {flips: true}}", ["data.augmentation.flips", "did you mean data.augmentation.flip?"]),
        ("train.epochs: 3", ["'train.epochs'", "dots are for --set", "train: {epochs: ...}"]),
        ("{3: 4}", ["3", "strings"]),
        ("train: {yes: 3}", ["train", "strings"]),  # YAML 1.1 reads yes as true
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(write, text, words):
    message = refusal(write(text))
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
        ("train.epochs={a: 1, a: 2}", ["'a' is given twice"]),
    ],
)
def test_a_bad_override_is_refused_and_named(write, override, words):
    message = refusal(write(""), [override])
    for word in words:
        assert word in message, message


# --- Files that are no config --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {epochs: 1, epochs: 2}", ["'epochs' is given twice"]),
        ("train: {epochs: 1}\ntrain: {steps: 1}", ["'train' is given twice", "line 1"]),
        ("a: b: c", ["not valid YAML", "line 1, column 5"]),
        ("[1, 2]", ["list"]),
        ("just words", ["str"]),
        ("? [a]\n: 3", ["not valid YAML"]),
        ("x: !!python/object/apply:os.getcwd []", ["not valid YAML"]),
        ("train: &t {x: *t}", ["aliases"]),  # it contains itself
        ("a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]", ["aliases"]),  # a thousand laughs
        ("[" * 5000, ["not valid YAML"]),
        ("a: \x00", ["not valid YAML"]),
        ("extends: 3", ["extends", "got 3", "path of one YAML file"]),
        ("extends: ''", ["extends", "got ''"]),
        ("extends: [base.yaml]", ["extends", "path of one YAML file"]),
    ],
)
def test_what_is_no_config_is_refused_by_name(write, text, words):
    message = refusal(write(text))
    assert "x.yaml" in message
    for word in words:
        assert word in message, message


def test_bytes_that_are_no_text_folders_and_missing_files_are_refused_by_name(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "binary.yaml cannot be read" in refusal(tmp_path / "binary.yaml")
    assert f"{tmp_path} cannot be read" in refusal(tmp_path)
    message = refusal(tmp_path / "binray.yaml")
    assert "binray.yaml does not exist" in message
    assert "binary.yaml?" in message


# --- The environment -----------------------------------------------------------------------------------------------


def test_environment_references(write, monkeypatch):
    monkeypatch.setenv("SSD_TEST_ROOT", "/data")
    monkeypatch.delenv("SSD_TEST_NONE", raising=False)
    text = "data: {dir: '${SSD_TEST_ROOT}/voc', cache_dir: '${SSD_TEST_NONE:-/tmp/x}/${SSD_TEST_NONE:-}y'}"
    config = load_config(write(text), ["backbone.weights=${SSD_TEST_ROOT}/w.h5"])
    assert config.data.dir == "/data/voc"
    assert config.data.cache_dir == "/tmp/x/y"
    assert config.backbone.weights == "/data/w.h5"


def test_an_unset_reference_is_named_with_both_mends(write, monkeypatch):
    monkeypatch.delenv("SSD_TEST_NONE", raising=False)
    message = refusal(write("data: {dir: '${SSD_TEST_NONE}/x'}"))
    assert "${SSD_TEST_NONE}" in message
    assert "export" in message
    assert "${SSD_TEST_NONE:-default}" in message


# --- Round trip ----------------------------------------------------------------------------------------------------

# Control characters are refused by YAML itself; ${...} would be expanded.
TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="${￾￿"), max_size=30),
    st.sampled_from(
        ["1e-3", "3", "true", "null", "~", "", "2020-01-01", "a: b", "- x", "#", "0x10", "1:30", "é", "=", "<<"]
    ),
)


@settings(deadline=None, max_examples=60)
@given(
    directory=TEXT,
    lr=st.floats(1e-5, 1e3),
    sizes=st.lists(st.floats(1e-6, 10), min_size=7, max_size=7),
    loss_scale=st.one_of(st.just("dynamic"), st.floats(1e-3, 1e30)),
    seed=st.integers(0, 2**63),
)
def test_dump_and_load_are_inverse(tmp_path_factory, directory, lr, sizes, loss_scale, seed):
    tree = Config().model_dump()
    tree["data"]["dir"] = directory
    tree["optimizer"]["lr"] = lr
    tree["schedule"]["min_lr"] = lr / 2
    tree["anchors"]["sizes"] = tuple(sizes)
    tree["amp"]["loss_scale"] = loss_scale
    tree["train"]["seed"] = seed
    config = Config.model_validate(tree)
    path = tmp_path_factory.mktemp("dump") / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config
    assert dump_config(load_config(path)) == dump_config(config)


def test_a_dump_is_plain_yaml_of_every_key():
    tree = yaml.safe_load(dump_config(Config()))
    assert set(flatten_config(Config())) == {".".join(path) for path in _paths(tree)}


def _paths(tree, at=()):
    for key, value in tree.items():
        yield from _paths(value, (*at, key)) if isinstance(value, dict) else [(*at, key)]


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_no_tree_of_values_gives_anything_but_a_config_or_a_usage_error(tmp_path_factory, data):
    path = data.draw(st.sampled_from(sorted(key.split(".") for key in flatten_config(Config()))))
    cut = path[: data.draw(st.integers(1, len(path)))]
    value = data.draw(
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(["", "x", "dynamic"])),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3),
                st.dictionaries(st.one_of(st.text("abc.", max_size=3), st.integers()), inner),
            ),
            max_leaves=5,
        )
    )
    for key in reversed(cut):
        value = {key: value}
    file = tmp_path_factory.mktemp("tree") / "x.yaml"
    file.write_text(yaml.safe_dump(value))
    with contextlib.suppress(UsageError):
        assert isinstance(load_config(file), Config)


def test_defaults_need_no_coercion():
    # Strict: a default of the wrong type would be refused when it is written down and read again.
    assert DataConfig() == DataConfig(**DataConfig().model_dump())
    assert OptimizerConfig() == OptimizerConfig(**OptimizerConfig().model_dump())
