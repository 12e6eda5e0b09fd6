"""Compares the outputs of float16 and int8 TFLite files with those of float32."""

import io

import numpy as np
import pytest
import tf_keras
from PIL import Image
from support.synthetic import CLASSES, draw_record
from test_exporter import SETTINGS, build_few_blocks, fit_statistics, randomize_weights

from ssd_dist.core.config import Config
from ssd_dist.export.formats import convert_to_tflite, open_export
from ssd_dist.export.options import Quantization
from ssd_dist.export.serving import OutputDecoder, ServedDetector
from ssd_dist.model import detector
from ssd_dist.model.detector import build_detector

CONFIG = Config.model_validate(SETTINGS)


def draw_images(seeds: range) -> list[np.ndarray]:
    """Returns images of coloured rectangles on noise, after JPEG compression."""
    encoded = [draw_record(seed, f"{seed}", CONFIG, 3).encoded for seed in seeds]
    return [np.asarray(Image.open(io.BytesIO(data))) for data in encoded]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Returns logits and offsets on twelve images, by quantization."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector, "build_backbone", build_few_blocks)
        tf_keras.utils.set_random_seed(1)
        model = build_detector(CONFIG.model, CONFIG.backbone, CONFIG.anchors, len(CLASSES))
    randomize_weights(model)
    fit_statistics(model, np.stack(draw_images(range(200, 232))))
    decoder = OutputDecoder.create(CONFIG.anchors, CONFIG.eval, 64)
    served, found = ServedDetector(model, decoder, 64, CLASSES, postprocess=False), {}
    for quantize in ("none", "fp16", "int8"):
        path = tmp_path_factory.mktemp(quantize) / "model.tflite"
        path.write_bytes(convert_to_tflite(served, Quantization(quantize), draw_images(range(100, 164))))
        run = open_export("tflite", path)
        results = [run(image[None]) for image in draw_images(range(12))]
        found[quantize] = {name: np.concatenate([result[name] for result in results]) for name in results[0]}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["logits", "offsets"])
def test_float16_changes_the_outputs_only_by_rounding(outputs, name):
    exact, rounded = outputs["none"][name], outputs["fp16"][name]
    # float16 has 11 significant bits, so a weight changes by up to 2^-11 of its value. If the rounding errors of about
    # twenty layers added up, the outputs would change by 1 %.
    assert (rounded - exact).std() < 20 * 2**-11 * exact.std()
    assert (rounded != exact).mean() > 0.5, "the weights of the file are float32"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["logits", "offsets"])
def test_int8_outputs_follow_the_float32_outputs(outputs, name):
    exact, rounded = outputs["none"][name], outputs["int8"][name]
    changes, kept = (values - exact.mean(axis=0) for values in (exact, rounded))
    assert changes.std() > 0.5 * exact.std(), "the outputs do not depend on the image"
    # About twenty layers of 256 levels. Measured with untrained weights: 0.977. With activation ranges that were not
    # calibrated on such images: 0.88, and a slope of 0.75.
    assert np.corrcoef(changes.ravel(), kept.ravel())[0, 1] > 0.96
    assert np.polyfit(changes.ravel(), kept.ravel(), 1)[0] == pytest.approx(1, abs=0.06)
    assert np.corrcoef(exact.ravel(), rounded.ravel())[0, 1] > 0.98
