"""What a runner's console shows while the job runs: Beam counters and distributions under one namespace.

The manifest has the exact numbers; these are for watching, and count again what a runner repeats.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from apache_beam.metrics import Metrics

NAMESPACE = "prepare"


class Meter:
    """Counts and measures."""

    def count(self, name: str, number: int = 1) -> None:
        """Adds to a counter."""
        Metrics.counter(NAMESPACE, name).inc(number)

    def record(self, name: str, value: int) -> None:
        """Adds a value to a distribution."""
        Metrics.distribution(NAMESPACE, name).update(value)

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Adds the microseconds that the block takes to a distribution."""
        start = time.perf_counter()
        yield
        self.record(name, round((time.perf_counter() - start) * 1e6))
