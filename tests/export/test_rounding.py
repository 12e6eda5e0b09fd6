"""The comparison of an export with its checkpoint excuses rounding, and nothing else.

The exports are Python functions that compute what an export computes: a conversion would take most of the time.
"""

import functools
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from support.random_detector import SETTINGS, fit_statistics, randomize_weights
from support.small_backbone import build_few_blocks
from support.synthetic import CLASSES
from tf_keras import layers

from ssd_dist.core.boxes import iou_matrix
from ssd_dist.core.config import Config
from ssd_dist.evaluation.detections import Detections
from ssd_dist.export import exporter, folding
from ssd_dist.export.export_options import ExportOptions
from ssd_dist.export.exporter import compare_with_checkpoint
from ssd_dist.export.folding import fold_batch_norm
from ssd_dist.export.parity import BOX_TOLERANCE
from ssd_dist.export.rounding import Tolerance, explain_by_rounding, list_candidates, measure_tolerance
from ssd_dist.export.serving import OutputDecoder
from ssd_dist.model import detector
from ssd_dist.model.detector import build_detector, normalize_image

CONFIG = Config.model_validate(SETTINGS)
DECODER = OutputDecoder.create(CONFIG.anchors, CONFIG.eval, 64)
NOISE = np.random.default_rng(3).integers(0, 256, [32, 64, 64, 3], np.uint8)
IMAGES = list(NOISE[:2])


@pytest.fixture(scope="module")
def model():
    """Returns a small detector whose outputs depend on the image."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector, "build_backbone", build_few_blocks)
        tf_keras.utils.set_random_seed(1)
        model = build_detector(CONFIG.model, CONFIG.backbone, CONFIG.anchors, len(CLASSES))
    randomize_weights(model)
    fit_statistics(model, NOISE)
    return model


@pytest.fixture(scope="module")
def tolerance(model):
    """Returns the rounding error of the model."""
    return measure_tolerance(model, IMAGES)


@pytest.fixture
def measured_once(tolerance, monkeypatch):
    """Measures the rounding error of the model once for all tests."""
    monkeypatch.setattr(exporter, "measure_tolerance", lambda *_: tolerance)


@pytest.fixture(autouse=True)
def eager_functions():
    """Runs every function once per image without compiling it, which would take most of the time."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def compare(model, network, postprocess, decoder=DECODER, normalize=normalize_image):
    """Compares the model with an export that computes `network`."""

    def run(images):
        outputs = network(normalize(tf.constant(images)), training=False)
        found = decoder.decode(outputs)._asdict() if postprocess else outputs
        return {name: value.numpy() for name, value in found.items()}

    names = [str(number) for number in range(len(IMAGES))]
    options = ExportOptions("tflite", "detections" if postprocess else "raw")
    return compare_with_checkpoint(model, DECODER, run, IMAGES, names, options).parity


def compare_both(model, network, **options):
    """Returns the parity of the exports without and with post-processing."""
    return [compare(model, network, postprocess, **options) for postprocess in (False, True)]


@pytest.mark.usefixtures("measured_once")
def test_a_folded_network_is_accepted(model):
    raw, detections = compare_both(model, fold_batch_norm(model))
    assert raw.holds
    assert detections.holds
    assert detections.detections > 100
    assert 0 < raw.raw_outputs["logits"].max_difference < raw.raw_outputs["logits"].tolerance


def test_an_export_with_nearly_equal_outputs_is_accepted(model):
    # After few training steps, the outputs hardly depend on the place, and rounding decides the order of candidates.
    heads = [layer for layer in model.layers if isinstance(layer, layers.Conv2D) and layer.use_bias]
    assert len(heads) == 12
    weights = [layer.get_weights() for layer in heads]
    for layer, (kernel, bias) in zip(heads, weights, strict=True):
        layer.set_weights([kernel * 1e-5, bias + np.linspace(-1, 1, len(bias))])

    def round_differently(pixels, training):
        # TFLite rounds about seven times as much as TensorFlow.
        outputs = model(pixels, training=training)
        noise = {name: tf.random.stateless_uniform(value.shape, [1, 2], -1, 1) for name, value in outputs.items()}
        return {name: value + 7 * 2.0**-24 * noise[name] for name, value in outputs.items()}

    raw, detections = compare_both(model, round_differently)
    for layer, values in zip(heads, weights, strict=True):
        layer.set_weights(values)
    assert raw.holds
    assert detections.holds
    assert detections.undecided > 0


@pytest.mark.usefixtures("measured_once")
def test_permuted_anchors_are_refused(model):
    rotated = OutputDecoder(np.roll(DECODER.anchors, 1, axis=0), CONFIG.anchors, CONFIG.eval)
    parity = compare(model, model, True, rotated)
    assert not parity.holds
    assert parity.missing > 0.9 * parity.detections


@pytest.mark.usefixtures("measured_once")
def test_permuted_raw_outputs_are_refused(model):
    parity = compare(
        model, lambda x, training: {k: tf.roll(v, 1, 1) for k, v in model(x, training=training).items()}, False
    )
    assert not any(output.holds for output in parity.raw_outputs.values())


@pytest.mark.usefixtures("measured_once")
def test_a_missing_fold_is_refused(model, monkeypatch):
    real, folded = folding._fold_weights, []

    def fold_all_but_the_last(layer, norm):
        folded.append(layer.name)
        weights = real(layer, norm)
        if layer.name != "box_5_depthwise":
            return weights
        return [layer.get_weights()[0], weights[1]]

    monkeypatch.setattr(folding, "_fold_weights", fold_all_but_the_last)
    broken = fold_batch_norm(model)
    assert "box_5_depthwise" in folded
    raw, detections = compare_both(model, broken)
    assert raw.raw_outputs["logits"].holds
    assert not raw.raw_outputs["offsets"].holds
    assert not raw.holds
    assert not detections.holds


@pytest.mark.usefixtures("measured_once")
def test_a_wrong_normalization_is_refused(model):
    # Divided by 128 where the network expects 127.5.
    raw, detections = compare_both(model, model, normalize=lambda x: tf.cast(x, tf.float32) / 128.0 - 1.0)
    assert not any(output.holds for output in raw.raw_outputs.values())
    assert not detections.holds


def test_the_tolerance_is_the_rounding_error_of_the_network(model, tolerance):
    outputs = model(normalize_image(np.stack(IMAGES)), training=False)
    for name in ("logits", "offsets"):
        # A float32 number has 24 significant bits, of which dozens of layers lose some. A wrong export differs by more.
        scale = np.abs(outputs[name]).max()
        assert 2**-24 * scale < getattr(tolerance, name) < 1e-3 * scale


def overlapping_anchors():
    """Returns two anchors with an IoU above `nms_iou`, and one that overlaps neither."""
    overlaps = iou_matrix(DECODER.anchors[20:200], DECODER.anchors[20:200]) - 2 * np.eye(180)
    first, second = 20 + np.array(np.unravel_index(overlaps.argmax(), overlaps.shape))
    others = iou_matrix(DECODER.anchors[[first, second]], DECODER.anchors).max(axis=0)
    return int(first), int(second), int(np.flatnonzero(others == 0)[0])


@functools.cache
def tied_candidates(gap: float, tolerance: float):
    """Returns the candidates of three anchors, of which the second scores `gap` less than the first."""
    first, second, apart = overlapping_anchors()
    logits = np.zeros((1, len(DECODER.anchors), 4), np.float32)
    logits[..., 0] = 8
    logits[0, [first, second, apart], 1] = 8, 8 - gap, 9
    return list_candidates(
        {"logits": tf.constant(logits), "offsets": tf.zeros([1, len(DECODER.anchors), 4])},
        DECODER, Tolerance(tolerance, tolerance),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("outputs", "odds", "gap", "excused"),
    [
        # 1 / (1 + exp(-14.6)) and 1 / (1 + exp(-14.5)) are equal in float32.
        ("postprocess_op", 14.6, 0.1, True),
        ("detection_output", 14.6, 0.1, True),
        ("detections", 14.6, 0.1, False),
        # All scores above 17 are 1 in float32, those of 12 are not.
        ("postprocess_op", 20.0, 3.0, True),
        ("postprocess_op", 20.0, 8.0, False),
        ("postprocess_op", 20.0, 22.0, False),
        ("postprocess_op", 5.0, 0.1, False),
        ("postprocess_op", -1.0, 0.1, False),
        # The log odds of scores that are 1 in float64 are infinite.
        ("postprocess_op", 50.0, 0.0, True),
        ("postprocess_op", 50.0, 5.0, True),
        ("postprocess_op", 50.0, 45.0, False),
    ],
)
def test_an_export_that_ranks_by_score_may_exchange_boxes_whose_scores_are_nearly_equal(outputs, odds, gap, excused):
    first, second, apart = overlapping_anchors()
    logits = np.full((1, len(DECODER.anchors), 4), -60.0, np.float32)
    logits[..., 0] = 0
    logits[0, [first, second, apart], 1] = odds, odds - gap, 9
    raw = {"logits": tf.constant(logits), "offsets": tf.zeros([1, len(DECODER.anchors), 4])}
    candidates = list_candidates(raw, DECODER, Tolerance(1e-5, 1e-5), outputs)
    lost, added = detections_at(candidates, first), detections_at(candidates, second)
    found = detections_at(candidates, apart, second)
    is_lost, is_added = explain_by_rounding(lost, added, found, candidates, DECODER)
    assert (is_lost.tolist(), is_added.tolist()) == ([excused], [True])


def detections_at(candidates, *anchors):
    rows = np.array(anchors, np.int64) * 3
    scores = np.float32(1 / (1 + np.exp(-candidates.log_odds[rows])))
    return Detections("a", candidates.boxes[rows], candidates.labels[rows], scores)


@pytest.mark.parametrize(
    ("gap", "tolerance", "excused"),
    [
        (1e-5, 1e-5, True),
        (1e-5, 1e-7, False),
        (0.1, 1e-5, False),
    ],
)
def test_either_of_two_tied_boxes_may_be_kept(gap, tolerance, excused):
    candidates = tied_candidates(gap, tolerance)
    first, second, apart = overlapping_anchors()
    lost, added = detections_at(candidates, first), detections_at(candidates, second)
    found = detections_at(candidates, apart, second)
    is_lost, is_added = explain_by_rounding(lost, added, found, candidates, DECODER)
    # The second box is a valid detection of an export that lacks the first; the loss of the first is not valid.
    assert (is_lost.tolist(), is_added.tolist()) == ([excused], [True])


def test_rounding_explains_neither_a_detection_without_rival_nor_a_double_one():
    candidates = tied_candidates(1e-5, 1e-5)
    first, second, apart = overlapping_anchors()
    nothing = detections_at(candidates)
    lost, _ = explain_by_rounding(
        detections_at(candidates, first, apart), nothing, detections_at(candidates, second), candidates, DECODER
    )
    assert lost.tolist() == [True, False]
    both = detections_at(candidates, apart, first, second)
    assert not explain_by_rounding(nothing, detections_at(candidates, second), both, candidates, DECODER)[1].any()
    moved = detections_at(candidates, second)
    moved = Detections("a", moved.boxes + 2 * np.float32(BOX_TOLERANCE), moved.labels, moved.scores)
    assert not explain_by_rounding(nothing, moved, moved, candidates, DECODER)[1].any()


def test_a_full_list_may_end_with_another_of_the_tied_detections():
    config = CONFIG.eval.model_copy(update={"max_detections": 1})
    decoder = OutputDecoder.create(CONFIG.anchors, config, 64)
    first, _, apart = overlapping_anchors()
    for gap, excused, by_score in ((0.0, True, False), (0.1, False, False), (0.0, True, True), (12.0, False, True)):
        candidates = replace(tied_candidates(0.0, 1e-5), ranks_by_score=by_score)
        candidates.log_odds[apart * 3] = candidates.log_odds[first * 3] + gap
        lost, found = detections_at(candidates, apart), detections_at(candidates, first)
        is_lost, is_added = explain_by_rounding(lost, found, found, candidates, decoder)
        assert (is_lost.tolist(), is_added.tolist()) == ([excused], [True])
