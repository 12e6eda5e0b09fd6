"""Box decoding and NMS compared with references written as plain loops."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from support.box_strategies import random_boxes
from support.reference_boxes import iou_reference
from support.reference_detection import detect_reference, nms_reference

from ssd_dist.core.boxes import decode_boxes, encode_boxes
from ssd_dist.core.config import AnchorConfig, EvalConfig
from ssd_dist.model.postprocessing import CANDIDATES, decode_offsets, detect, non_max_suppression, separate_classes

ANCHORS = AnchorConfig()
# For IoUs closer to the threshold than this, float32 and float64 may decide differently.
MARGIN = 1e-3


def draw_clusters(rng: np.random.Generator, count: int, classes: int, threshold: float):
    """Draws overlapping boxes [N, 4], labels and descending scores, without IoUs near the threshold within a class."""
    while True:
        centers = random_boxes(rng, max(count // 5, 1), smallest=0.1, largest=0.5)
        boxes = centers[rng.integers(0, len(centers), count)] + rng.normal(0, 0.03, (count, 4)).astype(np.float32)
        boxes = np.clip(np.concatenate([boxes[:, :2], np.maximum(boxes[:, 2:], boxes[:, :2] + 0.02)], 1), 0, 1)
        labels = rng.integers(1, classes + 1, count).astype(np.int32)
        scores = np.sort(rng.uniform(0, 1, count))[::-1].astype(np.float32)
        near = [
            abs(iou_reference(boxes[i], boxes[j]) - threshold) < MARGIN
            for i in range(count)
            for j in range(i)
            if labels[i] == labels[j]
        ]
        if not any(near):
            return boxes.astype(np.float32), labels, scores


def run_nms(boxes, labels, scores, config: EvalConfig):
    batch = non_max_suppression(tf.constant(boxes[None]), tf.constant(labels[None]), tf.constant(scores[None]), config)
    return tuple(part[0].numpy() for part in batch)


@pytest.mark.parametrize("classes", [1, 3, 80])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.75])
@pytest.mark.parametrize(
    ("count", "score_threshold", "max_detections"), [(40, 0.01, 100), (40, 0.4, 100), (60, 0.0, 5)]
)
def test_nms_equals_the_reference(classes, threshold, count, score_threshold, max_detections):
    rng = np.random.default_rng(count + classes)
    config = EvalConfig(nms_iou=threshold, score_threshold=score_threshold, max_detections=max_detections)
    boxes, labels, scores = draw_clusters(rng, count, classes, threshold)
    kept = nms_reference(boxes, labels, scores, threshold, score_threshold, max_detections)
    found = run_nms(boxes, labels, scores, config)
    for part, expected in zip(found, (boxes[kept], labels[kept], scores[kept]), strict=True):
        assert len(part) == max_detections
        np.testing.assert_array_equal(part[: len(kept)], expected)
        assert not part[len(kept) :].any()


@pytest.mark.parametrize("label", [1, 80, 600, 4095])
def test_nms_of_small_boxes_is_the_same_in_every_class(label):
    # Boxes of 6 pixels in 300, with IoUs on both sides of 0.5: the precision must not depend on the label.
    # Coordinates in 1..2 are rounded by at most 6e-8, which is 3e-6 of the side; an IoU depends on four of them.
    side = 0.02
    for iou, kept in ((0.5 - 2e-5, 2), (0.5 + 2e-5, 1)):
        shift = side * (1 - iou) / (1 + iou)
        boxes = np.array([[0.9, 0.9, 0.92, 0.92], [0.9, 0.9 + shift, 0.92, 0.92 + shift]], np.float32)
        assert (iou_reference(*boxes) > 0.5) == (kept == 1)
        _, labels, _ = run_nms(
            boxes, np.full(2, label, np.int32), np.array([0.9, 0.8], np.float32), EvalConfig(nms_iou=0.5)
        )
        assert (labels > 0).sum() == kept, iou


def test_separated_boxes_of_different_classes_do_not_overlap():
    # Boxes that fill the image, one for each of the 4,096 possible labels, are moved to separate regions.
    labels = tf.range(4096)
    y, x = labels // 64, labels % 64
    regions = separate_classes(tf.tile([[0.0, 0.0, 1.0, 1.0]], [4096, 1]), labels).numpy().astype(np.float64)
    assert np.isfinite(np.prod(regions[:, 2:] - regions[:, :2], axis=1, dtype=np.float32)).all()
    for low, cell in ((regions[:, :2], 0), (regions[:, 2:], 1)):
        np.testing.assert_array_equal(np.log2(low), np.stack([y, x], 1) + cell)


def test_boxes_outside_the_image_are_dropped():
    # Two of the boxes have no area after clipping. They overlap with no other box, so NMS alone would keep them.
    boxes = np.array([[0.2, 1.0, 0.4, 1.0], [0.1, 0.1, 0.3, 0.3], [0.0, 0.5, 0.0, 0.6]], np.float32)
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    _, _, kept = run_nms(boxes, np.ones(3, np.int32), scores, EvalConfig(max_detections=3))
    assert kept.tolist() == [scores[1], 0, 0]


def test_equal_scores_keep_their_order():
    boxes = np.tile(np.array([[0.1, 0.1, 0.3, 0.3]], np.float32), (3, 1))
    labels = np.array([2, 1, 2], np.int32)
    _, kept, _ = run_nms(boxes, labels, np.full(3, 0.5, np.float32), EvalConfig(max_detections=4))
    assert kept.tolist() == [2, 1, 0, 0]


def test_scores_below_the_threshold_give_no_detections():
    boxes = np.array([[0.1, 0.1, 0.3, 0.3]], np.float32)
    found = run_nms(boxes, np.array([1], np.int32), np.array([0.3], np.float32), EvalConfig(score_threshold=0.4))
    assert not any(part.any() for part in found)


def draw_outputs(seed: int, images: int, anchors: int, classes: int):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(0, 2, (images, anchors, classes + 1)).astype(np.float32),
        rng.normal(0, 1, (images, anchors, 4)).astype(np.float32),
        random_boxes(rng, anchors, smallest=0.1, largest=0.6),
    )


# The second case has more (anchor, class) pairs than NMS accepts as candidates.
@pytest.mark.parametrize(("anchors", "classes"), [(40, 3), (400, 4)])
@pytest.mark.parametrize("seed", range(3))
def test_detection_equals_the_reference(anchors, classes, seed):
    logits, offsets, boxes = draw_outputs(seed, 2, anchors, classes)
    config = EvalConfig(score_threshold=0.05, nms_iou=0.5, max_detections=1000)
    found = detect(
        {"logits": tf.constant(logits), "offsets": tf.constant(offsets)}, tf.constant(boxes), ANCHORS, config
    )
    assert (anchors * classes > CANDIDATES) == (anchors == 400)
    for image in range(2):
        expected = detect_reference(logits[image], offsets[image], boxes, 0.5, 0.05, 1000, CANDIDATES)
        count = int((found.scores[image].numpy() > 0).sum())
        assert count == len(expected)
        labels, scores, corners = zip(*expected, strict=True)
        np.testing.assert_array_equal(found.labels[image, :count], labels)
        np.testing.assert_allclose(found.scores[image, :count], scores, rtol=1e-5)
        np.testing.assert_allclose(found.boxes[image, :count], corners, atol=1e-5)


def test_confident_detections_are_sorted_by_their_odds():
    # Odds of e^10 to e^30: most of these probabilities round to 1 in float32, but differ in float64.
    rng = np.random.default_rng(11)
    logits, offsets, anchors = draw_outputs(11, 1, 60, 3)
    logits[0, np.arange(60), rng.integers(1, 4, 60)] += rng.uniform(14, 26, 60).astype(np.float32)
    found = detect(
        {"logits": tf.constant(logits), "offsets": tf.constant(offsets)}, tf.constant(anchors), ANCHORS, EvalConfig()
    )
    assert (found.scores == 1).numpy().sum() > 10
    expected = detect_reference(logits[0], offsets[0], anchors, 0.5, 0.01, 100, CANDIDATES)
    assert [label for label, _, _ in expected] == [label for label in found.labels[0].numpy() if label]
    np.testing.assert_allclose(found.boxes[0, : len(expected)], [box for _, _, box in expected], atol=1e-5)


def test_properties_of_detections():
    logits, offsets, anchors = draw_outputs(9, 3, 200, 5)
    config = EvalConfig(score_threshold=0.02, max_detections=50)
    outputs = {"logits": tf.constant(logits), "offsets": tf.constant(3 * offsets)}
    boxes, labels, scores = (part.numpy() for part in detect(outputs, tf.constant(anchors), ANCHORS, config))
    assert boxes.shape == (3, 50, 4)
    assert ((boxes >= 0) & (boxes <= 1)).all()
    assert (np.diff(scores, axis=1) <= 0).all()
    assert (labels[scores > 0] >= 1).all()
    assert (labels <= 5).all()
    assert (scores[scores > 0] > 0.02).all()
    for image in range(3):
        alone = detect({k: v[image : image + 1] for k, v in outputs.items()}, tf.constant(anchors), ANCHORS, config)
        for part, whole in zip(alone, (boxes, labels, scores), strict=True):
            np.testing.assert_array_equal(part[0], whole[image])


def test_encoded_objects_are_decoded_to_themselves():
    # The decoder must invert the encoding of the targets: one confident anchor for each of three objects.
    rng = np.random.default_rng(10)
    objects, anchors = random_boxes(rng, 3, smallest=0.2), random_boxes(rng, 30, smallest=0.2)
    chosen = [4, 11, 25]
    offsets = np.zeros((1, 30, 4), np.float32)
    offsets[0, chosen] = encode_boxes(objects, anchors[chosen], 0.1, 0.2)
    logits = np.zeros((1, 30, 4), np.float32)
    logits[..., 0] = 20
    logits[0, chosen, [2, 1, 3]] = [25, 24, 23]
    found = detect(
        {"logits": tf.constant(logits), "offsets": tf.constant(offsets)}, tf.constant(anchors), ANCHORS, EvalConfig()
    )
    np.testing.assert_array_equal(found.labels[0, :4], [2, 1, 3, 0])
    np.testing.assert_allclose(found.boxes[0, :3], objects, atol=1e-5)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_decoding_equals_the_numpy_version(seed):
    rng = np.random.default_rng(seed)
    anchors = random_boxes(rng, 6, smallest=0.05)
    offsets = rng.normal(0, 3, (6, 4)).astype(np.float32)
    decoded = decode_offsets(tf.constant(offsets), tf.constant(anchors), ANCHORS)
    np.testing.assert_allclose(decoded, decode_boxes(offsets, anchors, 0.1, 0.2), rtol=1e-5, atol=1e-5)


def test_decoding_extreme_offsets_is_finite():
    anchors = random_boxes(np.random.default_rng(0), 4)
    offsets = tf.constant([[0, 0, 1e4, -1e4], [1e6, -1e6, 0, 0], [0, 0, 3e38, 3e38], [0, 0, -3e38, -3e38]], tf.float32)
    assert np.isfinite(decode_offsets(offsets, tf.constant(anchors), ANCHORS)).all()


# Number of candidates of the converted NMS.
CONVERTED = 40


@pytest.fixture(scope="module", params=["tensorflow", "tflite", "onnx"])
def converted_nms(request):
    """Returns NMS of one image with an IoU threshold of 0.5 in a runtime, as a function to the outputs by name."""
    specs = [
        tf.TensorSpec([1, CONVERTED, 4], tf.float32, "given_boxes"),
        tf.TensorSpec([1, CONVERTED], tf.int32, "given_labels"),
        tf.TensorSpec([1, CONVERTED], tf.float32, "given_scores"),
    ]
    module = tf.Module()
    module.run = tf.function(
        lambda *parts: non_max_suppression(*parts, EvalConfig(nms_iou=0.5))._asdict(), input_signature=specs
    )
    if request.param == "tensorflow":
        return lambda *parts: module.run(*(part[None] for part in parts))

    def name_inputs(parts):
        return {spec.name: part[None] for spec, part in zip(specs, parts, strict=True)}

    if request.param == "tflite":
        converter = tf.lite.TFLiteConverter.from_concrete_functions([module.run.get_concrete_function()], module)
        run = tf.lite.Interpreter(model_content=converter.convert()).get_signature_runner()
        return lambda *parts: run(**name_inputs(parts))
    tf2onnx, onnxruntime = pytest.importorskip("tf2onnx"), pytest.importorskip("onnxruntime")
    model, _ = tf2onnx.convert.from_function(module.run, specs, opset=17)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda *parts: dict(zip(names, session.run(names, name_inputs(parts)), strict=True))


def test_nms_with_equal_scores_is_the_same_in_every_runtime(converted_nms):
    # Each runtime breaks ties differently, so NMS must receive distinct ranks.
    boxes, labels, _ = draw_clusters(np.random.default_rng(12), CONVERTED, 3, 0.5)
    scores = np.repeat(np.array([1.0, 0.9, 0.8, 0.005], np.float32), 10)
    found = converted_nms(boxes, labels, scores)
    kept = nms_reference(boxes, labels, scores, 0.5, 0.01, 100)
    assert 5 < len(kept) < 30
    for name, expected in (("boxes", boxes[kept]), ("labels", labels[kept]), ("scores", scores[kept])):
        np.testing.assert_array_equal(np.asarray(found[name])[0, : len(kept)], expected)
        assert not np.asarray(found[name])[0, len(kept) :].any()


def draw_boxes_at_the_threshold(part: int, whole: int):
    """Returns boxes [8, 4], labels and descending scores of 4 pairs with an IoU of exactly `part` / `whole`.

    The pairs are of different classes. In two pairs one box contains the other, in the others equal boxes overlap.
    Coordinates are multiples of 1 / 128, so float32 holds them and their areas exactly.
    """
    # Equal sides s with an overlap of o: o / (2 s - o) = part / whole.
    overlap, side = 2 * part, part + whole
    shift = side - overlap
    pairs = [
        ([0, 0, 8, whole], [0, 0, 8, part]),
        ([8, 8, 8 + part, 24], [8, 8, 8 + whole, 24]),
        ([0, 0, 16, side], [0, shift, 16, shift + side]),
        ([64, 0, 64 + side, 64], [64 + shift, 0, 64 + shift + side, 64]),
    ]
    boxes = np.array([box for pair in pairs for box in pair], np.float32) / 128
    return boxes, np.repeat(np.array([1, 2, 80, 4000], np.int32), 2), np.linspace(0.9, 0.2, 8, dtype=np.float32)


# Fractions that float32 rounds down, rounds up, and holds exactly.
@pytest.mark.parametrize(("part", "whole"), [(7, 10), (3, 5), (6, 8)])
def test_a_box_whose_iou_equals_the_threshold_is_kept(part, whole):
    boxes, labels, scores = draw_boxes_at_the_threshold(part, whole)
    threshold = np.float32(part / whole)
    _, _, kept = run_nms(boxes, labels, scores, EvalConfig(nms_iou=float(threshold)))
    assert (kept > 0).sum() == len(boxes)
    # TensorFlow's other operation and the reference agree; the next smaller threshold removes a box of each pair.
    for bound, count in ((threshold, 2), (np.nextafter(threshold, np.float32(0)), 1)):
        for pair in np.split(boxes, 4):
            selected, _, _ = tf.raw_ops.NonMaxSuppressionV5(
                boxes=pair, scores=[0.9, 0.8], max_output_size=2, iou_threshold=bound, score_threshold=0.0,
                soft_nms_sigma=0.0,
            )  # fmt: skip
            assert len(selected) == count
    assert len(nms_reference(boxes, labels, scores, part / whole, 0.0, 100)) == len(boxes)


def test_a_box_whose_iou_equals_the_threshold_is_kept_in_every_runtime(converted_nms):
    boxes, labels, scores = draw_boxes_at_the_threshold(4, 8)
    empty = CONVERTED - len(boxes)
    found = converted_nms(np.pad(boxes, ((0, empty), (0, 0))), np.pad(labels, (0, empty)), np.pad(scores, (0, empty)))
    assert (np.asarray(found["scores"]) > 0).sum() == len(boxes)
