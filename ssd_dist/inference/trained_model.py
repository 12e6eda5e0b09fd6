"""A trained model out of a run: the weights that are evaluated and shipped.

best            RUN/best, the averaged weights of the best step
last, or PATH   a training checkpoint, of which the EMA is taken if it has one
"""

from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf
import tf_keras

from ssd_dist.cluster.failures import explain_out_of_memory
from ssd_dist.cluster.strategy import WorkerRole, create_strategy
from ssd_dist.core.config import Config
from ssd_dist.core.errors import CheckpointError, DataError
from ssd_dist.core.manifest import Manifest
from ssd_dist.data.shard_files import load_manifest
from ssd_dist.evaluation.detections import Detections, GroundTruth
from ssd_dist.evaluation.evaluator import DetectorEvaluator, read_ground_truth
from ssd_dist.runs.checkpoints import latest_checkpoint, read_best, restore_checkpoint
from ssd_dist.runs.run_folder import read_run_folder
from ssd_dist.training.assembly import create_state
from ssd_dist.training.precision import AMPContext


def load_trained_model(model_dir: str, checkpoint: str, config: Config, class_count: int) -> tf_keras.Model:
    """The detector of a run with its deployable weights; call in strategy scope.

    Raises:
      CheckpointError: if there is no such checkpoint, or it is of another model.
    """
    AMPContext(config.amp).setup_policy()
    path = locate_checkpoint(model_dir, checkpoint)
    # Every weight comes from the checkpoint: the pretrained ones need not be at hand.
    backbone = config.backbone.model_copy(update={"weights": "none"})
    state = create_state(config.model_copy(update={"backbone": backbone}), class_count, total_steps=1)
    ema = state.ema if state.ema is not None and config.eval.use_ema and _has_ema(path) else None
    parts = {"model": state.model} if ema is None else {"model": state.model, "ema": ema}
    restore_checkpoint(tf.train.Checkpoint(**parts), path)
    if ema is not None:
        ema.assign_to_model()
    return state.model


def locate_checkpoint(model_dir: str, checkpoint: str) -> str:
    """The path of `best`, `last` or of a checkpoint given by its own path.

    Raises:
      CheckpointError: if it does not exist.
    """
    if checkpoint == "best":
        best = read_best(model_dir)
        if best is None:
            raise CheckpointError(f"{model_dir} has no best model yet; use --checkpoint=last, or train with evaluation")
        path = str(Path(model_dir) / "best" / best["checkpoint"])
    elif checkpoint == "last":
        found = latest_checkpoint(str(Path(model_dir) / "checkpoints"))
        if found is None:
            raise CheckpointError(f"{model_dir}/checkpoints holds no checkpoint; has the run saved one yet?")
        path = found
    else:
        path = checkpoint.removesuffix(".index")
    if not tf.io.gfile.exists(f"{path}.index"):
        raise CheckpointError(
            f"checkpoint {path} does not exist; --checkpoint takes best, last or a path ending in ckpt-N"
        )
    return path


@explain_out_of_memory()
def evaluate_split(
    model_dir: str, checkpoint: str, split: str, overrides: Sequence[str]
) -> tuple[Config, Manifest, list[GroundTruth], list[Detections]]:
    """Detections of a run's model on a split of its data, with the annotations they are to be judged by.

    Raises:
      CheckpointError, DataError, UsageError: for a run, data or overrides that do not fit.
    """
    config, trained_on = read_run_folder(model_dir, overrides)
    manifest = load_manifest(config.data)
    check_data_of_run(config, manifest, trained_on, model_dir)
    chosen = manifest.split(split, config.data.dir)
    cluster = config.cluster
    if cluster.strategy == "multi_worker":
        # That is how it was trained; one process can look at the result.
        cluster = cluster.model_copy(update={"strategy": "auto"})
    # Alone even where TF_CONFIG names peers: they do not evaluate with us.
    strategy = create_strategy(cluster, WorkerRole(0))
    with strategy.scope():
        model = load_trained_model(model_dir, checkpoint, config, len(manifest.classes))
    truths = read_ground_truth(config.data, chosen)
    evaluator = DetectorEvaluator(
        strategy,
        model,
        chosen,
        [truth.source_id for truth in truths],
        data=config.data,
        anchors=config.anchors,
        evaluation=config.eval,
        input_size=config.model.input_size,
    )
    evaluator.evaluate(tf.constant(evaluator.steps))
    return config, manifest, truths, evaluator.detections


def check_data_of_run(config: Config, manifest: Manifest, trained_on: Manifest, model_dir: str) -> None:
    """Refuses data that the run's model cannot look at; anchors and matching may be others.

    Raises:
      CheckpointError: if its classes are others.
      DataError: if its images have another size.
    """
    if manifest.classes != trained_on.classes:
        raise CheckpointError(
            f"{model_dir} was trained on classes {', '.join(trained_on.classes)}; {config.data.dir} has "
            f"{', '.join(manifest.classes)}; give its own data with --set data.dir=OUT"
        )
    if manifest.image_size != config.model.input_size:
        raise DataError(
            f"{config.data.dir} was prepared with image_size {manifest.image_size}, and the model of {model_dir} takes "
            f"{config.model.input_size}: prepare again into another --output with --config={model_dir}/config.yaml"
        )


def _has_ema(path: str) -> bool:
    try:
        return any(name.startswith("ema/") for name, _ in tf.train.list_variables(path))
    except (ValueError, tf.errors.OpError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from None
