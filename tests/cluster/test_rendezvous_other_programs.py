"""Programs that are not workers of the job connect to the chief's port: they have no effect and are counted."""

import contextlib
import json
import random
import re
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from support.rendezvous import (
    SECRET,
    connect,
    create_workers,
    describe,
    read_line,
    send_description,
    sign,
    wait_all,
)

from ssd_dist.cluster import rendezvous_connections
from ssd_dist.cluster.rendezvous import WorkerDescription
from ssd_dist.cluster.rendezvous_messages import MAX_MESSAGE_BYTES, read_secret
from ssd_dist.core.errors import RestartError, UsageError

HTTP = b"GET / HTTP/1.1\r\nHost: chief\r\n\r\n"


def send_and_wait(chief: WorkerDescription, message: bytes | Callable[[bytes], bytes]) -> None:
    """Sends a message, or what a function returns for the greeting, and waits until the chief closes the connection."""
    with connect(chief) as connection, contextlib.suppress(ConnectionError):
        greeting = read_line(connection)
        connection.sendall(message if isinstance(message, bytes) else message(greeting))
        while connection.recv(1 << 16):
            pass


def count_ignored(warning: str) -> int:
    return int(re.search(r"ignored connections: (\d+)", warning)[1])


def list_hostile_descriptions(worker: WorkerDescription) -> list[bytes]:
    """Returns the content of messages that are wrong in one way each."""
    deep = b"[" * 100_000
    return [
        describe(worker, facts={"config": "abc"}, report=0).replace(b'"report": 0', b'"report": ' + deep),
        describe(worker, addresses=0).replace(b'"addresses": 0', b'"addresses": ' + deep + b"]" * 100_000),
        *(describe(worker, time=value) for value in (float("inf"), float("-inf"), float("nan"), "0", None, True, [0])),
        describe(worker, time=0).replace(b'"time": 0', b'"time": 1e999'),
        describe(worker, time=0).replace(b'"time": 0', b'"time": ' + b"9" * 5000),
        *(describe(worker, index=value) for value in ("1", 1.0, None, True, -1, 0, 2, 2**64, [1], {})),
        describe(worker, index=1).replace(b'"index": 1', b'"index": 1' + b"0" * 5000),
        *(describe(worker, addresses=value) for value in ("a:1", [1, 2], None, {"a": 1}, [["a:1"]], 0)),
        *(describe(worker, facts=value) for value in ([], None, "abc", {"config": 1}, {"config": ["abc"]})),
        *(describe(worker, report=value) for value in (None, 1, ["a"], {"a": 1})),
        # Surrogates without a partner, which UTF-8 cannot represent.
        describe(worker, report="\ud800"),
        describe(worker, facts={"config": "\udc80"}),
        describe(worker, **{"\udc80": "x"}),
        *(describe(worker, nonce=value) for value in ("", "f" * 31, "F" * 32, "f" * 33, "g" * 32, 1, None)),
        describe(worker, unknown=1),
        describe(worker).replace(b'"report": "", ', b""),
        describe(worker)[:-1],
        describe(worker) + b"}",
        describe(worker, report="x").replace(b'"x"', b'"\xff"'),
        describe(worker).decode().encode("utf-16"),
        *(json.dumps(value).encode() for value in ([], {}, 0, "", None, [describe(worker).decode()])),
        b"",
        b"\x00" * 100,
    ]


@pytest.mark.parametrize("secret", [b"", SECRET])
def test_invalid_descriptions_are_ignored_and_counted(secret: bytes, capsys: pytest.CaptureFixture) -> None:
    workers = create_workers(2)
    hostile = list_hostile_descriptions(workers[1])

    def send_all() -> None:
        for content in hostile:
            send_and_wait(workers[0], lambda greeting, content=content: sign(content, greeting, secret))

    assert wait_all(workers, 30.0, first=send_all, secrets=[secret] * 2) == [None] * 2
    assert count_ignored(capsys.readouterr().err) == len(hostile)


@pytest.mark.parametrize(
    "message",
    [HTTP, b"\n", b"\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n", b"\x16\x03\x01\x02\x00\x01\n", b"\x00\n", b"\xff\xfe\n",
     b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"0" * 64 + b" {}\n", b"0" * 64 + b"\n", b"{}\n",
     b"x" * (MAX_MESSAGE_BYTES + 1)],
)  # fmt: skip
def test_messages_of_other_programs_are_ignored_and_counted(message: bytes, capsys: pytest.CaptureFixture) -> None:
    workers = create_workers(2)
    assert wait_all(workers, first=lambda: send_and_wait(workers[0], message)) == [None] * 2
    warning = capsys.readouterr().err
    assert count_ignored(warning) == 1
    assert warning.startswith(f"warning: {workers[0].addresses[0]}: ignored connections: 1, the last from 127.0.0.1")


def mutate(message: bytes, rng: random.Random) -> bytes:
    """Returns a message with some bytes changed, removed, inserted or repeated."""
    data = bytearray(message)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            data[place : place + 1] = rng.randbytes(1)
        elif kind == 1:
            del data[place : place + rng.randint(1, 40)]
        elif kind == 2:
            data[place:place] = rng.randbytes(rng.randint(1, 40))
        elif kind == 3:
            data[place:place] = data[place : place + rng.randint(1, 40)]
        else:
            word = rng.choice([b"NaN", b"Infinity", b"null", b"[[[", b"{", b'"', b"\\ud800", b"-1", b"1e400", b"\n"])
            data[place : place + rng.randint(0, 10)] = word
    return bytes(data)


def test_random_changes_of_a_description_do_not_stop_the_chief(capsys: pytest.CaptureFixture) -> None:
    workers = create_workers(2)
    rng = random.Random(0)
    contents = []
    while len(contents) < 400:
        content = mutate(describe(workers[1]), rng)
        with contextlib.suppress(ValueError, RecursionError):
            fields = json.loads(content)
            if isinstance(fields, dict) and fields.get("index") == 1:
                # It may be a valid description of worker 1, which would be refused for its content.
                continue
        contents.append(content)
    messages: list[bytes | Callable[[bytes], bytes]] = []
    for content in contents:
        # Half of them are signed, so that the parser reads them; an end of line within them breaks the signature.
        signed = rng.random() < 0.5
        messages.append((lambda greeting, content=content: sign(content, greeting)) if signed else content + b"\n")

    def send_all() -> None:
        for message in messages:
            send_and_wait(workers[0], message)

    assert wait_all(workers, 120.0, first=send_all) == [None] * 2
    assert count_ignored(capsys.readouterr().err) == len(messages)


@contextlib.contextmanager
def send_slowly(chief: WorkerDescription) -> Iterator[None]:
    """Sends one byte every 0.1 s, without end, on a connection that opens at once."""
    stop = threading.Event()
    with connect(chief) as connection:

        def send() -> None:
            with contextlib.suppress(OSError):
                while not stop.wait(0.1):
                    connection.sendall(b"0")

        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(30)


def test_slow_and_silent_connections_delay_no_worker(monkeypatch, capsys: pytest.CaptureFixture) -> None:
    # Longer than the chief waits for its workers: none of these connections reaches its deadline.
    monkeypatch.setattr(rendezvous_connections, "CONNECTION_SECONDS", 100.0)
    workers = create_workers(3)
    with contextlib.ExitStack() as stack:

        def connect_other_programs() -> None:
            for _ in range(5):
                stack.enter_context(connect(workers[0]))
            stack.enter_context(send_slowly(workers[0]))

        assert wait_all(workers, 60.0, first=connect_other_programs) == [None] * 3
    assert capsys.readouterr().err == ""


def test_a_slow_connection_is_closed_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous_connections, "CONNECTION_SECONDS", 1.0)
    workers = create_workers(2)
    with contextlib.ExitStack() as stack:
        (error,) = wait_all(workers[:1], 3.0, first=lambda: stack.enter_context(send_slowly(workers[0])))
    assert isinstance(error, RestartError)
    assert f"no connection from {workers[1].addresses[1]} in time (ignored connections: 1, " in str(error)


def test_many_connections_do_not_use_up_the_open_files(capsys: pytest.CaptureFixture) -> None:
    workers = create_workers(2)
    with contextlib.ExitStack() as stack:

        def connect_other_programs() -> None:
            for _ in range(100):
                stack.enter_context(connect(workers[0]))

        assert wait_all(workers, 60.0, first=connect_other_programs) == [None] * 2
    # At most 64 connections wait at a time, including the one of the worker.
    assert count_ignored(capsys.readouterr().err) >= 100 - 64


@pytest.mark.parametrize("known", ["chief", "worker"])
def test_another_secret_is_reported_by_the_worker_and_counted_by_the_chief(known: str) -> None:
    workers = create_workers(2)
    secrets = [SECRET, b""] if known == "chief" else [b"", SECRET]
    chief, worker = wait_all(workers, 4.0, secrets=secrets)
    assert isinstance(worker, UsageError)
    assert str(worker).startswith(f"the chief at {workers[0].addresses[0]} has another SSD_DIST_SECRET; set")
    assert isinstance(chief, RestartError)
    assert "ignored connections: 1, the last from 127.0.0.1; 1 with another SSD_DIST_SECRET)" in str(chief)


def test_without_the_secret_nobody_can_act_as_a_worker(capsys: pytest.CaptureFixture) -> None:
    workers = create_workers(2)
    recorded = []

    def record_and_replay() -> None:
        # What an observer of an earlier connection has seen, and a description that would otherwise stop the job.
        with connect(workers[0]) as earlier:
            recorded.append(sign(describe(workers[1]), read_line(earlier), SECRET))
        send_and_wait(workers[0], recorded[0])
        wrong = describe(workers[1], facts={"config": "xyz"})
        for guessed in (b"", b"wrong", SECRET[:-1]):
            send_and_wait(workers[0], lambda greeting, guessed=guessed: sign(wrong, greeting, guessed))
        # A valid signature of other content.
        send_and_wait(workers[0], lambda greeting: sign(describe(workers[1]), greeting, SECRET)[:65] + wrong + b"\n")

    assert wait_all(workers, first=record_and_replay, secrets=[SECRET] * 2) == [None] * 2
    assert "; 5 with another SSD_DIST_SECRET" in capsys.readouterr().err


def test_without_the_secret_nobody_can_act_as_the_chief() -> None:
    workers = create_workers(2)
    port = int(workers[0].addresses[0].rsplit(":", 1)[1])
    with socket.create_server(("127.0.0.1", port)) as impostor:

        def send_back() -> None:
            connection, _ = impostor.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"ssd-dist " + b"0" * 32 + b"\n")
                # The only message with a valid signature that it has.
                connection.sendall(read_line(connection))
                connection.recv(1)

        thread = threading.Thread(target=send_back)
        thread.start()
        (error,) = wait_all(workers[1:], secrets=[SECRET])
        thread.join(30)
    assert isinstance(error, UsageError)
    assert "another SSD_DIST_SECRET" in str(error)


@pytest.mark.parametrize(
    "greeting", [b"HTTP/1.1 400 Bad Request\r\n", b"\xff" * 100 + b"\n", b"ssd-dist 0\n", b"", b"\n"]
)
def test_another_program_on_the_chiefs_port_is_reported(greeting: bytes) -> None:
    workers = create_workers(2)
    port = int(workers[0].addresses[0].rsplit(":", 1)[1])
    with socket.create_server(("127.0.0.1", port)) as other:
        other.settimeout(0.1)
        stop = threading.Event()

        def answer() -> None:
            while not stop.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = other.accept()
                    with connection:
                        connection.sendall(greeting)

        thread = threading.Thread(target=answer)
        thread.start()
        (error,) = wait_all(workers[1:], 1.0)
        stop.set()
        thread.join(30)
    assert isinstance(error, RestartError)
    assert str(error).startswith(f"the chief at {workers[0].addresses[0]} cannot be reached: ")


def test_a_warning_escapes_what_a_worker_has_sent(capsys: pytest.CaptureFixture) -> None:
    workers = create_workers(2)
    answers = []

    def send_control_characters() -> None:
        with connect(workers[0]) as worker:
            send_description(worker, workers[1], facts={"config": "\x1b[31m\nxyz"})
            answers.append(read_line(worker))

    (error,) = wait_all(workers[:1], first=send_control_characters)
    assert isinstance(error, UsageError)
    assert b"xyz" in answers[0]
    assert b"\x1b" not in answers[0]


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this host has no IPv6")
def test_workers_find_each_other_by_ipv6_addresses() -> None:
    assert wait_all(create_workers(3, "[::1]")) == [None] * 3


def test_the_secret_is_read_from_the_environment() -> None:
    assert read_secret({}) == b""
    # A file with the secret often ends with a line break.
    assert read_secret({"SSD_DIST_SECRET": " abc\n"}) == b"abc"
    # Bytes that are not UTF-8.
    assert read_secret({"SSD_DIST_SECRET": "\udcff"}) == b"\xff"
