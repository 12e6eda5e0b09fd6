"""Workers wait for each other; if they disagree, all of them report why."""

import contextlib
import socket
import threading
import time
from dataclasses import replace

import pytest
from support.rendezvous import SECRET, connect, create_workers, read_line, send_description, wait_all

from ssd_dist.cluster.rendezvous import wait_for_workers
from ssd_dist.core.errors import RestartError, UsageError


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("secret", [b"", SECRET])
def test_workers_that_agree_succeed_and_release_the_port(count, secret, capsys):
    workers = create_workers(count)
    assert wait_all(workers, secrets=[secret] * count) == [None] * count
    assert capsys.readouterr().err == ""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", int(workers[0].addresses[0].rsplit(":")[1])))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"facts": {"config": "xyz"}}, ["worker 1", "config", "xyz", "abc"]),
        ({"index": 2}, ["two processes", "worker 2"]),
    ],
)
def test_a_disagreement_names_the_worker_and_the_values(change, words):
    workers = create_workers(3)
    workers[1] = replace(workers[1], **change)
    results = wait_all(workers, timeout=3.0)
    assert isinstance(results[0], UsageError)
    assert all(word in str(results[0]) for word in words), results[0]
    # The wrong worker gets the same error.
    assert str(results[1]) == str(results[0])


def test_a_wrong_clock_is_reported_with_the_worker():
    workers = create_workers(2)
    answers = []

    def connect_with_a_slow_clock():
        with connect(workers[0]) as worker:
            send_description(worker, workers[1], time=time.time() - 3600)
            answers.append(read_line(worker).decode())

    results = wait_all(workers[:1], first=connect_with_a_slow_clock)
    assert isinstance(results[0], UsageError)
    assert "worker 1" in str(results[0])
    assert "clock differs by -3600 s from the chief's" in answers[0]


@pytest.mark.parametrize("late", [0, 1])
def test_the_clock_of_a_worker_that_starts_minutes_later_is_accepted(monkeypatch, late):
    workers, results = create_workers(2), []
    now, jump = time.time, threading.Event()
    # Both workers use this clock. The early worker has waited for five minutes when the late one starts.
    monkeypatch.setattr(time, "time", lambda: now() + 300 * jump.is_set())
    early = threading.Thread(target=lambda: results.append(wait_for_workers(workers[1 - late], 10.0, b"")))
    early.start()
    time.sleep(0.5)
    jump.set()
    wait_for_workers(workers[late], 10.0, b"")
    early.join(10)
    assert results == [None]


def test_a_different_order_of_the_cluster_is_refused():
    workers = create_workers(3)
    first, second, third = workers[1].addresses
    workers[1] = replace(workers[1], addresses=(first, third, second))
    results = wait_all(workers, timeout=3.0)
    assert "has the cluster" in str(results[0])
    assert "has the cluster" in str(results[1])


def test_a_restarted_worker_replaces_its_old_connection():
    workers = create_workers(3)

    def connect_and_end_before_the_others_start():
        with connect(workers[0]) as first:
            send_description(first, workers[1])
            # The chief closes this connection of another program after it has read the earlier message.
            with connect(workers[0]) as other:
                other.sendall(b"?\n")
                assert read_line(other)
                assert read_line(other) == b""

        # The last worker connects before the first one connects again.
        last.start()
        time.sleep(0.5)

    results = []
    last = threading.Thread(target=lambda: results.append(wait_for_workers(workers[2], 10.0, b"")))
    assert wait_all(workers[:2], first=connect_and_end_before_the_others_start) == [None] * 2
    last.join(10)
    assert results == [None]


def test_a_worker_that_ended_and_does_not_restart_is_reported():
    workers = create_workers(3)
    with contextlib.ExitStack() as stack:

        def end_before_the_last_worker_connects():
            with connect(workers[0]) as ended:
                send_description(ended, workers[1])
            send_description(stack.enter_context(connect(workers[0])), workers[2])

        (result,) = wait_all(workers[:1], timeout=2.0, first=end_before_the_last_worker_connects)
    assert isinstance(result, RestartError)
    assert f"no connection from {workers[0].addresses[1]} in time" in str(result)


def test_workers_wait_until_the_chiefs_name_can_be_resolved(monkeypatch):
    workers = create_workers(2)
    create_connection, attempts = socket.create_connection, []

    def connect_late(address, timeout):
        attempts.append(address)
        if len(attempts) < 3:
            raise socket.gaierror(-2, "Name or service not known")
        return create_connection(address, timeout)

    monkeypatch.setattr(socket, "create_connection", connect_late)
    assert wait_all(workers) == [None, None]
    assert len(attempts) == 3


def test_a_missing_worker_is_reported():
    workers = create_workers(3)
    # Long enough for the second worker to connect on a busy machine.
    results = wait_all(workers[:2], timeout=4.0)
    assert isinstance(results[0], RestartError)
    assert workers[0].addresses[2] in str(results[0])
    assert workers[0].addresses[1] not in str(results[0])


def test_a_missing_chief_is_reported():
    workers = create_workers(2)
    with pytest.raises(RestartError, match=workers[0].addresses[0]):
        wait_for_workers(workers[1], 0.5, b"")


@pytest.mark.parametrize("index", [0, 1])
def test_a_port_in_use_is_reported(index):
    workers = create_workers(2)
    with socket.socket() as other:
        other.bind(("", int(workers[index].addresses[index].rsplit(":")[1])))
        other.listen()
        # A RestartError: after a restart the port may be free.
        with pytest.raises(RestartError, match="start again, or use another port") as error:
            wait_for_workers(workers[index], 1.0, b"")
    assert f"cannot listen on {workers[index].addresses[index]}" in str(error.value)


def test_a_worker_waits_for_a_port_that_an_earlier_worker_holds():
    workers = create_workers(2)
    with socket.socket() as earlier:
        earlier.bind(("", int(workers[1].addresses[1].rsplit(":")[1])))
        earlier.listen()
        threading.Timer(1.0, earlier.close).start()
        assert wait_all(workers) == [None, None]
