"""What smaller numbers cost: outputs of TFLite files in float16 and int8 beside those in float32."""

import io

import numpy as np
import pytest
import tf_keras
from PIL import Image
from synthetic import CLASSES, draw_record
from test_export import SETTINGS, build_few_blocks, give_character

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
    # Half precision has 11 bits: a weight moves by up to 2^-11 of itself, up or down, and so does what a layer sums.
    # Those of some twenty layers add as noise does, to less than two of one.
    np.testing.assert_allclose(rounded, exact, rtol=0, atol=2 * 2**-11 * np.abs(exact).max())
    assert (rounded != exact).mean() > 0.5, "the file is in float32"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["logits", "offsets"])
def test_int8_costs_the_noise_of_256_levels(outputs, name):
    exact, rounded = outputs["none"][name], outputs["int8"][name]
    # The outputs span some twenty standard deviations: 256 levels over them are a noise of 20 / 256 / sqrt(12), or a
    # correlation of 0.9997, and the layers before add as much.
    assert np.corrcoef(exact.ravel(), rounded.ravel())[0, 1] > 0.999
    # Neither shifted nor stretched, to a hundredth of what the outputs span.
    slope, shift = np.polyfit(exact.ravel(), rounded.ravel(), 1)
    assert slope == pytest.approx(1, abs=0.01)
    assert abs(shift) < 0.01 * np.ptp(exact)
    assert len(np.unique(rounded[0])) <= 256 * 6, "six levels of anchors, each quantised on its own"
