"""Measures matching in crowded images: time per number of objects, and memory of online matching.

The objects are spread over the image, or nearly equal (clustered, jitter of 0.001); the anchors are the default ones at
300 x 300 pixels. Most of the 8,000 clustered objects overlap with no free anchor, so that they get anchors at an IoU of
0.
"""

import resource
import subprocess
import sys
import time

import numpy as np

from benchmarks.rows import Row, run_benchmark, take_turns
from ssd_dist.core.anchors import generate_anchors
from ssd_dist.core.boxes import iou_matrix
from ssd_dist.core.config import AnchorConfig, MatchingConfig
from ssd_dist.core.matching import Matcher

SIZE = 300
COUNTS = (400, 2000, 8000)


def make_boxes(kind: str, count: int) -> np.ndarray:
    """Returns boxes float32 [count, 4], `spread` or `clustered`."""
    rng = np.random.default_rng(0)
    if kind == "spread":
        centers = rng.uniform(0.05, 0.95, (count, 2))
        sides = np.exp(rng.uniform(np.log(0.01), np.log(0.3), (count, 2)))
    else:
        centers = 0.4 + 0.001 * rng.normal(size=(count, 2))
        sides = 0.1 + 0.001 * rng.normal(size=(count, 2))
    return np.clip(np.concatenate([centers - sides / 2, centers + sides / 2], axis=1), 0, 1).astype(np.float32)


def measure_matching() -> list[Row]:
    """Compares crowded images with one pass over all pairs of objects and anchors."""
    matcher = Matcher(AnchorConfig(), SIZE, MatchingConfig())
    rows = []
    for kind in ("spread", "clustered"):
        for count in COUNTS:
            boxes, labels = make_boxes(kind, count), np.ones(count, np.int64)

            def compute_all_pairs(boxes: np.ndarray = boxes) -> None:
                for start in range(0, len(boxes), 64):
                    iou_matrix(boxes[start : start + 64], generate_anchors(AnchorConfig(), SIZE))

            ours, pairs = take_turns(lambda b=boxes, n=labels: matcher.match(b, n), compute_all_pairs, 1)
            rows.append(Row(f"matching {count:,} objects, {kind}", "s", ours, pairs, "the IoU of all pairs"))
    return rows


def measure_usual_images() -> Row:
    """Measures images with 1 to 20 objects in batches of 8, compared with one image at a time."""
    matcher = Matcher(AnchorConfig(), SIZE, MatchingConfig())
    counts = np.random.default_rng(1).integers(1, 21, 320)
    boxes = make_boxes("spread", int(counts.sum()))
    images = np.split(boxes, np.cumsum(counts)[:-1])
    labels = [np.ones(len(image), np.int64) for image in images]
    crowds = [np.zeros(len(image), bool) for image in images]

    def match_batches() -> None:
        for start in range(0, len(images), 8):
            part = slice(start, start + 8)
            matcher.match_all(images[part], labels[part], crowds[part])

    def match_single() -> None:
        for image, own in zip(images, labels, strict=True):
            matcher.match(image, own)

    batched, single = take_turns(match_batches, match_single, 5)
    return Row(
        "matching 1 to 20 objects, batches of 8",
        "ms per image",
        1e3 * batched / 320,
        1e3 * single / 320,
        "single images",
    )


def measure_online_memory() -> Row:
    """Measures how much more memory online matching of 1,000 objects takes than of 1, in separate processes."""
    peaks = []
    for count in (1000, 1):
        command = [sys.executable, "-m", "benchmarks.matching", f"--online={count}"]
        peaks.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]))
    return Row("online matching, 1,000 objects", "MiB of the process", *peaks, "1 object")


def match_online(count: int) -> None:
    """Matches one image in a graph and prints the peak memory of the process in MiB."""
    import tensorflow as tf

    from ssd_dist.data.graph_matching import GraphMatcher

    matcher = GraphMatcher(AnchorConfig(), SIZE, MatchingConfig())
    boxes = tf.constant(make_boxes("clustered", count))
    started = time.perf_counter()
    tf.function(matcher.match)(boxes, tf.ones([count], tf.int64), tf.zeros([count], tf.bool))
    seconds = time.perf_counter() - started
    print(f"{seconds:.2f} s, peak MiB:", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure() -> list[Row]:
    return [*measure_matching(), measure_usual_images(), measure_online_memory()]


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("--online="):
        match_online(int(sys.argv[1].partition("=")[2]))
    else:
        run_benchmark(measure, __doc__)
