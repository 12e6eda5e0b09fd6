"""Runs the detector on every image of a split exactly once, on any number of replicas and workers.

shards of each worker -> forward pass -> NMS -> gather over all replicas -> `Detections` in the order of the split
"""

from collections.abc import Callable

import orbit
import tensorflow as tf
import tf_keras

from ssd_dist.cluster.strategy import count_workers
from ssd_dist.core.config import AnchorConfig, DataConfig, EvalConfig
from ssd_dist.core.errors import DataError
from ssd_dist.core.manifest import Split
from ssd_dist.data.batch import EvalBatch
from ssd_dist.data.pipeline import count_eval_steps, eval_batches
from ssd_dist.data.shard_files import read_split
from ssd_dist.data.shard_guard import ShardGuard
from ssd_dist.evaluation.detections import Detections, GroundTruth, remove_padding
from ssd_dist.model.detector import normalize_image
from ssd_dist.model.postprocessing import DetectionBatch, create_anchor_tensor, detect


class Interrupted(Exception):  # noqa: N818  (not an error: the run received a stop request)
    """Raised when an evaluation ends early because the run received a stop request."""


def read_ground_truth(config: DataConfig, split: Split) -> list[GroundTruth]:
    """Reads the annotations of a split in the order of its records, with sizes in pixels of the original images."""
    return [GroundTruth.from_record(record) for record in read_split(config, split)]


class DetectorEvaluator(orbit.StandardEvaluator):
    """Detects objects in all images of one split.

    `evaluate(tf.constant(evaluator.steps))` runs the detector and fills `detections`, in the order of the split.

    Args:
      strategy: the distribution strategy that the model was built in.
      model: the detector.
      split: the split of the prepared dataset.
      source_ids: the id of each image, in the order of the split.
      data: where and how to read the dataset.
      anchors: the anchors of the model.
      evaluation: batch size (over all replicas) and the settings of NMS.
      input_size: side of the model's input in pixels.
      interrupted: called once per batch on every worker; if it returns true, the evaluation raises `Interrupted`.
      after_batch: called after each batch on every worker, to show progress.
      guard: checks the shards of the split at each opening; None to read without checks.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        model: tf_keras.Model,
        split: Split,
        source_ids: list[str],
        *,
        data: DataConfig,
        anchors: AnchorConfig,
        evaluation: EvalConfig,
        input_size: int,
        interrupted: Callable[[], bool] = lambda: False,
        after_batch: Callable[[], None] = lambda: None,
        guard: ShardGuard | None = None,
    ) -> None:
        workers = count_workers(strategy)
        replicas = strategy.num_replicas_in_sync
        batch_size = max(evaluation.batch_size // replicas, 1)
        worker_batch = batch_size * replicas // workers
        self.steps = count_eval_steps(split, worker_batch, workers)
        self._strategy = strategy
        self._model = model
        self._anchor_config = anchors
        self._eval_config = evaluation
        self._anchors = create_anchor_tensor(anchors, input_size)
        self._source_ids = source_ids
        self._interrupted = interrupted
        self._after_batch = after_batch
        self.detections: list[Detections] = []

        def make_dataset(context: tf.distribute.InputContext) -> tf.data.Dataset:
            return eval_batches(
                data,
                input_size,
                split,
                batch_size,
                self.steps * worker_batch,
                context.input_pipeline_id,
                context.num_input_pipelines,
                guard,
            )

        # TensorFlow never frees the functions of a distributed iterator, so all evaluations share one. Any `steps`
        # batches in a row contain all images, also after an evaluation that stopped.
        options = orbit.StandardEvaluatorOptions(recreate_iterator_for_each_eval=False)
        super().__init__(strategy.distribute_datasets_from_function(make_dataset), options)

    def eval_begin(self) -> dict[int, Detections]:
        """Returns an empty mapping from record index to detections."""
        return {}

    def eval_step(self, iterator: tf.distribute.DistributedIterator) -> tuple[tf.Tensor, DetectionBatch]:
        """Returns record indices and detections of one batch, gathered over all replicas of all workers."""
        outputs = self._strategy.run(self._detect_replica, args=(next(iterator),))
        return tf.nest.map_structure(lambda value: self._strategy.gather(value, axis=0), outputs)

    def eval_reduce(
        self, state: dict[int, Detections], step_outputs: tuple[tf.Tensor, DetectionBatch]
    ) -> dict[int, Detections]:
        """Adds the detections of a batch; padding images have index -1 and are skipped.

        Raises:
          Interrupted: if `interrupted()` returns true.
        """
        if self._interrupted():
            raise Interrupted
        indices, batch = tf.nest.map_structure(lambda value: value.numpy(), step_outputs)
        for row, index in enumerate(indices.tolist()):
            if index >= 0:
                state[index] = remove_padding(self._source_ids[index], *(part[row] for part in batch))
        self._after_batch()
        return state

    def eval_end(self, state: dict[int, Detections]) -> None:
        """Checks that every image was evaluated, and sorts the detections by record index.

        Raises:
          DataError: if an image of the split was not evaluated.
        """
        if len(state) != len(self._source_ids):
            raise DataError(
                f"evaluation: read {len(state)} of the split's {len(self._source_ids)} images, so the shards do "
                "not match dataset.json; prepare the data again"
            )
        self.detections = [state[index] for index in sorted(state)]

    def _detect_replica(self, batch: EvalBatch) -> tuple[tf.Tensor, DetectionBatch]:
        outputs = self._model(normalize_image(batch.images), training=False)
        return batch.indices, detect(outputs, self._anchors, self._anchor_config, self._eval_config)
