"""Compares tf.data service with the input pipeline of the trainer: order of the batches, speed, bytes on the network.

The services run on this host, so only the processor limits the network. On a shared machine only the ratios count.
"""

import argparse
from contextlib import ExitStack
from pathlib import Path

import tensorflow as tf
from rich.console import Console
from rich.table import Table

from benchmarks.data_service.batch_order import check_service, check_streams
from benchmarks.data_service.throughput import LOCAL, Rate, measure_rates, name_variant
from benchmarks.data_service.training_input import make_local
from benchmarks.rows import Row, print_rows, write_rows
from benchmarks.shards import SETTINGS, generated_shards, with_online_targets
from ssd_dist.core.config import Config
from ssd_dist.core.config_files import load_config
from ssd_dist.data.shard_files import load_manifest

WORKERS = (1, 2)
NONE, SNAPPY = None, "SNAPPY"
# Cores of consumer and servers, and the services that are compared with the local pipeline on the consumer's cores.
LAYOUTS = {
    "both on the same 2 cores": ("0,1", "0,1", [(1, NONE), (1, SNAPPY), (2, NONE)]),
    "consumer and servers on one core each": ("0", "1", [(1, NONE), (1, SNAPPY)]),
}
# Images per second that a fast GPU trains on.
GPU_RATE = 1000


def measure_order(config: Config) -> list[tuple[str, str]]:
    """Describes the order of the batches for each way to use the service."""
    return [
        result for workers in WORKERS for check in (check_service, check_streams) for result in check(config, workers)
    ]


def measure_speed(config: Config) -> list[Row]:
    """Compares services with the local pipeline: speed with precomputed and online targets, and bytes per image."""
    rows, network_bytes = [], {}
    for targets, variant in (("online", with_online_targets(config)), ("precomputed", config)):
        for layout, (consumer, servers, services) in LAYOUTS.items():
            rates = measure_rates(variant, services, consumer, servers)
            for name in (name_variant(*service) for service in services):
                rows += _compare_rates(f"{targets}, {layout}: {name}", rates[name], rates[LOCAL])
            # Of the last rates, those of precomputed targets: the uniform borders of online crops compress better.
            network_bytes = {mode: rates[name_variant(1, mode)].network_bytes for mode in (NONE, SNAPPY)}
    return rows + _compare_bytes(config, network_bytes)


def _compare_rates(what: str, ours: Rate, local: Rate) -> list[Row]:
    milliseconds = [1e3 * rate.consumer_seconds for rate in (ours, local)]
    total = [1e3 * (rate.consumer_seconds + rate.server_seconds) for rate in (ours, local)]
    return [
        Row(what, "img/s", ours.images_per_second, local.images_per_second, LOCAL),
        Row("  CPU time of the consumer", "ms per image", *milliseconds, LOCAL),
        Row("  CPU time of all processes", "ms per image", *total, LOCAL),
    ]


def _compare_bytes(config: Config, network_bytes: dict[str | None, float]) -> list[Row]:
    """Compares the bytes per image over the network with those of the records that the local pipeline reads."""
    view = load_manifest(config.data).splits["train"].views[0]
    record = sum(shard.bytes for shard in view.shards) / sum(shard.examples for shard in view.shards)
    (batch,) = make_local(config).take(1)
    values = sum(part.numpy().nbytes for part in tf.nest.flatten(batch)) / len(batch.positions)
    compared = "records in the shards"
    rows = [Row("values of a batch", "bytes per image", values, record, compared)]
    for compression, sent in network_bytes.items():
        name = compression or "no compression"
        gigabits = [8e-9 * GPU_RATE * size for size in (sent, record)]
        rows.append(Row(f"over the network, {name}", "bytes per image", sent, record, compared))
        rows.append(Row(f"  for {GPU_RATE:,} img/s", "Gbit/s", *gigabits, compared))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="prepared dataset; without it, images are generated")
    parser.add_argument("--json", type=Path, help="JSON file to write the rows to")
    options = parser.parse_args()
    with ExitStack() as stack:
        if options.data:
            config = load_config(None, [*SETTINGS, f"data.dir={options.data}"])
        else:
            _, config = stack.enter_context(generated_shards())
        table = Table("service", "order of the batches")
        for result in measure_order(config):
            table.add_row(*result)
        Console(width=140).print(table)
        rows = measure_speed(config)
    print_rows(rows)
    if options.json:
        write_rows(rows, options.json)


if __name__ == "__main__":
    main()
