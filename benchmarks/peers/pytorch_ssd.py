"""The training step of qfgaohao/pytorch-ssd, `--net mb2-ssd-lite`, imported from a checkout.

Runs in the Python that has PyTorch, torchvision and OpenCV. `train_ssd.py` parses a command line when it is imported,
so the loop is written here: the calls of its training loop, with its default optimizer. Targets are computed once,
because the program computes them in the processes of its data loader. The program runs unchanged with PyTorch 2.15.
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.peers.requests import answer_requests


def train(replies: int, arrays: Path, checkout: Path) -> None:
    """Trains on the arrays of `write_arrays` on request."""
    sys.path.insert(0, str(checkout))
    # Keeps the checkout as it is.
    sys.dont_write_bytecode = True
    from vision.nn.multibox_loss import MultiboxLoss
    from vision.ssd.config import mobilenetv1_ssd_config as config
    from vision.ssd.mobilenet_v2_ssd_lite import create_mobilenetv2_ssd_lite
    from vision.ssd.ssd import MatchPrior

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    data = np.load(arrays)
    pixels = (data["pixels"] - config.image_mean) / config.image_std
    images = torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32).contiguous()
    match = MatchPrior(config.priors, config.center_variance, config.size_variance, 0.5)
    labels = data["labels"].astype(np.int64)
    targets = [match(boxes, its_labels) for boxes, its_labels in zip(data["boxes"], labels, strict=True)]
    locations, classes = (torch.stack(tensors) for tensors in zip(*targets, strict=True))

    network = create_mobilenetv2_ssd_lite(int(labels.max()) + 1)
    network.train()
    criterion = MultiboxLoss(
        config.priors, iou_threshold=0.5, neg_pos_ratio=3, center_variance=config.center_variance,
        size_variance=config.size_variance, device="cpu",
    )  # fmt: skip
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    parameters = sum(weights.numel() for weights in network.parameters())
    for steps in answer_requests(replies, parameters, len(config.priors)):
        for _ in range(steps):
            optimizer.zero_grad()
            confidences, predicted = network(images)
            localization, classification = criterion(confidences, predicted, classes, locations)
            (localization + classification).backward()
            optimizer.step()


if __name__ == "__main__":
    train(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
