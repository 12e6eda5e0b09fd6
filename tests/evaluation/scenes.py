"""Draws random annotations and detections of a few images, and builds them from boxes in pixels."""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from ssd_dist.core.records import Objects
from ssd_dist.evaluation.detections import Detections, GroundTruth

# Powers of two: normalizing pixel coordinates is exact, so boundary cases lie exactly on the boundary.
HEIGHT, WIDTH = 512, 1024


def make_ground_truth(name, boxes, labels, difficult=None, crowd=None, area=None) -> GroundTruth:
    """Builds the ground truth of one image from boxes in pixels."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    count = len(boxes)
    sides = boxes[:, 2:] - boxes[:, :2]
    objects = Objects(
        boxes=(boxes / [HEIGHT, WIDTH, HEIGHT, WIDTH]).astype(np.float32),
        labels=np.asarray(labels, np.int64).reshape(count),
        names=("",) * count,
        difficult=np.zeros(count, bool) if difficult is None else np.asarray(difficult, bool),
        is_crowd=np.zeros(count, bool) if crowd is None else np.asarray(crowd, bool),
        area=(sides[:, 0] * sides[:, 1] if area is None else np.asarray(area)).astype(np.float32),
    )
    return GroundTruth(name, HEIGHT, WIDTH, objects)


def make_detections(name, boxes, labels, scores) -> Detections:
    """Builds the detections on one image from boxes in pixels."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    return Detections(
        name,
        (boxes / [HEIGHT, WIDTH, HEIGHT, WIDTH]).astype(np.float32),
        np.asarray(labels, np.int64).reshape(-1),
        np.asarray(scores, np.float32).reshape(-1),
    )


def make_no_detections(name) -> Detections:
    return make_detections(name, [], [], [])


@dataclass(frozen=True)
class Scene:
    """Parameters of a random evaluation."""

    seed: int
    images: int = 6
    classes: int = 3
    objects: int = 6
    detections: int = 20
    crowd: float = 0.15
    difficult: float = 0.2
    score_levels: int = 0  # 0: distinct scores
    on_grid: bool = False


def draw_scene(scene: Scene) -> tuple[list[GroundTruth], list[Detections]]:
    rng = np.random.default_rng(scene.seed)

    def boxes(count):
        sides = np.exp(rng.uniform(np.log(8), np.log(400), (count, 2)))
        corners = rng.uniform(0, 1, (count, 2)) * ([HEIGHT, WIDTH] - sides)
        drawn = np.concatenate([corners, corners + sides], axis=1)
        if scene.on_grid:
            drawn = np.round(drawn / 32) * 32
            drawn[:, 2:] = np.maximum(drawn[:, 2:], drawn[:, :2] + 32)
        return drawn

    ground_truth, detections = [], []
    total = scene.images * scene.detections
    scores = rng.permutation(np.linspace(0.02, 0.99, total))
    if scene.score_levels:
        scores = np.ceil(scores * scene.score_levels) / scene.score_levels
    for image in range(scene.images):
        count = int(rng.integers(0, scene.objects + 1))
        objects, labels = boxes(count), rng.integers(1, scene.classes + 1, count)
        area = (objects[:, 2] - objects[:, 0]) * (objects[:, 3] - objects[:, 1]) * rng.uniform(0.5, 1, count)
        ground_truth.append(
            make_ground_truth(
                f"image {image}",
                objects,
                labels,
                rng.random(count) < scene.difficult,
                rng.random(count) < scene.crowd,
                area,
            )
        )
        detected, detected_labels = boxes(scene.detections), rng.integers(1, scene.classes + 1, scene.detections)
        # Most detections lie near an object, with IoUs over the whole range of thresholds.
        for d in range(scene.detections if count else 0):
            if rng.random() < 0.8:
                n = rng.integers(count)
                sides = objects[n, 2:] - objects[n, :2]
                detected[d] = objects[n] + np.tile(sides, 2) * rng.normal(0, rng.choice([0, 0.02, 0.1, 0.2]), 4)
                detected[d, 2:] = np.maximum(detected[d, 2:], detected[d, :2] + 1)
                detected_labels[d] = labels[n] if rng.random() < 0.9 else detected_labels[d]
        image_scores = scores[image * scene.detections : (image + 1) * scene.detections]
        detections.append(make_detections(f"image {image}", detected, detected_labels, image_scores))
    return ground_truth, detections


def class_names(count: int) -> list[str]:
    return [f"class {k}" for k in range(1, count + 1)]


SCENES = st.builds(
    Scene,
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 6),
    classes=st.integers(1, 4),
    objects=st.integers(0, 8),
    detections=st.integers(0, 30),
    crowd=st.sampled_from([0.0, 0.2, 0.7]),
    difficult=st.sampled_from([0.0, 0.3]),
    score_levels=st.sampled_from([0, 1, 3]),
    on_grid=st.booleans(),
)

BOX, OTHER, NEAR = [0, 0, 100, 100], [200, 200, 300, 300], [0, 0, 100, 90]
