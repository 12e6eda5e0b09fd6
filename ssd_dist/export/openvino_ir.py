"""Writes a detector as OpenVINO IR; with `--outputs=detection_output` it ends in the op DetectionOutput.

images -> network -> logits, offsets (float32)
                       -> softmax, offsets as (x, y, w, h) -> DetectionOutput -> rows by score -> detection_out

A row of `detection_out` [1, 1, D, 7] is (image, label, score, x_min, y_min, x_max, y_max), the layout of Caffe's SSD
that the Open Model Zoo and Frigate read. As our own NMS, the op clips boxes to the image and removes overlapping boxes
within each class; other than our own NMS, it ranks by scores instead of odds, and takes the best candidates of each
class instead of those of all classes.

The op returns the rows class by class. Frigate stops reading at the first low score, so the rows are sorted by score.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssd_dist.export.export_options import ExportOptions
from ssd_dist.export.formats import write_saved_model
from ssd_dist.export.runtimes import keep_signal_stack
from ssd_dist.export.serving import OutputDecoder, ServedDetector
from ssd_dist.model.postprocessing import CANDIDATES

OUTPUT_NAME = "detection_out"
# The name of label 0 in the label file; clients of this layout read the file by label.
BACKGROUND = "background"


def write_openvino(served: ServedDetector, options: ExportOptions, samples: Sequence[np.ndarray], path: Path) -> None:
    """Writes an IR: the network `path` (XML), and its weights beside it (BIN).

    Args:
      served: the detector, without post-processing.
      options: the outputs, and the type of the weights; the network computes in float32 unless it is int8.
      samples: uint8 [S, S, 3] images from which int8 calibrates the ranges of the activations.
      path: the path of the XML file.
    """
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        write_saved_model(served, Path(folder))
        # The reader of a SavedModel refers to the files of its weights, so the folder must exist until `save_model`.
        model = openvino.Core().read_model(folder)
        model.reshape([1, served.size, served.size, 3])
        if options.quantization.kind == "int8":
            model = _quantize(model, samples)
        if options.outputs == "detection_output":
            model = append_detection_output(model, served.decoder)
        openvino.save_model(model, path, compress_to_fp16=options.quantization.kind == "fp16")


def append_detection_output(model: Any, decoder: OutputDecoder) -> Any:
    """Returns a model that returns `OUTPUT_NAME` instead of `logits` [1, A, C + 1] and `offsets` [1, A, 4].

    Args:
      model: the model (openvino.Model).
      decoder: the anchors and the settings of NMS.
    """
    import openvino
    from openvino import opset13 as ops

    logits, offsets = (model.output(name).get_node().input_value(0) for name in ("logits", "offsets"))
    low, high = np.split(decoder.anchors, 2, axis=1)
    variances = [decoder.anchor_config.center_variance] * 2 + [decoder.anchor_config.size_variance] * 2
    # Boxes are (y, x) in this code and (x, y) in the op.
    anchors = np.concatenate([low[:, ::-1], high[:, ::-1]], axis=1)
    offsets = ops.gather(offsets, np.array([1, 0, 3, 2], np.int32), np.array(2, np.int32))
    flat = np.array([1, -1], np.int64)
    rows = ops.detection_output(
        ops.reshape(offsets, flat, special_zero=False),
        ops.reshape(ops.softmax(logits, axis=2), flat, special_zero=False),
        ops.constant(np.stack([anchors.ravel(), np.tile(variances, len(anchors))])[None].astype(np.float32)),
        {
            "background_label_id": 0,
            "code_type": "caffe.PriorBoxParameter.CENTER_SIZE",
            "share_location": True,
            "variance_encoded_in_target": False,
            "normalized": True,
            "confidence_threshold": decoder.eval_config.score_threshold,
            "top_k": CANDIDATES,
            "nms_threshold": decoder.eval_config.nms_iou,
            "keep_top_k": [decoder.eval_config.max_detections],
            "clip_before_nms": True,
        },
    )
    # The row after the last detection has image -1 and score 0; the order of equal scores keeps it there.
    scores = ops.gather(rows, np.array(2, np.int32), np.array(3, np.int32))
    count = np.array(decoder.eval_config.max_detections, np.int32)
    order = ops.topk(scores, count, axis=2, mode="max", sort="value", index_element_type="i32", stable=True)
    found = ops.gather(rows, ops.squeeze(order.output(1), np.array([0, 1], np.int32)), np.array(2, np.int32))
    found.output(0).set_names({OUTPUT_NAME})
    return openvino.Model([ops.result(found, name=OUTPUT_NAME)], model.get_parameters(), "ssd_dist")


def _quantize(model: Any, samples: Sequence[np.ndarray]) -> Any:
    """Returns the model with 8-bit weights, one scale per output channel, and 8-bit activations."""
    # Without this variable, NNCF sends usage statistics to its authors.
    os.environ.setdefault("NNCF_CI", "1")
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    # Processors without VNNI add pairs of products in 16 bits, which overflow with weights of 8 bits: the fix uses
    # 7 bits. Activations are not clipped, and their ranges need not be symmetric, as in TFLite. Correlation of the
    # outputs with those in float32, untrained weights, AVX2: 0.99; without the fix 0.89, with clipping 0.95.
    settings = AdvancedQuantizationParameters(
        overflow_fix=OverflowFix.ENABLE, activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX
    )
    with keep_signal_stack():
        return nncf.quantize(
            model,
            nncf.Dataset([image[None] for image in samples]),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(samples),
            advanced_parameters=settings,
        )
