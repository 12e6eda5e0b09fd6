"""Emulates Google Cloud Storage in a separate process."""

import importlib.util
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from multihost.processes import free_ports


@contextmanager
def emulated_store(bucket: str) -> Iterator[str]:
    """Starts a store with one bucket and yields its address; skips the test if no emulator is installed."""
    if importlib.util.find_spec("gcp_storage_emulator") is None:
        pytest.skip("no gcp-storage-emulator; it is among the dev requirements")
    (port,) = free_ports(1)
    server = subprocess.Popen(
        [sys.executable, "-m", "gcp_storage_emulator", "start", "--port", str(port), "--in-memory", "--quiet",
         "--default-bucket", bucket],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("localhost", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://localhost:{port}"
    finally:
        server.terminate()
        server.wait(30)
