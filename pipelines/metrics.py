"""What a runner's console shows while the job runs: Beam counters and distributions under one namespace.

The manifest has the exact numbers; these are for watching, and count again what a runner repeats.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial

from apache_beam.metrics import Metrics

NAMESPACE = "prepare"


class Meter:
    """Counts and measures."""

    def __init__(self) -> None:
        self._counter = lru_cache(maxsize=None)(partial(Metrics.counter, NAMESPACE))
        self._distribution = lru_cache(maxsize=None)(partial(Metrics.distribution, NAMESPACE))

    def count(self, name: str, number: int = 1) -> None:
        """Adds to a counter."""
        self._counter(name).inc(number)

    def record(self, name: str, value: int) -> None:
        """Adds a value to a distribution."""
        self._distribution(name).update(value)

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Adds the microseconds that the block takes to a distribution."""
        start = time.perf_counter()
        yield
        self.record(name, round((time.perf_counter() - start) * 1e6))
