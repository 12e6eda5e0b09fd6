"""The client scripts of docs/deploy/ run and print what the exported file computes.

The script for MediaPipe runs in a virtual environment of its own and the page for browsers with a package of npm; `make
deploy-clients` installs both.
"""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.synthetic import CLASSES
from test_quantized import build_served, draw_images

from ssd_dist.core.boxes import decode_boxes
from ssd_dist.export.export_options import Credits, ExportOptions, Quantization
from ssd_dist.export.export_summary import describe_export
from ssd_dist.export.exporter import write_export
from ssd_dist.export.runtimes import FILES, open_export

ROOT = Path(__file__).parents[2]
BROWSER = Path(os.environ.get("SSD_DIST_BROWSER", ROOT / ".browser"))
MEDIAPIPE = Path(os.environ.get("SSD_DIST_MEDIAPIPE", ROOT / ".venv-mediapipe")) / "bin/python"
SHARED = Path(os.environ.get("SSD_DIST_SHARED", ROOT.parent / "shared"))
THRESHOLD = 0.3
OPTIONS = {
    "float32": ExportOptions("tflite", "postprocess_op", metadata=Credits("A. Author", "1.2", "Apache-2.0")),
    "int8": ExportOptions("tflite", "postprocess_op", Quantization("int8"), Credits()),
    "onnx": ExportOptions("onnx", "detections"),
    "openvino": ExportOptions("openvino", "detection_output"),
    "onnx_raw": ExportOptions("onnx", "raw"),
}


def read_script(page: str) -> str:
    """Returns the only Python or HTML script of a page."""
    (script,) = re.findall(
        r"^```(?:python|html)\n(.*?)^```", (ROOT / "docs/deploy" / page).read_text(), re.DOTALL | re.MULTILINE
    )
    return script


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs/deploy").glob("*.md")))
def test_a_client_script_has_at_most_thirty_lines(page):
    assert len(read_script(page).splitlines()) <= 30


@pytest.fixture(scope="module")
def served():
    return build_served()


@pytest.fixture(scope="module")
def export(served, tmp_path_factory):
    """Returns a function that writes one of the exports, once, and returns its folder."""
    folders = {}

    def write(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            served.postprocess = OPTIONS[name].outputs == "detections"
            write_export(served, OPTIONS[name], draw_images(range(100, 132)), folders[name])
            summary = describe_export(OPTIONS[name], served.decoder, 64) | {"classes": CLASSES}
            (folders[name] / "export.json").write_text(json.dumps(summary))
        return folders[name]

    return write


open_once = functools.cache(open_export)


def detect(folder, options, image):
    """Returns class name, score and box (left, top, right, bottom in pixels) of the detections of an export."""
    outputs = open_once(options.kind, folder / FILES[options.kind])(np.asarray(image)[None])
    if "detection_out" in outputs:
        rows = [(row[3:], row[1] - 1, row[2]) for row in outputs["detection_out"][0, 0]]
    else:
        labels = outputs["labels"][0] - 1 if "labels" in outputs else outputs["classes"][0]
        count = int(outputs["count"][0]) if "count" in outputs else int((labels >= 0).sum())
        boxes = outputs["boxes"][0][:count, [1, 0, 3, 2]]
        rows = zip(boxes, labels[:count], outputs["scores"][0][:count], strict=True)
    return [(CLASSES[int(label)], score, 64 * box) for box, label, score in rows if score >= THRESHOLD + 1e-3]


def run_script(page, python, *arguments):
    """Runs the script of a page and returns the words of each line that it prints."""
    command = [python, "-c", read_script(page), *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """Returns an image of the size of the input, and its path: nothing is resized."""
    path = tmp_path_factory.mktemp("image") / "image.png"
    Image.fromarray(draw_images(range(1))[0]).save(path)
    return Image.open(path), path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["float32", "int8"])
def test_a_client_reads_the_outputs_by_position(export, image, name):
    folder, expected = export(name), detect(export(name), OPTIONS[name], image[0])
    arguments = (folder / "model.tflite", folder / "labelmap.txt", image[1], THRESHOLD)
    found = run_script("coral_frigate.md", sys.executable, *arguments)
    assert len(found) >= len(expected) > 5
    for (label, score, box), words in zip(expected, found, strict=False):
        assert words[0] == label
        np.testing.assert_allclose(np.float64(words[1:]), [score, *box], atol=0.06)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "page", "packages"),
    [("onnx", "onnx_runtime.md", ["tf2onnx", "onnxruntime"]), ("openvino", "openvino.md", ["openvino"])],
)
def test_a_client_runs_the_export(export, image, name, page, packages):
    for package in packages:
        pytest.importorskip(package)
    expected = detect(export(name), OPTIONS[name], image[0])
    found = run_script(page, sys.executable, export(name), image[1], THRESHOLD)
    assert len(found) >= len(expected) > 5
    for (label, score, box), words in zip(expected, found, strict=False):
        assert words[0] == label
        np.testing.assert_allclose(np.float64(words[1:]), [score, *box], atol=0.06)


@pytest.mark.slow
def test_the_plugin_of_tensorrt_gets_our_boxes_scores_and_thresholds(export, served, image, tmp_path):
    """TensorRT is not available; its documentation lists the attributes of EfficientNMS_TRT, version 1."""
    onnx, _, runtime = map(pytest.importorskip, ("onnx", "tf2onnx", "onnxruntime"))
    run_script("tensorrt.md", sys.executable, export("onnx_raw"), tmp_path / "tensorrt.onnx")
    model = onnx.load(tmp_path / "tensorrt.onnx")
    plugin = model.graph.node[-1]
    assert (plugin.op_type, plugin.domain) == ("EfficientNMS_TRT", "TRT")
    assert {one.name: onnx.helper.get_attribute_value(one) for one in plugin.attribute} == {
        "plugin_version": b"1", "background_class": 0, "box_coding": 0, "score_activation": 0, "class_agnostic": 0,
        "score_threshold": pytest.approx(0.01), "iou_threshold": 0.5, "max_output_boxes": 100,
    }  # fmt: skip
    values = [*model.graph.input, *model.graph.output]
    shapes = {value.name: [one.dim_value for one in value.type.tensor_type.shape.dim] for value in values}
    assert shapes == {
        "images": [1, 64, 64, 3], "count": [1, 1], "boxes": [1, 100, 4], "scores": [1, 100], "labels": [1, 100]
    }  # fmt: skip
    # The inputs of the plugin, computed by ONNX Runtime.
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in plugin.input)
    model.graph.node.remove(plugin)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    boxes, scores = session.run(list(plugin.input), {"images": np.asarray(image[0])[None]})
    raw = open_export("onnx", export("onnx_raw") / "model.onnx")(np.asarray(image[0])[None])
    weights = np.exp(raw["logits"][0].astype(np.float64))
    np.testing.assert_allclose(scores[0], weights / weights.sum(axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(boxes[0], decode_boxes(raw["offsets"][0], served.decoder.anchors, 0.1, 0.2), atol=1e-5)


class _Site(SimpleHTTPRequestHandler):
    """Serves a page that has loaded when it has shown its first detection, so that Chromium prints it then."""

    shown = threading.Event()
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path.startswith("/wait"):
            self.shown.wait(240)
        if self.path.startswith("/shown"):
            self.shown.set()
        super().do_GET()

    def log_message(self, *_):
        """Prints nothing."""


@pytest.fixture
def site(tmp_path):
    """Returns a folder and the address at which it is served."""
    _Site.shown.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Site, directory=tmp_path))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield tmp_path, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
@pytest.mark.skipif(
    not (BROWSER.exists() and shutil.which("chromium")), reason="`make deploy-clients` needs npm and Chromium"
)
@pytest.mark.parametrize("name", ["float32", "int8"])
def test_a_browser_shows_the_boxes_of_the_file(export, image, site, name):
    folder, address = site
    expected = detect(export(name), OPTIONS[name], image[0])
    (folder / "node_modules").symlink_to(BROWSER.resolve() / "node_modules")
    for file in ("model.tflite", "labelmap.txt"):
        shutil.copy(export(name) / file, folder)
    shutil.copy(image[1], folder / "image.png")
    report = "<script>new MutationObserver(() => fetch('/shown')).observe(found, {childList: true})</script>"
    page = read_script("browser.md").replace("</pre>", f"</pre>{report}<img src='/wait'>")
    (folder / "client.html").write_text(page)
    query = f"model=model.tflite&labels=labelmap.txt&image=image.png&threshold={THRESHOLD}"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
               "--dump-dom", f"--user-data-dir={folder / 'profile'}", f"{address}/client.html?{query}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=True)
    found = [
        line.split() for line in re.findall(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[0].splitlines()
    ]
    assert len(found) >= len(expected) > 5
    for (label, score, box), words in zip(expected, found, strict=False):
        assert words[0] == label
        np.testing.assert_allclose(np.float64(words[1:]), [score, *box], atol=0.06)


def move_as_mediapipe(box):
    """Returns (left, top, width, height) of a box (left, top, right, bottom) as MediaPipe reports it.

    MediaPipe moves the corner into the image, keeps the sides up to those of the image, and cuts all to whole pixels.
    """
    left, top, right, bottom = box
    return np.array([max(left, 0), max(top, 0), min(right - left, 64), min(bottom - top, 64)])


@pytest.mark.slow
@pytest.mark.skipif(not MEDIAPIPE.exists(), reason="MediaPipe is not installed; `make deploy-clients` installs it")
@pytest.mark.parametrize("name", ["float32", "int8"])
def test_mediapipe_draws_the_boxes_of_the_file(export, image, name):
    expected = detect(export(name), OPTIONS[name], image[0])[:20]
    found = run_script("mediapipe.md", MEDIAPIPE, export(name) / "model.tflite", image[1], THRESHOLD)
    assert len(found) >= len(expected) > 5
    for (label, score, box), words in zip(expected, found, strict=False):
        assert words[0] == label
        np.testing.assert_allclose(np.float64(words[2:]), move_as_mediapipe(box), atol=1.01)
        assert float(words[1]) == pytest.approx(score, abs=1e-3)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Returns 64 real images of the size of the input, as PNG files."""
    files = sorted((SHARED / "data/coco128/images").rglob("*.jpg"))[:64]
    if len(files) < 64:
        pytest.skip(f"{SHARED}/data/coco128 is missing; set SSD_DIST_SHARED to the folder that contains data/coco128")
    folder = tmp_path_factory.mktemp("photographs")
    for file in files:
        with Image.open(file) as opened:
            opened.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR).save(folder / f"{file.stem}.png")
    return sorted(folder.iterdir())


def count_missing(expected, found, tolerance):
    """Returns how many detections (name, score, box) have none of the same name, score and box in `found`."""

    def is_near(one, two):
        return one[0] == two[0] and abs(one[1] - two[1]) < 1e-3 and np.abs(one[2] - two[2]).max() < tolerance

    return sum(not any(is_near(one, two) for two in found) for one in expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["float32", "int8"])
def test_litert_draws_the_boxes_of_tensorflow_on_real_images(export, photographs, name):
    folder, total = export(name), 0
    litert = open_export("tflite", folder / "model.tflite", litert=True)
    for path in photographs:
        with Image.open(path) as image:
            expected, outputs = detect(folder, OPTIONS[name], image), litert(np.asarray(image)[None])
        rows = zip(outputs["boxes"][0], outputs["classes"][0], outputs["scores"][0], strict=True)
        found = [(CLASSES[int(number)], score, 64 * box[[1, 0, 3, 2]]) for box, number, score in rows]
        assert count_missing(expected, found[: int(outputs["count"][0])], 0.01) == 0, path
        total += len(expected)
    assert total > 64


@pytest.mark.slow
@pytest.mark.skipif(not MEDIAPIPE.exists(), reason="MediaPipe is not installed; `make deploy-clients` installs it")
@pytest.mark.parametrize("name", ["float32", "int8"])
def test_mediapipe_draws_the_boxes_of_the_file_on_real_images(export, photographs, name):
    program = """
import json, sys, mediapipe
from mediapipe.tasks.python import BaseOptions, vision
options = vision.ObjectDetectorOptions(BaseOptions(sys.argv[1]), score_threshold=float(sys.argv[2]), max_results=100)
with vision.ObjectDetector.create_from_options(options) as detector:
    for path in sys.argv[3:]:
        found = detector.detect(mediapipe.Image.create_from_file(path)).detections
        boxes = [(one.bounding_box.origin_x, one.bounding_box.origin_y, one.bounding_box.width,
            one.bounding_box.height) for one in found]
        names = [(one.categories[0].category_name, one.categories[0].score) for one in found]
        print(json.dumps([(*name, box) for name, box in zip(names, boxes)]))
"""
    command = [MEDIAPIPE, "-c", program, export(name) / "model.tflite", THRESHOLD, *photographs]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    total = 0
    for path, line in zip(photographs, done.stdout.splitlines(), strict=True):
        found = [(label, score, np.float64(box)) for label, score, box in json.loads(line)]
        with Image.open(path) as image:
            detections = detect(export(name), OPTIONS[name], image)
        expected = [(label, score, move_as_mediapipe(box)) for label, score, box in detections]
        assert count_missing(expected, found, 1.01) == 0, path
        total += len(expected)
    assert total > 64


@pytest.mark.slow
@pytest.mark.skipif(not MEDIAPIPE.exists(), reason="MediaPipe is not installed; `make deploy-clients` installs it")
def test_mediapipe_reads_every_field_of_the_metadata(export):
    program = """
import sys
from mediapipe.tasks.metadata import metadata_schema_py_generated as metadata, schema_py_generated as schema
model = schema.ModelT.InitFromPackedBuf(open(sys.argv[1], "rb").read(), 0)
(entry,) = (entry for entry in model.metadata if entry.name == b"TFLITE_METADATA")
read = metadata.ModelMetadataT.InitFromPackedBuf(bytes(model.buffers[entry.buffer].data), 0)
graph = read.subgraphMetadata[0]
image, (location, category, score, count) = graph.inputTensorMetadata[0], graph.outputTensorMetadata
print(read.author, read.version, read.license, read.minParserVersion)
size = image.content.contentProperties.defaultSize
print(image.content.contentProperties.colorSpace, size.width, size.height, image.stats.min, image.stats.max)
print(image.processUnits[0].options.mean, image.processUnits[0].options.std)
box = location.content.contentProperties
print(location.name, box.index, box.type, box.coordinateType, location.content.range.min, location.content.range.max)
print(category.name, category.associatedFiles[0].name, category.associatedFiles[0].type)
print(score.name, round(score.processUnits[0].options.globalScoreThreshold, 4), count.name)
print(graph.outputTensorGroups[0].name, graph.outputTensorGroups[0].tensorNames)
"""
    command = [MEDIAPIPE, "-c", program, export("float32") / "model.tflite"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.stdout.splitlines() == [
        "b'A. Author' b'1.2' b'Apache-2.0' b'1.2.1'",
        "1 64 64 [0.] [255.]",
        "[0.] [1.]",
        "b'location' [1 0 3 2] 1 0 2 2",
        "b'category' b'labelmap.txt' 3",
        "b'score' 0.01 b'number of detections'",
        "b'detection_result' [b'location', b'category', b'score']",
    ], done.stderr
