"""Workers meet or are told, all of them, why not."""

import json
import socket
import threading
import time
from dataclasses import replace

import pytest
from multihost.processes import free_ports

from ssd_dist.cluster.rendezvous import WorkerDescription, wait_for_workers
from ssd_dist.core.errors import RestartError, UsageError


def gang_of(count):
    addresses = tuple(f"127.0.0.1:{port}" for port in free_ports(count))
    return [WorkerDescription(i, addresses, {"config": "abc"}) for i in range(count)]


def meet_all(gang, timeout=10.0, first=None):
    """What each worker's meeting ended with: None, or the error; `first` is called when the chief alone listens."""
    ends = [None] * len(gang)

    def one(number):
        try:
            wait_for_workers(gang[number], timeout)
        except (UsageError, RestartError) as error:
            ends[number] = error

    threads = [threading.Thread(target=one, args=[number]) for number in range(len(gang))]
    if first is None:
        # The chief last: the others have to wait for it.
        starting = list(reversed(threads))
    else:
        threads[0].start()
        call_when_listening(first)
        starting = threads[1:]
    for thread in starting:
        thread.start()
    for thread in threads:
        thread.join(timeout + 10)
        assert not thread.is_alive()
    return ends


def call_when_listening(action):
    for _ in range(100):
        try:
            return action()
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise AssertionError("the chief does not listen")


@pytest.mark.parametrize("count", [1, 2, 4])
def test_those_who_agree_meet_and_leave_the_port_free(count):
    gang = gang_of(count)
    assert meet_all(gang) == [None] * count
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", int(gang[0].addresses[0].rsplit(":")[1])))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"facts": {"config": "xyz"}}, ["worker 1", "config", "xyz", "abc"]),
        ({"index": 2}, ["two processes", "worker 2"]),
    ],
)
def test_a_disagreement_is_told_by_name(change, words):
    gang = gang_of(3)
    gang[1] = replace(gang[1], **change)
    ends = meet_all(gang, timeout=3.0)
    assert isinstance(ends[0], UsageError)
    assert all(word in str(ends[0]) for word in words), ends[0]
    # The one that is wrong hears it too, unless it was turned away before.
    assert isinstance(ends[1], UsageError | RestartError)


def test_a_clock_that_is_off_is_told_by_name():
    gang = gang_of(2)
    host, port = gang[0].addresses[0].split(":")
    said = {**vars(gang[1]), "facts": dict(gang[1].facts), "time": time.time() - 3600}
    answers = []

    def come_with_a_slow_clock():
        with socket.create_connection((host, int(port))) as worker:
            worker.sendall(json.dumps(said).encode() + b"\n")
            answers.append(worker.makefile().readline())

    ends = meet_all(gang[:1], first=come_with_a_slow_clock)
    assert isinstance(ends[0], UsageError)
    assert "worker 1" in str(ends[0])
    assert "clock is -3600 s off" in answers[0]


@pytest.mark.parametrize("late", [0, 1])
def test_one_that_comes_minutes_later_has_no_wrong_clock(monkeypatch, late):
    gang, ends = gang_of(2), []
    now, jump = time.time, threading.Event()
    # One clock for both; the other one has waited for five minutes when the late one starts.
    monkeypatch.setattr(time, "time", lambda: now() + 300 * jump.is_set())
    early = threading.Thread(target=lambda: ends.append(wait_for_workers(gang[1 - late], 10.0)))
    early.start()
    time.sleep(0.5)
    jump.set()
    wait_for_workers(gang[late], 10.0)
    early.join(10)
    assert ends == [None]


def test_another_order_of_the_cluster_is_refused():
    gang = gang_of(3)
    first, second, third = gang[1].addresses
    gang[1] = replace(gang[1], addresses=(first, third, second))
    ends = meet_all(gang, timeout=3.0)
    assert "sees the cluster" in str(ends[0])
    assert "sees the cluster" in str(ends[1])


def test_a_worker_that_ended_and_came_again_is_no_second_one():
    gang = gang_of(3)
    said = {**vars(gang[1]), "facts": dict(gang[1].facts), "time": time.time()}
    message = json.dumps(said).encode() + b"\n"
    host, port = gang[0].addresses[0].split(":")

    def end_before_the_others_come():
        with socket.create_connection((host, int(port))) as first:
            first.sendall(message)
            # The chief has read it when it takes the next one: a stranger that says nothing of ours.
            with socket.create_connection((host, int(port))) as stranger:
                stranger.sendall(b"?\n")
                assert stranger.recv(1) == b""

        # The last one is there before the first comes again.
        last.start()
        time.sleep(0.5)

    ends = []
    last = threading.Thread(target=lambda: ends.append(wait_for_workers(gang[2], 10.0)))
    assert meet_all(gang[:2], first=end_before_the_others_come) == [None] * 2
    last.join(10)
    assert ends == [None]


def test_a_worker_that_ended_and_does_not_come_again_is_named():
    gang = gang_of(2)
    said = {**vars(gang[1]), "facts": dict(gang[1].facts), "time": time.time()}
    host, port = gang[0].addresses[0].split(":")

    def come_and_end():
        # Gone before the chief reads it: another one is before it in the queue.
        with socket.create_connection((host, int(port))) as stranger:
            with socket.create_connection((host, int(port))) as worker:
                worker.sendall(json.dumps(said).encode() + b"\n")
            stranger.sendall(b"?\n")

    (end,) = meet_all(gang[:1], timeout=2.0, first=come_and_end)
    assert isinstance(end, RestartError)
    assert f"no word from {gang[0].addresses[1]}" in str(end)


def test_a_chief_without_a_name_yet_is_waited_for(monkeypatch):
    gang = gang_of(2)
    connect, asked = socket.create_connection, []

    def connect_late(address, timeout):
        asked.append(address)
        if len(asked) < 3:
            raise socket.gaierror(-2, "Name or service not known")
        return connect(address, timeout)

    monkeypatch.setattr(socket, "create_connection", connect_late)
    assert meet_all(gang) == [None, None]
    assert len(asked) == 3


def test_a_worker_that_does_not_come_is_named():
    gang = gang_of(3)
    # Long enough for the one that does come to be heard on a busy machine.
    ends = meet_all(gang[:2], timeout=4.0)
    assert isinstance(ends[0], RestartError)
    assert gang[0].addresses[2] in str(ends[0])
    assert gang[0].addresses[1] not in str(ends[0])


def test_a_chief_that_does_not_come_is_named():
    gang = gang_of(2)
    with pytest.raises(RestartError, match=gang[0].addresses[0]):
        wait_for_workers(gang[1], 0.5)


def test_strangers_at_the_port_do_no_harm():
    gang = gang_of(2)
    port = int(gang[0].addresses[0].rsplit(":")[1])
    chief = threading.Thread(target=wait_for_workers, args=[gang[0], 10.0])
    chief.start()
    for noise in (
        b"GET / HTTP/1.0\r\n\r\n",
        b'{"index": 9}\n',
        b"\xff\n",
        b'{"index": 7, "addresses": [], "facts": {}, "time": 0}\n',
    ):
        for _ in range(50):
            try:
                with socket.create_connection(("127.0.0.1", port)) as stranger:
                    stranger.sendall(noise)
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
    wait_for_workers(gang[1], 10.0)
    chief.join(10)
    assert not chief.is_alive()


@pytest.mark.parametrize("index", [0, 1])
def test_a_port_that_is_taken_is_named(index):
    gang = gang_of(2)
    with socket.socket() as other:
        other.bind(("", int(gang[index].addresses[index].rsplit(":")[1])))
        other.listen()
        # Another start may find it free.
        with pytest.raises(RestartError, match=f"cannot listen on {gang[index].addresses[index]}"):
            wait_for_workers(gang[index], 1.0)


def test_a_port_that_an_earlier_worker_still_has_is_waited_for():
    gang = gang_of(2)
    with socket.socket() as earlier:
        earlier.bind(("", int(gang[1].addresses[1].rsplit(":")[1])))
        earlier.listen()
        threading.Timer(1.0, earlier.close).start()
        assert meet_all(gang) == [None, None]
