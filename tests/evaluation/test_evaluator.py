"""The evaluator processes each image of a split once, in order, for any number of replicas and any padding."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from multihost.curve_worker import build_tiny_detector
from support.replicas import mirrored
from support.synthetic import CLASSES, write_dataset
from tensorflow.python.eager import context

from ssd_dist.core.config import Config
from ssd_dist.core.errors import DataError
from ssd_dist.data.shard_files import read_split
from ssd_dist.evaluation.detections import Detections
from ssd_dist.evaluation.evaluator import DetectorEvaluator, Interrupted
from ssd_dist.model.detector import normalize_image
from ssd_dist.model.postprocessing import create_anchor_tensor, detect

pytestmark = pytest.mark.usefixtures("four_cpus")

IMAGES = 11


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory):
    """Returns config, split and image ids of eleven images in three shards (4, 4 and 3 images)."""
    folder = tmp_path_factory.mktemp("data") / "out"
    config = Config.model_validate({"data": {"dir": str(folder)}, "model": {"input_size": 64}})
    split = write_dataset(folder, config, {"val": IMAGES}, shards=3, objects=2).splits["val"]
    return config, split, [record.source_id for record in read_split(config.data, split)]


def create_evaluator(
    data, strategy: tf.distribute.Strategy, batch_size: int, **options
) -> tuple[DetectorEvaluator, tf_keras.Model]:
    config, split, names = data
    config = config.model_copy(update={"eval": config.eval.model_copy(update={"batch_size": batch_size})})
    with strategy.scope():
        tf_keras.utils.set_random_seed(3)
        model = build_tiny_detector(config.model, config.backbone, config.anchors, len(CLASSES))
        # Larger weights keep the scores far enough apart that rounding does not change their order.
        for variable in model.trainable_variables:
            variable.assign(4 * variable)
    evaluator = DetectorEvaluator(
        strategy,
        model,
        split,
        names,
        data=config.data,
        anchors=config.anchors,
        evaluation=config.eval,
        input_size=config.model.input_size,
        **options,
    )
    return evaluator, model


def evaluate(
    data, strategy: tf.distribute.Strategy, batch_size: int, **options
) -> tuple[list[Detections], tf_keras.Model]:
    evaluator, model = create_evaluator(data, strategy, batch_size, **options)
    evaluator.evaluate(tf.constant(evaluator.steps))
    return evaluator.detections, model


@pytest.fixture(scope="module")
def single_image_detections(data) -> list[Detections]:
    """Returns the detections on each image, computed one image at a time."""
    _, model = evaluate(data, tf.distribute.OneDeviceStrategy("CPU:0"), IMAGES)
    config, split, _ = data
    found = []
    for record in read_split(config.data, split):
        pixels = tf.io.decode_jpeg(record.encoded, channels=3, dct_method="INTEGER_ACCURATE")[None]
        outputs = model(normalize_image(pixels), training=False)
        batch = detect(outputs, create_anchor_tensor(config.anchors, 64), config.anchors, config.eval)
        boxes, labels, scores = (part[0].numpy()[batch.scores[0].numpy() > 0] for part in batch)
        found.append(Detections(record.source_id, boxes, labels, scores))
    return found


@pytest.mark.parametrize(
    ("replicas", "batch_size"),
    [
        (1, 4),  # the last batch has one padding image
        (1, 16),  # the batch is larger than the split
        (2, 5),  # two images per replica
        (4, 2),  # the batch is smaller than the number of replicas: one image per replica
    ],
)
def test_replicas_give_the_detections_of_single_images(data, single_image_detections, replicas, batch_size):
    strategy = mirrored(replicas) if replicas > 1 else tf.distribute.OneDeviceStrategy("CPU:0")
    found, _ = evaluate(data, strategy, batch_size)
    assert [detected.source_id for detected in found] == data[2]
    assert sum(len(detected.scores) for detected in single_image_detections) > 10 * IMAGES
    for detected, expected in zip(found, single_image_detections, strict=True):
        np.testing.assert_array_equal(detected.labels, expected.labels)
        # The order of floating-point sums depends on the batch size.
        np.testing.assert_allclose(detected.scores, expected.scores, rtol=1e-4)
        np.testing.assert_allclose(detected.boxes, expected.boxes, atol=1e-5)


def test_detections_differ_between_images(single_image_detections):
    assert len({detected.scores.tobytes() for detected in single_image_detections}) == IMAGES


def test_evaluation_stops_on_a_stop_request(data):
    with pytest.raises(Interrupted):
        evaluate(data, tf.distribute.OneDeviceStrategy("CPU:0"), 4, interrupted=lambda: True)


def count_functions() -> int:
    """Returns the number of functions that TensorFlow holds."""
    return len(context.context().list_function_names())


@pytest.mark.parametrize("replicas", [1, 2])
def test_repeated_evaluations_are_equal_and_leave_nothing_in_memory(data, replicas):
    strategy = mirrored(replicas) if replicas > 1 else tf.distribute.OneDeviceStrategy("CPU:0")
    evaluator, _ = create_evaluator(data, strategy, 4)
    first, counts = [], []
    for _ in range(4):
        evaluator.evaluate(tf.constant(evaluator.steps))
        first = first or evaluator.detections
        assert [found.source_id for found in evaluator.detections] == data[2]
        for found, expected in zip(evaluator.detections, first, strict=True):
            np.testing.assert_array_equal(found.scores, expected.scores)
        counts.append(count_functions())
    assert counts[1] == counts[-1]


def test_an_evaluation_after_one_that_stopped_reads_all_images(data):
    stops = iter([False, True])
    evaluator, _ = create_evaluator(
        data, tf.distribute.OneDeviceStrategy("CPU:0"), 4, interrupted=lambda: next(stops, False)
    )
    with pytest.raises(Interrupted):
        evaluator.evaluate(tf.constant(evaluator.steps))
    evaluator.evaluate(tf.constant(evaluator.steps))
    assert [found.source_id for found in evaluator.detections] == data[2]


def test_incomplete_evaluation_raises_an_error(data):
    config, split, names = data
    with pytest.raises(DataError, match=f"read {IMAGES} of the split's {IMAGES + 1} images"):
        evaluate((config, split, [*names, "missing image"]), tf.distribute.OneDeviceStrategy("CPU:0"), 4)
