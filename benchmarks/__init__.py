"""Benchmarks; importing the package sets the environment variables that the commands set, too."""

from ssd_dist.core.environment_variables import set_tensorflow_defaults

# Before any benchmark imports TensorFlow; processes that the benchmarks start inherit the variables.
set_tensorflow_defaults()
