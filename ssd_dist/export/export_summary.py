"""Describes an export: the summary `export.json`, and what is wrong with an export that differs from its checkpoint."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ssd_dist.evaluation.analysis import analyse_detections
from ssd_dist.evaluation.detections import Detections, GroundTruth
from ssd_dist.evaluation.metrics import evaluate_detections
from ssd_dist.export.detection_op import OUTPUTS as OP_OUTPUTS
from ssd_dist.export.export_options import ExportOptions
from ssd_dist.export.openvino_ir import OUTPUT_NAME as DETECTION_OUTPUT
from ssd_dist.export.parity import Parity
from ssd_dist.export.runtimes import FILES
from ssd_dist.export.serving import OutputDecoder

METRICS = ("coco/AP", "coco/AP50", "voc/mAP")


@dataclass(frozen=True)
class Comparison:
    """The results of an export and of its checkpoint on the same images.

    Attributes:
      checkpoint: the checkpoint's detections, one entry per image.
      export: the export's detections, one entry per image.
      parity: how the two differ.
      latency: median milliseconds per image of the export on this machine.
    """

    checkpoint: list[Detections]
    export: list[Detections]
    parity: Parity
    latency: float


def describe_export(options: ExportOptions, decoder: OutputDecoder, size: int) -> dict[str, Any]:
    """Returns the part of the summary that depends on the options: format, input and outputs."""
    pixels = options.quantization.input_type
    has_any_batch = options.kind == "saved_model" or (options.kind == "onnx" and options.outputs == "raw")
    batch = "N" if has_any_batch else "1"
    values = {"uint8": "0..255", "int8": "-128..127", "float32": "0..255"}[pixels]
    return {
        "format": options.kind,
        "quantize": options.quantization.kind,
        "quantization": dataclasses.asdict(options.quantization),
        "outputs": options.outputs,
        "file": FILES[options.kind],
        "input": f"{pixels} [{batch}, {size}, {size}, 3], RGB",
        "preprocessing": f"stretch the upright image to {size} x {size}, pass pixels in {values}",
        "output": describe_output(options, decoder),
    }


def describe_output(options: ExportOptions, decoder: OutputDecoder) -> dict[str, Any]:
    """Describes the outputs of an export and, for raw outputs, what the caller needs to decode them."""
    nms = {
        "score_threshold": decoder.eval_config.score_threshold,
        "nms_iou": decoder.eval_config.nms_iou,
        "max_detections": decoder.eval_config.max_detections,
    }
    if options.outputs == "detections":
        return {
            "boxes": "float32 [N, D, 4]: ymin, xmin, ymax, xmax in 0..1",
            "labels": "int32 [N, D], 1-based; 0 is padding",
            "scores": "float32 [N, D], best first",
            **nms,
        }
    if options.outputs == "postprocess_op":
        return {
            "boxes": "float32 [1, D, 4]: ymin, xmin, ymax, xmax; 0..1 is the image",
            "classes": "float32 [1, D], 0-based lines of labelmap.txt",
            "scores": "float32 [1, D], best first",
            "count": "float32 [1], the number of detections; later entries have no meaning",
            "positions": list(OP_OUTPUTS),
            **nms,
        }
    if options.outputs == "detection_output":
        return {
            DETECTION_OUTPUT: "float32 [1, 1, D, 7]: image, label, score, x_min, y_min, x_max, y_max in 0..1",
            "labels": "1-based; 0 is the background; lines of labelmap.txt",
            "rows": "best first; rows with score 0 have no meaning",
            **nms,
        }
    kind = options.quantization.output_type
    return {
        "logits": f"{kind} [N, A, C + 1], class 0 is background",
        "offsets": f"{kind} [N, A, 4]: ty, tx, th, tw",
        "anchors": "anchors.npy, float32 [A, 4]: ymin, xmin, ymax, xmax in 0..1",
        "center_variance": decoder.anchor_config.center_variance,
        "size_variance": decoder.anchor_config.size_variance,
        **nms,
    }


def summarize_comparison(
    comparison: Comparison, ground_truths: Sequence[GroundTruth], classes: Sequence[str]
) -> dict[str, Any]:
    """Returns the part of the summary that depends on the images: metrics, thresholds, parity and latency."""

    def evaluate(found: Sequence[Detections]) -> dict[str, float | None]:
        metrics = evaluate_detections(ground_truths, found, classes).as_dict()
        return {name: metrics[name] for name in METRICS}

    analysis = analyse_detections(ground_truths, comparison.export, classes).as_dict()
    return {
        "classes": list(classes),
        "metrics": {"checkpoint": evaluate(comparison.checkpoint), "export": evaluate(comparison.export)},
        "operating_points": analysis["operating_points"],
        "parity": dataclasses.asdict(comparison.parity),
        "milliseconds_an_image_here": comparison.latency,
    }


def describe_difference(parity: Parity) -> str:
    """Describes how an export differs from its checkpoint, for the error message."""
    for name, output in parity.raw_outputs.items():
        if not output.holds:
            return (
                f"the export's {name} differ by up to {output.max_difference:.1e} from those of the checkpoint, where "
                f"rounding explains {output.tolerance:.1e}"
            )
    return (
        f"the export lacks {parity.missing} of the checkpoint's {parity.detections} detections and has "
        f"{parity.surplus} others"
    )
