"""The dry run describes a run; its counts agree with the paper and with TensorFlow's profiler."""

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import tensorflow as tf
import tf_keras
from support.small_network import small_command
from support.synthetic import write_dataset
from tensorflow.python.profiler import model_analyzer, option_builder

from ssd_dist.checks.dry_run import describe_dry_run, estimate_memory
from ssd_dist.core.config import Config, ModelConfig
from ssd_dist.core.config_files import dump_config
from ssd_dist.core.errors import UsageError
from ssd_dist.model.cost import Cost, count_cost
from ssd_dist.model.detector import build_detector
from ssd_dist.runs.run_folder import open_run_folder
from ssd_dist.training.batch_division import BatchDivision

# Each dry run starts TensorFlow and builds a detector: on a busy machine this took more than two minutes.
pytestmark = pytest.mark.timeout(1800)

SMALL = {"model": {"input_size": 64, "width": 0.1}, "backbone": {"weights": "none"}}


def test_multiply_adds_are_half_of_the_profilers_flops():
    config = Config.model_validate(SMALL)
    model = build_detector(config.model, config.backbone, config.anchors, 3)
    graph = tf.function(lambda image: model(image, training=False)).get_concrete_function(tf.TensorSpec([1, 64, 64, 3]))
    options = option_builder.ProfileOptionBuilder(option_builder.ProfileOptionBuilder.float_operation())
    report = model_analyzer.profile(graph.graph, cmd="scope", options=options.with_empty_output().build())
    counted = sum(count_cost(model).values(), Cost())
    # The profiler also counts the heads' biases, 0.2 % of this model.
    assert 2 * counted.multiply_adds == pytest.approx(report.total_float_ops, rel=0.01)
    assert counted.parameters == model.count_params()


def test_the_multiply_adds_of_the_backbone_agree_with_the_paper():
    """Sandler et al. 2018, table 4: 300 M multiply-adds at 224; without its classifier of 1.3 M."""
    plain = Config.model_validate({"backbone": {"weights": "none"}})
    small, large = (
        count_cost(build_detector(ModelConfig(input_size=size), plain.backbone, plain.anchors, 3))
        for size in (224, 448)
    )
    assert small["backbone"].multiply_adds == pytest.approx(300e6 - 1.28e6, rel=0.01)
    assert large["backbone"].parameters == small["backbone"].parameters
    # Twice the input size gives four times the cells, because all sizes are even.
    assert large["backbone"].multiply_adds == 4 * small["backbone"].multiply_adds
    assert large["backbone"].activations == pytest.approx(4 * small["backbone"].activations, rel=0.02)


def test_only_the_activations_of_the_first_frozen_layers_are_not_stored():
    config = Config.model_validate(SMALL)

    def count(**backbone):
        changed = config.backbone.model_copy(update=backbone)
        return sum(count_cost(build_detector(config.model, changed, config.anchors, 3)).values(), Cost())

    free, blocks, norms = count(), count(frozen_blocks=1), count(freeze_batch_norm=True)
    # At width 0.1, each of these seven activations has 32 x 32 cells and 8 channels: two convolutions with their ReLUs;
    # in block 0, the last convolution, its batch norm and the sum.
    assert free.activations - blocks.activations == 7 * 32 * 32 * 8
    # The backward pass crosses a frozen batch norm on its way to the convolutions before it.
    assert norms == free
    assert (blocks.parameters, blocks.multiply_adds) == (free.parameters, free.multiply_adds)


@pytest.mark.parametrize(
    ("division", "copies"),
    [
        (BatchDivision(8, replicas=1, parts=1, group=4), 2),
        (BatchDivision(8, replicas=1, parts=2, group=4), 3),
        (BatchDivision(8, replicas=1, parts=1, group=2, is_exact=True), 6),
    ],
)
def test_the_memory_of_gradients_includes_those_stored_until_the_update(division: BatchDivision, copies: int) -> None:
    model = tf_keras.Sequential([tf_keras.layers.Dense(3, input_shape=(2,))])
    optimizer = SimpleNamespace(inner_optimizer=SimpleNamespace(slots={}))
    memory = dict(estimate_memory(SimpleNamespace(model=model, ema=None, optimizer=optimizer), {}, division, False))
    assert memory["gradients"] == copies * 4 * (2 * 3 + 3)
    assert f"activations of {division.images_at_once} images" in memory


def dry_run(folder: Path, config: Config, *flags: str) -> subprocess.CompletedProcess:
    file = folder / "config.yaml"
    file.write_text(dump_config(config))
    command = small_command("ssd_dist.cli.train", f"--config={file}", "--dry_run", *flags)
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ | {"COLUMNS": "120"})


@pytest.mark.slow
def test_a_dry_run_describes_the_run_and_writes_nothing(tmp_path):
    settings = {"train": {"global_batch_size": 8}, "cluster": {"logical_cpus": 2}}
    config = Config.model_validate(SMALL | settings | {"data": {"dir": str(tmp_path / "data")}})
    counts = write_dataset(tmp_path / "data", config, {"train": 24, "val": 6}, shards=2).splits["train"].views[0]
    done = dry_run(tmp_path, config, f"--model_dir={tmp_path / 'run'}", "--set=data.repeat_threshold=1.0")
    assert done.returncode == 0, done.stderr
    output = " ".join(done.stdout.split())
    for words in (
        "MobileNetV2 0.1, ssdlite head, 64 x 64", "8²·4 + 4²·6 + 2²·6 + 1²·6 + 1²·4 + 1²·4", "GFLOP per image",
        "activations of 4 images", "batch norm in groups of 4", "24 images", "0 images rejected",
        "images per second on this machine", "120, 3 per epoch", "on val every 5 epochs", "a new run",
        "2, 4 images each", *(
            f"{name} ({(24 / images) ** 0.5:.1f} times)" for name, images in counts.images_per_class.items()
        ),
    ):  # fmt: skip
        assert words in output, (words, output)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_dry_run_of_several_workers_counts_their_logical_cpus(tmp_path, monkeypatch):
    model = SMALL["model"] | {"batch_norm_group": 2}
    settings = {"model": model, "train": {"global_batch_size": 8}, "cluster": {"logical_cpus": 2}}
    config = Config.model_validate(SMALL | settings | {"data": {"dir": str(tmp_path / "data")}})
    write_dataset(tmp_path / "data", config, {"train": 8}, shards=2)
    task = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(task))
    done = dry_run(tmp_path, config)
    assert done.returncode == 0, done.stderr
    assert "4, 2 images each" in " ".join(done.stdout.split())
    done = dry_run(tmp_path, config, "--set=cluster.strategy=mirrored")
    assert done.returncode == 2
    assert "2 workers" in done.stderr


@pytest.mark.slow
def test_an_error_that_would_stop_the_run_stops_the_dry_run(tmp_path):
    config = Config.model_validate(SMALL | {"data": {"dir": str(tmp_path / "data")}})
    done = dry_run(tmp_path, config)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr
    assert "prepare the data first" in done.stderr


def test_a_run_with_another_config_is_not_resumed(tmp_path):
    data = {"data": {"dir": str(tmp_path / "data")}}
    config = Config.model_validate(SMALL | data)
    manifest = write_dataset(tmp_path / "data", config, {"train": 4, "val": 2}, shards=1)
    open_run_folder(str(tmp_path / "run"), config, manifest)
    # The checksum file of a finished checkpoint binds the folder to its config.
    (tmp_path / "run/checkpoints").mkdir(exist_ok=True)
    (tmp_path / "run/checkpoints/ckpt-1.seal").write_text("{}")
    other = Config.model_validate(SMALL | data | {"train": {"seed": 7}})
    with pytest.raises(UsageError, match=r"has a run with train\.seed"):
        describe_dry_run(other, str(tmp_path / "run"))


def test_a_group_that_does_not_fit_the_batch_is_refused(tmp_path):
    data = {"data": {"dir": str(tmp_path / "data")}, "train": {"global_batch_size": 4}}
    config = Config.model_validate(data | {"model": {**SMALL["model"], "batch_norm_group": 3}})
    write_dataset(tmp_path / "data", config, {"train": 4, "val": 2}, shards=1)
    with pytest.raises(UsageError, match=r"model\.batch_norm_group: 3 .* use 1, 2, 4"):
        describe_dry_run(config, None)


@pytest.mark.slow
def test_a_damaged_shard_stops_the_dry_run_or_is_reported(tmp_path):
    data = {"data": {"dir": str(tmp_path / "data")}, "train": {"global_batch_size": 4}}
    config = Config.model_validate(SMALL | data)
    write_dataset(tmp_path / "data", config, {"train": 12, "val": 4}, shards=2)
    shard = min((tmp_path / "data/train").glob("*.tfrecord"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    done = dry_run(tmp_path, config)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr
    assert shard.name in done.stderr
    done = dry_run(tmp_path, config, "--set=data.on_corrupt=skip", f"--set=data.cache_dir={tmp_path / 'cache'}")
    assert done.returncode == 0, done.stderr
    assert "1 records, replaced by valid ones" in " ".join(done.stdout.split())
    # A shard that was cut off is repaired by training, too.
    shard.write_bytes(content[:-5])
    done = dry_run(tmp_path, config, "--set=data.on_corrupt=skip")
    assert done.returncode == 0, done.stderr
