"""Beam counters and distributions that the runner's console shows while the job runs, in one namespace.

They are for monitoring only: work that a runner repeats is counted again. The manifest contains the exact numbers.
"""

import time
from functools import lru_cache, partial

from apache_beam.metrics import Metrics

NAMESPACE = "prepare"


class Meter:
    """Updates Beam counters and distributions by name."""

    def __init__(self) -> None:
        self._counter = lru_cache(maxsize=None)(partial(Metrics.counter, NAMESPACE))
        self._distribution = lru_cache(maxsize=None)(partial(Metrics.distribution, NAMESPACE))

    def count(self, name: str, number: int = 1) -> None:
        """Adds a number to a counter."""
        self._counter(name).inc(number)

    def record(self, name: str, value: int) -> None:
        """Adds a value to a distribution."""
        self._distribution(name).update(value)

    def time(self, name: str) -> "Stopwatch":
        """Returns a context manager that adds the duration of its block, in microseconds, to a distribution."""
        return Stopwatch(self, name)


class Stopwatch:
    """Measures the duration of one block; a block that raises is not recorded."""

    def __init__(self, meter: Meter, name: str) -> None:
        self._meter = meter
        self._name = name
        self._start = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._meter.record(self._name, round((time.perf_counter() - self._start) * 1e6))
