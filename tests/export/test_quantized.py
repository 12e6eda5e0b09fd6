"""What smaller numbers cost: outputs of TFLite files in float16 and int8 beside those in float32."""

import io

import numpy as np
import pytest
import tf_keras
from PIL import Image
from support.synthetic import CLASSES, draw_record
from test_exporter import SETTINGS, build_few_blocks, give_character, settle_statistics

from ssd_dist.core.config import Config
from ssd_dist.export.formats import open_export, write_tflite
from ssd_dist.export.serving import ServedDetector
from ssd_dist.model import detector
from ssd_dist.model.detector import build_detector

CONFIG = Config.model_validate(SETTINGS)


def pictures(seeds: range) -> list[np.ndarray]:
    """Coloured rectangles on noise, as JPEG leaves them."""
    encoded = [draw_record(seed, f"{seed}", CONFIG, 3).encoded for seed in seeds]
    return [np.asarray(Image.open(io.BytesIO(data))) for data in encoded]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Logits and offsets on twelve images by what the numbers are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector, "build_backbone", build_few_blocks)
        tf_keras.utils.set_random_seed(1)
        model = build_detector(CONFIG, len(CLASSES))
    give_character(model)
    settle_statistics(model, np.stack(pictures(range(200, 232))))
    served, found = ServedDetector(model, CONFIG, CLASSES, postprocess=False), {}
    for quantize in ("none", "fp16", "int8"):
        path = tmp_path_factory.mktemp(quantize) / "model.tflite"
        write_tflite(served, path, quantize, pictures(range(100, 164)))
        run = open_export("tflite", path)
        answers = [run(image[None]) for image in pictures(range(12))]
        found[quantize] = {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["logits", "offsets"])
def test_float16_costs_the_rounding_of_weights(outputs, name):
    exact, rounded = outputs["none"][name], outputs["fp16"][name]
    # Half precision has 11 bits: a weight moves by up to 2^-11 of itself. If the roundings of some twenty layers all
    # added up it would be a hundredth; they do not.
    assert (rounded - exact).std() < 20 * 2**-11 * exact.std()
    assert (rounded != exact).mean() > 0.5, "the file is in float32"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["logits", "offsets"])
def test_int8_says_of_pictures_what_float32_says(outputs, name):
    exact, rounded = outputs["none"][name], outputs["int8"][name]
    changes, kept = (values - exact.mean(axis=0) for values in (exact, rounded))
    assert changes.std() > 0.5 * exact.std(), "the outputs are biases"
    # Some twenty layers of 256 levels. Measured: 0.977, of weights that nobody trained; with ranges of activations that
    # are none of the pictures' 0.88, and a slope of 0.75.
    assert np.corrcoef(changes.ravel(), kept.ravel())[0, 1] > 0.96
    assert np.polyfit(changes.ravel(), kept.ravel(), 1)[0] == pytest.approx(1, abs=0.06)
    assert np.corrcoef(exact.ravel(), rounded.ravel())[0, 1] > 0.98
