"""What a runner's console shows while the job runs: Beam counters and distributions under one namespace.

The manifest has the exact numbers; these are for watching, and count again what a runner repeats.
"""

import time
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

    def time(self, name: str) -> "Stopwatch":
        """Adds the microseconds that a block takes to a distribution: `with meter.time(name): ...`."""
        return Stopwatch(self, name)


class Stopwatch:
    """Times one block; what an exception ends is not recorded."""

    def __init__(self, meter: Meter, name: str) -> None:
        self._meter = meter
        self._name = name
        self._start = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._meter.record(self._name, round((time.perf_counter() - self._start) * 1e6))
