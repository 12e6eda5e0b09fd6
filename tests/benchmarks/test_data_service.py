"""The benchmark of tf.data service: its check of the order finds changes, and its servers serve and end."""

import pytest
from support.synthetic import write_dataset
from tensorflow.data.experimental import service

from benchmarks.data_service.batch_order import RECEIVED, UNKNOWN, StepFinder, describe_order
from benchmarks.data_service.servers import read_streams, start_service, start_streams
from benchmarks.data_service.training_input import make_local, make_stream
from ssd_dist.core.config import Config


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("service") / "data"
    config = Config.model_validate(
        {
            "data": {"dir": str(folder)},
            "model": {"input_size": 64},
            "train": {"global_batch_size": 6, "seed": 5},
        }
    )
    write_dataset(folder, config, {"train": 24}, shards=4)
    return config


@pytest.mark.parametrize(
    ("steps", "first", "expected"),
    [
        ([0, 1, 2, 3], 0, "exact"),
        ([7, 8, 9], 7, "exact"),
        ([7, 8, 9], 0, "3 of 3 batches out of order, from batch 0 on, 3 not received"),
        ([0, 2, 1, 3], 0, "2 of 4 batches out of order, from batch 1 on"),
        # Two workers that each send the whole dataset.
        ([0, 0, 1, 1], 0, "3 of 4 batches out of order, from batch 1 on, 2 received twice, 2 not received"),
        ([0, UNKNOWN], 0, "1 of 2 batches out of order, from batch 1 on, 1 not received, 1 of no step"),
    ],
)
def test_changes_of_the_order_are_described(steps, first, expected):
    assert describe_order(steps, first) == expected


def test_batches_are_identified_by_their_values(config):
    finder = StepFinder(make_local(config))
    assert finder.find(make_local(config)) == list(range(RECEIVED))
    other_seed = config.model_copy(update={"train": config.train.model_copy(update={"seed": 6})})
    assert finder.find(make_local(other_seed)) == [UNKNOWN] * RECEIVED


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_service_with_one_worker_keeps_the_order_and_its_processes_end(config):
    with start_service(1) as (address, workers):
        served = make_stream(config, 2).apply(service.distribute(service.ShardingPolicy.OFF, f"grpc://{address}"))
        assert StepFinder(make_local(config)).find(served) == list(range(2, 2 + RECEIVED))
    assert [worker.process.poll() is None for worker in workers] == [False]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_streams_read_in_turns_keep_the_order(config):
    """The shards are checked while they are read, which needs Python code inside the servers."""
    with start_streams(config, 2) as servers:
        steps = StepFinder(make_local(config, 2)).find(read_streams(servers, config))
    assert steps == list(range(RECEIVED))
