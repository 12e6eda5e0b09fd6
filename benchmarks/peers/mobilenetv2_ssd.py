"""The training step of AdmiralAki99/MobileNetV2-SSD, imported from a checkout: its own loop over a constant batch.

The step matches anchors to the boxes; ours reads the matches from the shards. The average of the weights begins after
1,000 steps and is not measured. The config is the experiment template of the program with float32 instead of mixed
precision. Adapted at import, because the program needs TensorFlow 2.17, a network and an AWS client:

- Keras 3 and TensorFlow's default allocator are selected, in place of the settings of our commands.
- The modules `boto3` and `botocore` are empty: no file is copied to S3.
- The weights of the backbone are random: the program would download those of ImageNet. Their values do not change the
  time of a step.
- Log messages are discarded.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import yaml

from benchmarks.peers.requests import answer_requests

# The length that the program pads boxes to.
MAX_BOXES = 100
# ImageNet's mean and standard deviation, with which the program normalizes pixels between 0 and 1.
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)


class SilentLogger:
    """Accepts the calls of the program's logger that its training loop uses."""

    def metric(self, message: str) -> None:
        pass

    def log_scalar(self, **value: object) -> None:
        pass

    def log_scalars(self, **values: object) -> None:
        pass

    def flush(self) -> None:
        pass


def prepare_imports(checkout: Path) -> None:
    """Makes the modules of the program importable."""
    # Importing `benchmarks` set the variables of our commands.
    os.environ |= {"TF_USE_LEGACY_KERAS": "0", "TF_CPU_ALLOCATOR_USE_BFC": "false"}
    sys.path.insert(0, str(checkout / "src"))
    # Keeps the checkout as it is.
    sys.dont_write_bytecode = True
    exceptions = ModuleType("botocore.exceptions")
    exceptions.ClientError = type("ClientError", (Exception,), {})
    sys.modules |= {
        "boto3": ModuleType("boto3"), "botocore": ModuleType("botocore"), "botocore.exceptions": exceptions,
    }  # fmt: skip


def read_config(checkout: Path, class_count: int) -> dict[str, object]:
    """Reads the program's template of an experiment; its empty `overrides` are not accepted by the program."""
    from mobilenetv2ssd.core.config import load_config

    configs = checkout / "configs"
    template = yaml.safe_load((configs / "experiments" / "_template.yaml").read_text())
    with tempfile.TemporaryDirectory() as folder:
        experiment = Path(folder) / "experiment.yaml"
        experiment.write_text(yaml.safe_dump(template | {"overrides": {}}))
        settings = ["train.amp.enabled=false", "train.amp.policy=float32", f"num_classes={class_count + 1}"]
        return load_config(experiment, configs, settings)


def train(replies: int, arrays: Path, checkout: Path) -> None:
    """Trains on the arrays of `write_arrays` on request."""
    prepare_imports(checkout)
    import tensorflow as tf
    from mobilenetv2ssd.models.factory import build_ssd_model
    from mobilenetv2ssd.models.mobilenet_v2.backbone import build_custom_mobilenetv2_backbone
    from mobilenetv2ssd.models.ssd import model as ssd_model
    from mobilenetv2ssd.models.ssd.orchestration.priors_orch import build_priors_from_config
    from training.amp import build_amp
    from training.ema import build_ema
    from training.engine import train_one_epoch
    from training.optimizer import OptimizerFactory
    from training.schedule import LearningRateSchedulerFactory

    data = np.load(arrays)
    config = read_config(checkout, int(data["labels"].max()))
    priors, facts = build_priors_from_config(config)
    optimizer = OptimizerFactory.build(config, LearningRateSchedulerFactory.build(config))
    amp = build_amp(config, optimizer)
    ssd_model.build_backbone = build_custom_mobilenetv2_backbone
    model = build_ssd_model(config, facts["anchors_per_cell"].numpy())
    ema = build_ema(config, model)
    optimizer.build(model.trainable_variables)

    padding = ((0, 0), (0, MAX_BOXES - data["labels"].shape[1]))
    labels = np.pad(data["labels"], padding)
    batch = {
        "image": tf.constant((data["pixels"] / 255 - MEAN) / DEVIATION, tf.float32),
        "boxes": tf.constant(np.pad(data["boxes"], (*padding, (0, 0)), constant_values=-1.0)),
        "labels": tf.constant(labels),
        "gt_mask": tf.constant(labels > 0),
    }
    parameters = sum(variable.shape.num_elements() for variable in model.trainable_variables)

    def batches() -> Iterator[dict[str, tf.Tensor]]:
        for steps in answer_requests(replies, parameters, len(priors)):
            for _ in range(steps):
                yield batch

    train_one_epoch(
        config, 0, model, batches(), optimizer, priors, amp.make_precision_config(), ema, amp, SilentLogger(),
        log_every=config["logging"]["log_every_steps"],
    )  # fmt: skip


if __name__ == "__main__":
    train(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
