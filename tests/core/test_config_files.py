"""Tests extends, invalid files, environment references, and that load inverts dump."""

import contextlib

import pytest
import yaml
from config_errors import get_load_error
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_dist.core.config import Config
from ssd_dist.core.config_files import dump_config, flatten_config, load_config, load_stored_config
from ssd_dist.core.errors import UsageError


def test_an_empty_file_is_the_default(write):
    assert load_config(write("")) == Config()


def test_a_folder_may_have_the_name_of_a_date(write):
    for config in (load_config(write("data: {dir: 2026-11-25}")), load_config(write("{}"), ["data.dir=2026-13-45"])):
        assert config.data.dir.startswith("2026-1")
        assert load_config(write(dump_config(config))) == config


# --- Layers: extends, files, overrides -----------------------------------------------------------------------------


def test_the_nearest_file_wins_and_overrides_win_over_files(write):
    write("train: {epochs: 1, steps: 1, seed: 1}\nmodel: {width: 0.5}", "shared/base.yaml")
    write("extends: shared/base.yaml\ntrain: {steps: 2, seed: 2}", "middle.yaml")
    config = load_config(write("extends: middle.yaml\ntrain: {seed: 3}"), ["train.log_every=4", "train.log_every=5"])
    train = config.train
    assert (train.epochs, train.steps, train.seed, train.log_every) == (1, 2, 3, 5)
    assert config.model.width == 0.5


def test_extends_is_relative_to_the_file_that_contains_it(write):
    write("train: {seed: 7}", "a/base.yaml")
    write("extends: ../a/base.yaml", "b/middle.yaml")
    assert load_config(write("extends: b/middle.yaml")).train.seed == 7


def test_lists_are_replaced_as_a_whole(write):
    write("tracking: {also: [wandb, mlflow]}", "base.yaml")
    assert load_config(write("extends: base.yaml\ntracking: {also: [mlflow]}")).tracking.also == ("mlflow",)


def test_names_of_ops_that_always_compute_in_float32_are_dropped(write):
    """Runs of version 0.1.0 stored all five names; they must load and compare equal to the present default."""
    stored = load_config(write("amp: {force_fp32: [loss, iou, decode, nms, mining]}"))
    assert stored.amp == load_config(write("amp: {enabled: false}")).amp
    assert stored.amp.force_fp32 == ("loss",)
    assert load_config(write("amp: {force_fp32: [nms]}")).amp.force_fp32 == ()


@pytest.mark.parametrize(
    ("given_", "equivalent"), [("true", "train.global_batch_size / train.accumulate_steps"), ("false", "a replica")]
)
def test_a_removed_key_is_rejected_with_its_replacement(write, given_, equivalent):
    for path, overrides in (
        (write(f"train: {{sync_batch_norm: {given_}}}"), []),
        (write("", "empty.yaml"), [f"train.sync_batch_norm={given_}"]),
    ):
        message = get_load_error(path, overrides)
        for word in ("train.sync_batch_norm", "set model.batch_norm_group to", equivalent):
            assert word in message, message


@pytest.mark.parametrize(
    ("given_", "group"),
    [
        ("true", 6),  # the 12 images of the batch in two parts
        ("false", Config().model.batch_norm_group),
    ],
)
def test_the_stored_config_of_an_earlier_version_is_converted(write, given_, group):
    stored = yaml.safe_load(dump_config(Config()))
    del stored["model"]["batch_norm_group"]
    stored["train"] |= {"global_batch_size": 12, "accumulate_steps": 2, "sync_batch_norm": given_ == "true"}
    path = write(yaml.dump(stored))
    assert load_stored_config(path).model.batch_norm_group == group
    assert load_stored_config(path, ["model.batch_norm_group=3"]).model.batch_norm_group == 3
    assert "train.sync_batch_norm" in get_load_error(path)


def test_links_that_form_a_loop_are_reported(tmp_path):
    (tmp_path / "x.yaml").symlink_to("y.yaml")
    (tmp_path / "y.yaml").symlink_to("x.yaml")
    assert "x.yaml cannot be read" in get_load_error(tmp_path / "x.yaml")


@pytest.mark.parametrize("files", [{"x.yaml": "x.yaml"}, {"x.yaml": "sub/y.yaml", "sub/y.yaml": "../x.yaml"}])
def test_circular_extends_are_reported(write, files):
    for name, base in files.items():
        write(f"extends: {base}", name)
    message = get_load_error(write(f"extends: {files['x.yaml']}"))
    assert "forms a cycle" in message
    assert "x.yaml" in message


def test_a_missing_base_is_reported_with_the_most_similar_file_name(write):
    write("", "base.yaml")
    message = get_load_error(write("extends: bsae.yaml"))
    assert "bsae.yaml does not exist" in message
    assert "base.yaml?" in message


def test_a_bare_name_is_a_config_of_the_package(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = load_config("base")
    assert (base.optimizer.lr, base.model.head) == (2e-3, "ssdlite")
    assert load_config(write("extends: base\ntrain: {epochs: 3}"), ["train.epochs=40"]) == base


def test_a_file_is_preferred_to_a_config_of_the_package(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("train: {seed: 5}", "base")
    assert load_config("base").train.seed == 5
    assert load_config(write("extends: base")).train.seed == 5
    (tmp_path / "demo").mkdir()  # the folder of `make demo`
    assert load_config("demo").model.width == 0.35


@pytest.mark.parametrize("name", ["bsae", "configs/base.yaml", "base.yml"])
def test_a_missing_config_is_reported_with_the_config_of_the_package(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    message = get_load_error(name)
    assert f"config file {name} does not exist; did you mean base, the config that the package contains?" in message


def test_an_error_states_the_file_that_contains_it(write):
    write("train: {epochs: none}", "base.yaml")
    message = get_load_error(write("extends: base.yaml\ntrain: {seed: 1}"))
    assert "base.yaml: train.epochs" in message
    assert "x.yaml" not in message


# --- Invalid files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {epochs: 1, epochs: 2}", ["'epochs' is given twice"]),
        ("train: {epochs: 1}\ntrain: {steps: 1}", ["'train' is given twice", "line 2, column 1"]),
        ("a: b: c", ["not valid YAML", "line 1, column 5"]),
        ("[1, 2]", ["list"]),
        ("just words", ["str"]),
        ("? [a]\n: 3", ["not valid YAML"]),
        ("x: !!python/object/apply:os.getcwd []", ["not valid YAML"]),
        ("train: &t {x: *t}", ["aliases"]),  # it contains itself
        ("a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]", ["aliases"]),  # a thousand laughs
        ("[" * 5000, ["not valid YAML"]),
        ("a: \x00", ["not valid YAML"]),
        ("a: 1\n\tb: 2", ["not valid YAML", "line 2"]),
        ("2026-11-25: 1", ["unknown key 2026-11-25"]),
        ("train: {2026-11-25: 2026-11-26}", ["unknown key train.2026-11-25", "'2026-11-26'"]),
        ("train: {epochs: 2026-11-25}", ["train.epochs", "got '2026-11-25'", "integer"]),
        ("train: {1: 2}", ["train"]),
        ("? \n: 3", ["None"]),
        ("train: {epochs: !!timestamp x}", ["not valid YAML", "tag !!timestamp"]),
        ("train: {epochs: 0x" + "f" * 5000 + "}", ["not valid YAML", "64 bits"]),
        ('"\\UFFFFFFFF": 1', ["not valid YAML", "line 1"]),
        ('data: {dir: "\\ud800"}', ["not valid YAML", "surrogate"]),
        ('data: {dir: "a\\0b"}', ["data.dir: got 'a\\x00b'", "without control characters"]),
        ('data: {dir: "a\\e[31mb"}', ["data.dir: got 'a\\x1b[31mb'"]),
        ('extends: "a\\0b"', ["extends", "'a\\x00b'"]),
        ("extends: 3", ["extends", "got 3", "path of one YAML file"]),
        ("extends: ''", ["extends", "got ''"]),
        ("extends: [base.yaml]", ["extends", "path of one YAML file"]),
    ],
)
def test_invalid_files_are_reported_by_name(write, text, words):
    message = get_load_error(write(text))
    assert "x.yaml" in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\n".join(f"key{index}: {index}" for index in range(20_000)), ["unknown key key", "did you mean"]),
        ("train:\n" + "\n".join(f"  epoch{index}: {index}" for index in range(20_000)), ["unknown key train.epoch"]),
        ("x" * 900_000 + ": 1", ["not valid YAML"]),  # YAML limits a key on one line to 1,024 characters
        ("? " + "x" * 900_000 + "\n: 1", ["unknown key xxx", "did you mean"]),
        ("x" * 1000 + ": " + "y" * 900_000, ["unknown key xxx", "given: 'yyy"]),
        ("anchors: {sizes: [" + "x, " * 20_000 + "]}", ["anchors.sizes", "got "]),
        ("train: {epochs: " + "1:" * 200_000 + "1}", ["train.epochs", "got '1:1:"]),
        ("#" * 1_000_001, ["more than 1 MB"]),
    ],
    ids=["keys", "nested keys", "long key", "long explicit key", "long value", "list", "base 60", "size"],
)
@pytest.mark.timeout(60)
def test_a_large_file_is_rejected_in_linear_time_with_a_short_message(write, text, words):
    message = get_load_error(write(text))
    assert len(message) < 2500
    for word in words:
        assert word in message, message


@pytest.mark.timeout(60)
def test_references_without_an_end_are_read_in_linear_time(write):
    text = "${A:-" * 150_000
    assert load_config(write(f"data: {{dir: '{text}'}}")).data.dir == text


def test_an_override_with_many_parts_is_rejected(write):
    assert "expected KEY=VALUE" in get_load_error(write(""), ["a." * 20_000 + "a=1"])


def test_binary_files_folders_and_missing_files_are_reported_by_name(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "binary.yaml cannot be read" in get_load_error(tmp_path / "binary.yaml")
    assert f"{tmp_path} cannot be read" in get_load_error(tmp_path)
    assert "/dev/zero has more than 1 MB" in get_load_error("/dev/zero")
    (tmp_path / "long.yaml").write_text("extends: " + "x" * 5000)
    assert "cannot be read: [Errno 36] File name too long" in get_load_error(tmp_path / "long.yaml")
    message = get_load_error(tmp_path / "binray.yaml")
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


def test_an_unset_variable_is_reported_with_both_fixes(write, monkeypatch):
    monkeypatch.delenv("SSD_TEST_NONE", raising=False)
    message = get_load_error(write("data: {dir: '${SSD_TEST_NONE}/x'}"))
    assert "${SSD_TEST_NONE}" in message
    assert "export" in message
    assert "${SSD_TEST_NONE:-default}" in message


# --- Round trip ----------------------------------------------------------------------------------------------------

# YAML rejects control characters; ${...} would be expanded.
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
    loss_scale=st.one_of(st.just("dynamic"), st.floats(1e-3, 1e15)),
    seed=st.integers(0, 2**63 - 1),
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
def test_any_tree_of_values_gives_a_config_or_a_usage_error(tmp_path_factory, data):
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
