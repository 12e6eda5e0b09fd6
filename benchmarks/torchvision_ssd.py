"""Measures torchvision's SSD trainers on a GPU, as a reference for `benchmarks.gpu speed`; `--tiny` runs on a CPU too.

    PYTHON -m benchmarks.torchvision_ssd --output=DIR [--seconds=120] [--tiny]

PYTHON needs torch and torchvision (`pip install torch torchvision`), but not the packages of this project. A step is
the forward pass with matching and losses, the backward pass and AdamW, on one batch that stays on the device: 8 boxes
per image, 80 classes. Writes DIR/torchvision_ssd.json after each row.
"""

import argparse
import itertools
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torchvision

# Input pixels of the two models; ssd300_vgg16 has the 8,732 anchors of ours, ssdlite320 3,234.
SIZES = {"ssdlite320_mobilenet_v3_large": 320, "ssd300_vgg16": 300}
BATCHES = (128, 32, 256, 64)
TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CLASSES, BOXES = 80, 8
ROUNDS, STEPS = 5, 10


def draw_batch(pixels: int, images: int, device: torch.device) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    """Returns random images and targets in torchvision's form."""
    generator = torch.Generator().manual_seed(0)
    targets = []
    for _ in range(images):
        corners = torch.rand(BOXES, 2, generator=generator) * 0.6 * pixels
        sides = torch.rand(BOXES, 2, generator=generator) * 0.3 * pixels + 8
        labels = torch.randint(1, CLASSES + 1, (BOXES,), generator=generator)
        targets.append({"boxes": torch.cat([corners, corners + sides], 1).to(device), "labels": labels.to(device)})
    return [torch.rand(3, pixels, pixels, generator=generator).to(device) for _ in range(images)], targets


def measure(name: str, batch: int, kind: str, device: torch.device, steps: int) -> dict[str, Any]:
    """Returns the median time of a step of a model."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    build = getattr(torchvision.models.detection, name)
    model = build(weights=None, weights_backbone=None, num_classes=CLASSES + 1).to(device).train()
    # The faster layout for 16-bit convolutions.
    memory = torch.contiguous_format if kind == "float32" else torch.channels_last
    model.backbone.to(memory_format=memory)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler(device.type, enabled=kind == "float16")
    images, targets = draw_batch(SIZES[name], batch, device)

    def run_steps() -> None:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, dtype=TYPES[kind], enabled=kind != "float32"):
                loss = sum(model(images, targets).values())
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        if device.type == "cuda":
            torch.cuda.synchronize()

    run_steps()
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        run_steps()
        times.append((time.perf_counter() - started) / steps)
    seconds = statistics.median(times)
    return {
        "model": name, "batch": batch, "policy": kind, "step_ms": 1e3 * seconds, "images_per_second": batch / seconds,
        "spread": (max(times) - min(times)) / seconds,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default=os.environ.get("OUT", "."), type=Path)
    parser.add_argument("--seconds", type=float, default=120, help="no further row is measured after this time")
    parser.add_argument("--tiny", action="store_true", help="one step of a batch of 2 images in float32")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    deadline, rows = time.monotonic() + arguments.seconds, []
    cases = itertools.product((2,) if arguments.tiny else BATCHES, ("float32",) if arguments.tiny else TYPES, SIZES)
    for batch, kind, name in cases:
        if time.monotonic() > deadline:
            break
        row = measure(name, batch, kind, device, 1 if arguments.tiny else STEPS)
        rows.append(row)
        print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
        gpu = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
        versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "device": gpu}
        document = {"block": "torchvision_ssd", **versions, "tiny": arguments.tiny, "rows": rows}
        (arguments.output / "torchvision_ssd.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
