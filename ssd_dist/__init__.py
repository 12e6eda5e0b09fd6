"""MobileNetV2-SSD from raw labelled images to a trained detector, on one laptop or many hosts."""

import os

# orbit and tf-models-official stand on Keras 2; importing Keras 3 beside it would cost 4 s of every start.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
# Freed activations are kept for the next step: giving them back costs a page fault for every 4 KiB of them.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
