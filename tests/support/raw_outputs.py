"""Raw outputs of a small detector, and the comparison of a detection op with our own NMS on them."""

import numpy as np
import tensorflow as tf
from support.random_detector import SETTINGS

from ssd_dist.core.config import Config
from ssd_dist.export.parity import Parity, compare_detections, run_export
from ssd_dist.export.rounding import Tolerance, explain_by_rounding, list_candidates
from ssd_dist.export.serving import OutputDecoder

CONFIG = Config.model_validate(SETTINGS | {"eval": {"split": "val", "max_detections": 20}})
DECODER = OutputDecoder.create(CONFIG.anchors, CONFIG.eval, 64)
ANCHORS = DECODER.anchors


def background() -> tuple[np.ndarray, np.ndarray]:
    """Returns logits and offsets of an image without objects."""
    logits = np.zeros((len(ANCHORS), 4), np.float32)
    logits[:, 0] = 12
    return logits, np.zeros((len(ANCHORS), 4), np.float32)


def compare_with_our_nms(
    outputs: dict[str, np.ndarray], logits: np.ndarray, offsets: np.ndarray, export_outputs: str
) -> Parity:
    """Returns how the outputs of an op differ from the detections of our NMS for the same logits and offsets."""
    raw = {"logits": tf.constant(logits[None]), "offsets": tf.constant(offsets[None])}
    ours, theirs = (run_export(lambda _, of=of: of, [np.zeros(0)], ["a"], DECODER)[0] for of in (raw, outputs))
    candidates = list_candidates(raw, DECODER, Tolerance(1e-6, 1e-6), export_outputs=export_outputs)
    return compare_detections(
        ours, theirs, lambda _, lost, added: explain_by_rounding(lost, added, theirs[0], candidates, DECODER)
    )
