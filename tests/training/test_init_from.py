"""`model.init_from`: the weights that a new run takes over from a trained detector, and those that start fresh."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from support.small_backbone import build_few_blocks
from support.small_network import write_interpreter
from support.synthetic import CLASSES, write_dataset

from ssd_dist.core.config import Config
from ssd_dist.core.config_files import dump_config, load_config
from ssd_dist.core.errors import CheckpointError, UsageError
from ssd_dist.model import detector
from ssd_dist.model.backbone import build_backbone
from ssd_dist.model.detector import build_detector
from ssd_dist.model.layer_names import layers_by_part, name_variables
from ssd_dist.model.postprocessing import create_anchor_tensor, decode_offsets
from ssd_dist.runs.checkpoint_writer import CheckpointWriter
from ssd_dist.runs.checkpoints import BestModel
from ssd_dist.training.assembly import create_state, start_from_source
from ssd_dist.training.source_weights import OFFICIAL_MEAN, OFFICIAL_STDDEV, SourceWeights, read_source_weights
from ssd_dist.training.weight_transfer import transfer_weights

LAUNCHER = Path(__file__).parents[2] / "launch" / "train_multinode.sh"
SMALL = ["model.input_size=64", "model.width=0.1", "backbone.weights=none", "train.global_batch_size=8"]


def load_small_config(*overrides: str) -> Config:
    return load_config(None, [*SMALL, *overrides])


def build(config: Config, classes=CLASSES, seed: int = 1) -> tf_keras.Model:
    """Builds a detector with random values in all variables, batch norm included."""
    model = build_detector(config.model, config.backbone, config.anchors, len(classes))
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        low = 0.5 if "variance" in variable.name or "gamma" in variable.name else -0.3
        variable.assign(rng.uniform(low, low + 0.6, variable.shape))
    return model


def values_of(model: tf_keras.Model) -> dict[str, np.ndarray]:
    return {name: v.numpy() for _, layer in layers_by_part(model) for name, v in name_variables(layer).items()}


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def run_on_noise(model: tf_keras.Model) -> dict[str, np.ndarray]:
    image = np.random.default_rng(2).uniform(-1, 1, (1, 64, 64, 3)).astype(np.float32)
    return {name: value.numpy() for name, value in model(image, training=False).items()}


@pytest.fixture(autouse=True, scope="module")
def small_backbone():
    """Most tests need the names of layers, not a whole MobileNetV2."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector, "build_backbone", build_few_blocks)
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tf_keras.Model]:
    """A run with a best model, and that model."""
    return write_run(tmp_path_factory.mktemp("source") / "run")


def write_run(run: Path) -> tuple[Path, tf_keras.Model]:
    config = load_small_config()
    manifest = write_dataset(run / "data", config, {"train": 8})
    (run / "dataset.json").write_text(manifest.to_json())
    (run / "config.yaml").write_text(dump_config(config))
    model = build(config)
    BestModel(model, str(run), "coco/AP", keep=1).save_if_best(3, 0.5)
    return run, model


@pytest.fixture(scope="module")
def weights(source: tuple[Path, tf_keras.Model]) -> SourceWeights:
    """What is read from a checkpoint of that run."""
    return read_source_weights(str(source[0] / "best" / "ckpt-3"))


@dataclass
class Transfer:
    """A model before and after a transfer, and the report."""

    model: tf_keras.Model
    fresh: dict[str, np.ndarray]
    report: str


def transfer(weights: SourceWeights, config: Config, classes=CLASSES) -> Transfer:
    model = build(config, classes, seed=5)
    fresh = values_of(model)
    return Transfer(model, fresh, "\n".join(transfer_weights(model, classes, config.anchors, weights)))


def test_a_run_with_the_same_classes_and_anchors_is_taken_over_completely(source, weights) -> None:
    run, trained = source
    done = transfer(weights, load_small_config())
    assert_equal(values_of(done.model), values_of(trained))
    assert f"initial weights from {run}/best/ckpt-3" in done.report
    assert "fresh" not in done.report
    assert "3 of 3 classes" in done.report


def test_classes_are_matched_by_name(source, weights) -> None:
    done = transfer(weights, load_small_config(), ("blue", "pink", "red"))
    assert "background and 2 of 3 classes taken over; not in the source, starts fresh: pink" in done.report
    found, expected = run_on_noise(done.model)["logits"], run_on_noise(source[1])["logits"]
    for label, other in ((0, 0), (1, 3), (3, 1)):  # background, blue, red
        np.testing.assert_allclose(found[..., label], expected[..., other], rtol=1e-4, atol=1e-5)
    kernel, fresh = (values["class_0/kernel"].reshape(-1, 4, 4) for values in (values_of(done.model), done.fresh))
    np.testing.assert_array_equal(kernel[..., 2], fresh[..., 2])


def test_other_variances_of_the_anchors_leave_the_decoded_boxes_unchanged(source, weights) -> None:
    config = load_small_config("anchors.center_variance=0.2", "anchors.size_variance=0.1")
    done = transfer(weights, config)

    def decode(model, config):
        anchors = create_anchor_tensor(config.anchors, 64)
        return decode_offsets(tf.constant(run_on_noise(model)["offsets"]), anchors, config.anchors).numpy()

    np.testing.assert_allclose(decode(done.model, config), decode(source[1], load_small_config()), rtol=1e-4, atol=1e-5)


def test_anchor_shapes_start_from_the_nearest_aspect_ratio(source, weights) -> None:
    ratios = [[2.5], [3.0], [2.0, 3.0], [2.0, 3.0, 5.0], [2.0], [2.0]]
    done = transfer(weights, load_small_config(f"anchors.aspect_ratios={ratios}"))
    assert "anchors: 3 levels have other aspect ratios" in done.report
    # Shapes of a level: small square, large square, then wide and tall of each ratio.
    for level, shapes in ((0, [0, 1, 2, 3]), (1, [0, 1, 4, 5]), (3, [0, 1, 2, 3, 4, 5, 4, 5])):
        for head in ("class", "box"):
            for kind in ("kernel", "bias"):
                found, expected = (
                    getattr(m.get_layer(f"{head}_{level}"), kind).numpy() for m in (done.model, source[1])
                )
                rows = [expected[..., shape * 4 : (shape + 1) * 4] for shape in shapes]
                np.testing.assert_array_equal(found, np.concatenate(rows, axis=-1))


def test_layers_of_another_head_style_start_fresh(source, weights) -> None:
    done = transfer(weights, load_small_config("model.head=ssd"))
    expected = values_of(source[1])
    for name, value in values_of(done.model).items():
        # Levels 0 to 2 are the backbone's; the kernels of the others are larger without depthwise convolutions.
        same = not name.startswith(("class_", "box_")) and value.shape == expected[name].shape
        same = same and name.partition("/")[0].removesuffix("_bn") not in ("extra_0", "extra_1", "extra_2")
        same = same or (name.startswith("extra") and "_bn/" in name)
        np.testing.assert_array_equal(value, (expected if same else done.fresh)[name], err_msg=name)
    assert "class heads: 0 of 6 layers taken over; starts fresh: class_0" in done.report


def test_the_averages_of_a_training_checkpoint_are_taken_and_the_new_averages_start_from_them(source, tmp_path) -> None:
    run = tmp_path / "run"
    shutil.copytree(source[0], run, ignore=shutil.ignore_patterns("best"))
    state = create_state(load_small_config(), len(CLASSES), total_steps=1)
    for average in state.ema.averages.values():
        average.assign_add(tf.ones_like(average))
    CheckpointWriter(state.checkpoint(), str(run / "checkpoints")).write("ckpt-7")
    config = load_small_config(f"model.init_from={run}")
    new = create_state(config, len(CLASSES), total_steps=1)
    report = start_from_source(config, CLASSES, tf.distribute.get_strategy(), new)
    assert "checkpoints/ckpt-7" in report[0]
    averages = {name: value.numpy() for name, value in state.ema.averages.items()}
    assert {name: value.numpy().tolist() for name, value in new.ema.averages.items()} == {
        name: value.tolist() for name, value in averages.items()
    }
    for group in new.optimizer.inner_optimizer.groups:
        np.testing.assert_array_equal(group.pack().numpy(), averages[group.name])
    # With a best checkpoint, the training checkpoint is not used.
    shutil.copytree(source[0] / "best", run / "best")
    assert read_source_weights(str(run)).origin == f"{run}/best/ckpt-3"


def test_a_keras_file_gives_everything_but_the_class_heads(source, tmp_path) -> None:
    _, trained = source
    trained.save_weights(tmp_path / "w.h5")
    done = transfer(read_source_weights(str(tmp_path / "w.h5")), load_small_config())
    expected = values_of(trained)
    for name, value in values_of(done.model).items():
        is_class_row = name.startswith("class_") and "depthwise" not in name
        np.testing.assert_array_equal(value, (done.fresh if is_class_row else expected)[name], err_msg=name)
    assert "class names" in done.report


def write_official_checkpoint(folder: Path, model_id: str = "MobileNetV2") -> tf_keras.Model:
    """Writes a checkpoint as the trainer of tf-models-official does; returns its backbone."""
    from official.vision.modeling.backbones.mobilenet import MobileNet

    backbone = MobileNet(
        model_id, filter_size_scale=0.35, input_specs=tf_keras.layers.InputSpec(shape=[None, 64, 64, 3])
    )
    rng = np.random.default_rng(4)
    for variable in backbone.variables:
        if "kernel" not in variable.name:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    parts = {"model": tf.train.Checkpoint(backbone=backbone), "backbone": backbone, "global_step": tf.Variable(9)}
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(**parts), str(folder), max_to_keep=1)
    manager.save()
    return backbone


def test_the_backbone_of_an_official_checkpoint_computes_the_same_features(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(detector, "build_backbone", build_backbone)
    official = write_official_checkpoint(tmp_path)
    first = next(v for v in official.variables if v.shape == (3, 3, 3, 16))
    # Images are padded with zeros after normalization, which differs; without these rows padding has no effect.
    first.assign(first.numpy() * np.float32([1, 1, 0])[:, None, None, None] * np.float32([1, 1, 0])[:, None, None])
    tf.train.Checkpoint(backbone=official).save(str(tmp_path / "ckpt"))
    config = load_small_config("model.width=0.35")
    done = transfer(read_source_weights(str(tmp_path)), config)
    assert "backbone: 104 of 104 layers taken over" in done.report
    assert "extra levels: 0 of" in done.report
    pixels = np.random.default_rng(3).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    expected = official((pixels / 255 - OFFICIAL_MEAN) / OFFICIAL_STDDEV, training=False)
    found = done.model.get_layer("backbone")(pixels / 127.5 - 1, training=False)[-1]
    # Level 6 of the official backbone is the output before the last convolution, so the last one is compared here.
    last = tf_keras.Model(official.input, official.layers[-1].output)((pixels / 255 - OFFICIAL_MEAN) / OFFICIAL_STDDEV)
    assert expected
    np.testing.assert_allclose(found.numpy(), last.numpy(), rtol=1e-3, atol=1e-4)


def test_the_official_normalization_is_the_one_assumed() -> None:
    from official.vision.ops import preprocess_ops

    np.testing.assert_allclose(OFFICIAL_MEAN * 255, preprocess_ops.MEAN_RGB, rtol=1e-6)
    np.testing.assert_allclose(OFFICIAL_STDDEV * 255, preprocess_ops.STDDEV_RGB, rtol=1e-6)


def test_sources_that_are_no_detector_are_refused_in_one_line(source, tmp_path) -> None:
    run, _ = source
    network = tf_keras.applications.MobileNetV2((64, 64, 3), alpha=0.35, include_top=False, weights=None)
    network.save_weights(tmp_path / "backbone.h5")
    tf_keras.Sequential([tf_keras.layers.Dense(1, input_shape=(2,))]).save_weights(tmp_path / "dense.h5")
    (tmp_path / "text.h5").write_text("no weights")
    tf.train.Checkpoint(x=tf.Variable(1.0)).write(str(tmp_path / "other"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    shutil.copy(run / "config.yaml", tmp_path / "run")
    shutil.copy(run / "dataset.json", tmp_path / "run")
    write_official_checkpoint(tmp_path / "v1", "MobileNetV1")
    write_official_checkpoint(tmp_path / "v2")
    for name, reason in (
        ("nowhere", "does not exist"),
        ("backbone.h5", "give it as backbone.weights"),
        ("dense.h5", "has no layer class_0"),
        ("text.h5", "cannot be read"),
        ("other", "neither a checkpoint of a run"),
        ("v1", "neither a checkpoint of a run"),
        ("empty", "is not a trained detector"),
        ("run", "has no checkpoint"),
    ):
        with pytest.raises(CheckpointError, match=reason) as error:
            read_source_weights(str(tmp_path / name))
        assert "\n" not in str(error.value)
    official = read_source_weights(str(tmp_path / "v2"))
    with pytest.raises(CheckpointError, match=r"backbone of .* does not fit: layer .*set model.width to the width of"):
        transfer(official, load_small_config())


def test_two_sources_of_the_backbone_are_refused() -> None:
    with pytest.raises(UsageError, match=r"model\.init_from .*backbone\.weights .*set backbone\.weights: none"):
        load_small_config("model.init_from=run", "backbone.weights=w.h5")
    # ImageNet weights are the default, so they are replaced and not loaded.
    assert load_small_config("model.init_from=run", "backbone.weights=imagenet").model.init_from == "run"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_workers_start_from_the_source_and_resume_without_it(tmp_path, workers: int) -> None:
    run, trained = write_run(tmp_path / "source")
    write_dataset(tmp_path / "data", load_small_config(), {"train": 16}, shards=2)
    config = tmp_path / "small.yaml"
    config.touch()
    python = write_interpreter(tmp_path)

    def train(*overrides: str) -> subprocess.CompletedProcess:
        sets = [*SMALL, f"data.dir={tmp_path / 'data'}", "train.recover_from_blowup=1", "checkpoint.keep=9", *overrides]
        launch = [str(LAUNCHER), f"--local={workers}", "--max_restarts=0", f"--python={python}", "--"]
        flags = [f"--config={config}", f"--model_dir={tmp_path / 'run'}", "--noreport", *(f"--set={x}" for x in sets)]
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
        return subprocess.run([*launch, *flags], capture_output=True, text=True, timeout=1500, env=environment)

    missing = train("model.init_from=/nowhere", "train.steps=1")
    assert missing.returncode == 4, missing.stdout + missing.stderr
    assert not (tmp_path / "run").exists(), "a corrected command can use the folder"
    first = train(f"model.init_from={run}", "train.steps=1")
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout.count("3 of 3 classes taken over") == 1
    model = build(load_small_config())
    tf.train.Checkpoint(model=model).read(str(tmp_path / "run/checkpoints/ckpt-0")).expect_partial()
    assert_equal(values_of(model), values_of(trained))
    shutil.rmtree(run)
    second = train(f"model.init_from={run}", "train.steps=2")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "resumes at step 1 of 2" in second.stdout
