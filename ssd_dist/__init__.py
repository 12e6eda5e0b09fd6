"""Trains MobileNetV2-SSD detectors from labelled images, on one machine or many hosts."""

__version__ = "0.1.0"
