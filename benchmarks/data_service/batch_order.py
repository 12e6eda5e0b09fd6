"""Checks whether batches arrive from tf.data service in the order of the training, with the same random draws.

A batch is identified by the checksum of all its values. Two steps never have equal batches, because their images or
their random draws differ.
"""

import hashlib
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import tensorflow as tf
from tensorflow.data.experimental import service

from benchmarks.data_service.servers import Server, read_streams, start_service, start_streams
from benchmarks.data_service.training_input import make_local, make_stream
from benchmarks.shards import with_online_targets
from ssd_dist.core.config import Config

OFF, DYNAMIC = service.ShardingPolicy.OFF, service.ShardingPolicy.DYNAMIC
# Batches received per check, and batches of the training among which they are looked up.
RECEIVED = 40
KNOWN = 120
# The consumer, or a worker, stops after as many batches.
STOP = 7
# Seconds for which a worker stays away.
ABSENCE = 20.0
UNKNOWN = -1


class StepFinder:
    """Finds the steps of batches by their content."""

    def __init__(self, batches: tf.data.Dataset) -> None:
        self._steps = {_hash_batch(batch): step for step, batch in enumerate(batches.take(KNOWN))}

    def find(self, batches: Iterable) -> list[int]:
        """Returns the step of each of the first `RECEIVED` batches; `UNKNOWN` for a batch of no known step."""
        return [self._steps.get(_hash_batch(batch), UNKNOWN) for batch in islice(iter(batches), RECEIVED)]


def describe_order(steps: Sequence[int], first: int = 0) -> str:
    """Describes how the steps of received batches differ from `first`, `first + 1`, ...; "exact" if they do not."""
    expected = list(range(first, first + len(steps)))
    wrong = [number for number, pair in enumerate(zip(steps, expected, strict=True)) if len(set(pair)) > 1]
    if not wrong:
        return "exact"
    known = [step for step in steps if step != UNKNOWN]
    parts = [f"{len(wrong)} of {len(steps)} batches out of order, from batch {wrong[0]} on"]
    for count, what in (
        (len(known) - len(set(known)), "received twice"),
        (len(set(expected) - set(known)), "not received"),
        (len(steps) - len(known), "of no step"),
    ):
        if count:
            parts.append(f"{count} {what}")
    return ", ".join(parts)


def check_service(config: Config, workers: int) -> list[tuple[str, str]]:
    """Describes the order of a service whose workers process the dataset that the consumer has registered."""
    finder = StepFinder(make_local(config))
    label = f"{workers} worker{'s' if workers > 1 else ''}"
    found = []
    with start_service(workers) as (address, servers):

        def describe(batches: tf.data.Dataset, first: int = 0, **options: object) -> str:
            served = batches.apply(_distribute(address, **options))
            return _describe_or_fail(lambda: describe_order(finder.find(served), first))

        for mode in (OFF, DYNAMIC):
            found.append((f"{label}, {mode.name}", describe(make_stream(config), mode=mode)))
            coordinated = {"mode": mode, "job_name": mode.name, "consumer_index": 0, "num_consumers": 1}
            found.append((f"{label}, {mode.name}, coordinated reads", describe(make_stream(config), **coordinated)))
        list(make_stream(config).apply(_distribute(address)).take(STOP))
        found.append((f"{label}, OFF, consumer restarted at step {STOP}", describe(make_stream(config, STOP), STOP)))
        if workers == 1:
            found.append(("1 worker, OFF, shards checked while read", describe(make_stream(config, checked=True))))
            online = make_stream(with_online_targets(config))
            found.append(("1 worker, OFF, online targets", describe(online)))
            served = make_stream(config).apply(_distribute(address))
            found.append(("1 worker, OFF, worker killed and restarted", _interrupt(served, servers[0], finder)))
    return found


def check_streams(config: Config, streams: int) -> list[tuple[str, str]]:
    """Describes the order of one service per stream; each registers its own dataset and checks the shards."""
    label = f"{streams} service{'s' if streams > 1 else ''} of one worker each, read in turns"
    found = []
    for name, variant in (("", config), (", online targets", with_online_targets(config))):
        finder = StepFinder(make_local(variant, streams))
        with start_streams(variant, streams) as servers:
            steps = finder.find(read_streams(servers, variant))
            found.append((f"{label}{name}", describe_order(steps)))
    finder = StepFinder(make_local(config, streams))
    with start_streams(config, streams, STOP) as servers:
        result = describe_order(finder.find(read_streams(servers, config)), STOP * streams)
        found.append((f"{label}, consumer and services restarted at step {STOP}", result))
    with start_streams(config, streams) as servers:
        result = _interrupt(read_streams(servers, config), servers[-1], finder)
        found.append((f"{label}, one service killed and restarted", result))
    return found


def _interrupt(batches: tf.data.Dataset, server: Server, finder: StepFinder) -> str:
    """Kills a server after `STOP` batches and restarts it later; describes what the consumer receives and when."""
    iterator = iter(batches)
    received = [next(iterator) for _ in range(STOP)]
    server.stop()
    result = []

    def read_on() -> None:
        result.append(_describe_or_fail(lambda: describe_order(finder.find([*received, *islice(iterator, RECEIVED)]))))

    reader = threading.Thread(target=read_on)
    reader.start()
    reader.join(ABSENCE)
    waited = "no error during" if reader.is_alive() else "ended within"
    server.start()
    reader.join(10 * ABSENCE)
    if reader.is_alive():
        server.stop()
        return f"{waited} {ABSENCE:.0f} s of absence, then no batch for {10 * ABSENCE:.0f} s"
    return f"{waited} {ABSENCE:.0f} s of absence, then: {result[0]}"


def _distribute(address: str, mode: service.ShardingPolicy = OFF, **options: object) -> Callable:
    return service.distribute(mode, f"grpc://{address}", **options)


def _describe_or_fail(describe: Callable[[], str]) -> str:
    try:
        return describe()
    except tf.errors.OpError as error:
        # The cause of an error in a worker is the last Python error in the message.
        causes = re.findall(r"^\w*Error: .*", error.message, re.MULTILINE)
        return (
            causes[-1]
            if causes
            else f"{type(error).__name__}: {error.message.rpartition('}} ')[2].partition(' [Op:')[0]}"
        )


def _hash_batch(batch: tuple) -> bytes:
    digest = hashlib.sha256()
    for values in tf.nest.flatten(batch):
        digest.update(values.numpy().tobytes())
    return digest.digest()
