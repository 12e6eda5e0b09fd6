"""Constants of SSD's random crops and expansions (Liu et al. 2016, sections 2.2 and 3.6).

`pipelines/crops.py` uses them during prepare and `ssd_dist/data/online_targets.py` inside the input pipeline. Users
configure them through `AugmentationConfig`.
"""

# The color outside the image: the mean of ImageNet, in RGB.
FILL = (124, 116, 104)
EXPAND_PROBABILITY = 0.5
LARGEST_ASPECT = 2.0
# Lower bounds of the IoU of a crop with an object. None keeps the whole canvas; 0 accepts any crop.
OVERLAPS: tuple[float | None, ...] = (None, 0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
# Crops drawn per bound, and bounds drawn before the whole canvas is used.
TRIALS = 50
DRAWS = 8
