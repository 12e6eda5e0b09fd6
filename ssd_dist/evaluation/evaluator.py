"""Running the detector over a split, every image exactly once, on any number of replicas and workers.

each worker its shards -> forward -> suppression -> gather over all replicas -> `Detections` in the split's order
"""

from collections.abc import Callable

import orbit
import tensorflow as tf
import tf_keras

from ssd_dist.core.config import Config
from ssd_dist.core.errors import DataError
from ssd_dist.core.manifest import Split
from ssd_dist.data.batch import EvalBatch
from ssd_dist.data.pipeline import count_eval_steps, eval_batches
from ssd_dist.data.shard_files import read_split
from ssd_dist.evaluation.detections import Detections, GroundTruth
from ssd_dist.model.detector import normalize_image
from ssd_dist.model.postprocessing import DetectionBatch, anchor_tensor, detect


class Interrupted(Exception):  # noqa: N818  (no error: the run is asked to stop)
    """The evaluation was given up because the run is to stop."""


def read_ground_truth(config: Config, split: Split) -> list[GroundTruth]:
    """The annotations of a split in the order of its records, sizes in pixels of the original images."""
    return [
        GroundTruth(record.source_id, record.original_height, record.original_width, record.objects)
        for record in read_split(config.data, split)
    ]


class DetectorEvaluator(orbit.StandardEvaluator):
    """Detects over one split; after `evaluate(steps)` they are in `detections`, in the split's order."""

    def __init__(
        self,
        config: Config,
        strategy: tf.distribute.Strategy,
        model: tf_keras.Model,
        split: Split,
        source_ids: list[str],
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        workers = strategy.extended._num_workers if hasattr(strategy.extended, "_num_workers") else 1
        replicas = strategy.num_replicas_in_sync
        batch_size = max(config.eval.batch_size // replicas, 1)
        worker_batch = batch_size * replicas // workers
        self.steps = count_eval_steps(split, worker_batch, workers)
        self._strategy = strategy
        self._model = model
        self._config = config
        self._anchors = anchor_tensor(config)
        self._source_ids = source_ids
        self._interrupted = interrupted
        self.detections: list[Detections] = []

        def make_dataset(context: tf.distribute.InputContext) -> tf.data.Dataset:
            return eval_batches(
                config,
                split,
                batch_size,
                self.steps * worker_batch,
                context.input_pipeline_id,
                context.num_input_pipelines,
            )

        super().__init__(strategy.distribute_datasets_from_function(make_dataset))

    def eval_begin(self) -> dict[int, Detections]:
        """An empty collection, by index of the record."""
        return {}

    def eval_step(self, iterator: tf.distribute.DistributedIterator) -> tuple[tf.Tensor, DetectionBatch]:
        """Indices and detections of one batch, gathered over all replicas of all workers."""
        outputs = self._strategy.run(self._detect_replica, args=(next(iterator),))
        return tf.nest.map_structure(lambda value: self._strategy.gather(value, axis=0), outputs)

    def eval_reduce(
        self, state: dict[int, Detections], step_outputs: tuple[tf.Tensor, DetectionBatch]
    ) -> dict[int, Detections]:
        """Adds the real images of a batch; padding has index -1.

        Raises:
          Interrupted: if `interrupted()` says so.
        """
        if self._interrupted():
            raise Interrupted
        indices, batch = tf.nest.map_structure(lambda value: value.numpy(), step_outputs)
        for row, index in enumerate(indices.tolist()):
            if index >= 0:
                count = int((batch.scores[row] > 0).sum())
                state[index] = Detections(
                    self._source_ids[index],
                    batch.boxes[row, :count],
                    batch.labels[row, :count].astype("int64"),
                    batch.scores[row, :count],
                )
        return state

    def eval_end(self, state: dict[int, Detections]) -> None:
        """Checks that every image was seen and puts the detections in order.

        Raises:
          DataError: if an image of the split was not seen.
        """
        if len(state) != len(self._source_ids):
            raise DataError(
                f"evaluation saw {len(state)} of {len(self._source_ids)} images: the shards do not fit dataset.json"
            )
        self.detections = [state[index] for index in sorted(state)]

    def _detect_replica(self, batch: EvalBatch) -> tuple[tf.Tensor, DetectionBatch]:
        outputs = self._model(normalize_image(batch.images), training=False)
        return batch.indices, detect(outputs, self._anchors, self._config.anchors, self._config.eval)
