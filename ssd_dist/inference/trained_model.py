"""Loads the trained model of a run with the weights that are evaluated and exported.

best            the weights in RUN/best, as evaluated at the best step
last, or PATH   a training checkpoint; its EMA weights are used if it has them and `eval.use_ema` is true
"""

from collections.abc import Sequence

import tensorflow as tf
import tf_keras

from ssd_dist.cluster.failures import explain_out_of_memory
from ssd_dist.cluster.strategy import WorkerRole, create_strategy
from ssd_dist.core.config import Config
from ssd_dist.core.errors import CheckpointError, DataError
from ssd_dist.core.manifest import Manifest
from ssd_dist.core.stage_line import SILENT, StageLine
from ssd_dist.data.shard_files import load_manifest
from ssd_dist.evaluation.detections import Detections, GroundTruth
from ssd_dist.evaluation.evaluator import DetectorEvaluator, read_ground_truth
from ssd_dist.runs.checkpoints import locate_checkpoint
from ssd_dist.runs.run_folder import read_run_folder
from ssd_dist.training.precision import AMPContext
from ssd_dist.training.trained_weights import build_trained_detector


def load_trained_model(model_dir: str, checkpoint: str, config: Config, class_count: int) -> tf_keras.Model:
    """Loads the detector of a run; call in strategy scope.

    Args:
      model_dir: the run folder.
      checkpoint: "best", "last" or the path of a checkpoint.
      config: the config of the run.
      class_count: number of classes without background.

    Raises:
      CheckpointError: if the checkpoint does not exist or belongs to a different model.
    """
    AMPContext(config.amp).setup_policy()
    path = locate_checkpoint(model_dir, checkpoint)
    return build_trained_detector(config, class_count, path)


@explain_out_of_memory()
def evaluate_split(
    model_dir: str, checkpoint: str, split: str, overrides: Sequence[str], stages: StageLine = SILENT
) -> tuple[Config, Manifest, list[GroundTruth], list[Detections]]:
    """Detects objects in a split of a run's data with the model of the run.

    Args:
      model_dir: the run folder.
      checkpoint: "best", "last" or the path of a checkpoint.
      split: name of the split.
      overrides: config keys to change, as `a.b=c`.
      stages: shows the progress.

    Returns:
      The config of the run, the manifest of the data, and the ground truth and detections of all images of the split.

    Raises:
      CheckpointError: if the checkpoint does not exist, or its classes differ from the data's.
      DataError: if the data is missing, has no such split, or its image size differs from the model's.
      UsageError: if an override is not valid.
    """
    stages.show("load the checkpoint")
    config, trained_on = read_run_folder(model_dir, overrides)
    manifest = load_manifest(config.data)
    check_data_fits_model(manifest, trained_on, config.data.dir, config.model.input_size, model_dir)
    chosen = manifest.split(split, config.data.dir)
    # One process evaluates the run, on a host that may have other devices than those that trained it.
    cluster = config.cluster
    if cluster.strategy == "multi_worker":
        cluster = cluster.model_copy(update={"strategy": "auto"})
    if cluster.strategy == "one_device" or tf.config.list_physical_devices("GPU"):
        cluster = cluster.model_copy(update={"logical_cpus": 0})
    # One worker, even if TF_CONFIG lists several: the other workers do not take part in this evaluation.
    strategy = create_strategy(cluster, WorkerRole(0))
    with strategy.scope():
        model = load_trained_model(model_dir, checkpoint, config, len(manifest.classes))
    ground_truth = read_ground_truth(config.data, chosen)
    evaluator = DetectorEvaluator(
        strategy,
        model,
        chosen,
        [image.source_id for image in ground_truth],
        data=config.data,
        anchors=config.anchors,
        evaluation=config.eval,
        input_size=config.model.input_size,
        after_batch=stages.advance,
    )
    stages.show(f"evaluate split {split}, batches", evaluator.steps)
    evaluator.evaluate(tf.constant(evaluator.steps))
    return config, manifest, ground_truth, evaluator.detections


def check_data_fits_model(
    manifest: Manifest, trained_on: Manifest, data_dir: str, input_size: int, model_dir: str
) -> None:
    """Checks that data has the classes and the image size of a run's model; anchors and matching may differ.

    Args:
      manifest: the manifest of the data.
      trained_on: the manifest that the run was trained with.
      data_dir: the folder of the data, for the message.
      input_size: input size of the model, in pixels.
      model_dir: the run folder, for the message.

    Raises:
      CheckpointError: if the classes differ.
      DataError: if the image size differs.
    """
    if manifest.classes != trained_on.classes:
        raise CheckpointError(
            f"{model_dir} was trained on classes {', '.join(trained_on.classes)}; {data_dir} has "
            f"{', '.join(manifest.classes)}; use data with the classes of the run: --set data.dir=OUT"
        )
    if manifest.image_size != input_size:
        raise DataError(
            f"{data_dir} was prepared with image_size {manifest.image_size}, but the model of {model_dir} takes "
            f"{input_size}; prepare again into another --output with --config={model_dir}/config.yaml"
        )
