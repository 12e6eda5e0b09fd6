"""The rules by which SSD draws random parts of an image (Liu et al. 2016, sections 2.2 and 3.6).

`pipelines/crops.py` applies them during prepare and `ssd_dist/data/online_targets.py` inside the input pipeline. Users
configure them through `AugmentationConfig`.
"""

# The mean of ImageNet, in RGB: what lies beyond the image.
FILL = (124, 116, 104)
EXPAND_PROBABILITY = 0.5
LARGEST_ASPECT = 2.0
# A crop must overlap some object at least so much; None takes the canvas as it is, 0 any crop.
OVERLAPS: tuple[float | None, ...] = (None, 0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
# Crops drawn for one overlap, and overlaps drawn before the canvas is taken as it is.
TRIALS = 50
DRAWS = 8
