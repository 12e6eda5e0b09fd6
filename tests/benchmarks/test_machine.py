"""The facts about the machine that `make bench` prints first."""

import os
from pathlib import Path

from benchmarks import machine


def test_the_machine_is_described(monkeypatch, capsys):
    monkeypatch.setattr(machine, "SIDE", 64)
    monkeypatch.setattr(machine, "COPIED_BYTES", 1000)
    machine.print_machine()
    (line,) = capsys.readouterr().out.splitlines()
    facts = dict(part.split(": ", 1) for part in line.split("; "))
    assert facts["cores"] == str(len(os.sched_getaffinity(0)))
    assert facts["processor"].rpartition(", ")[2] in {*machine.INSTRUCTION_SETS.values(), "unknown instructions"}


def test_processors_of_both_kinds_are_named(monkeypatch):
    files = {
        "model name\t: Fast CPU\nflags\t: sse avx avx2\n\nmodel name\t: second core\n": "Fast CPU, AVX2",
        "processor\t: 0\nFeatures\t: fp asimd\n": f"{os.uname().machine}, NEON",
    }
    for text, name in files.items():
        monkeypatch.setattr(Path, "read_text", lambda _, text=text: text)
        assert machine.name_processor() == name


def test_speeds_are_those_of_the_work_over_the_time(monkeypatch):
    monkeypatch.setattr(machine, "SIDE", 10)
    monkeypatch.setattr(machine, "COPIED_BYTES", 500)
    monkeypatch.setattr(machine, "time_once", lambda _: 1e-6)
    # 10 x 10 sums of 10 products and additions; each byte is read and written.
    assert abs(machine.measure_product() - 10 * 10 * 10 * 2 / 1e3) < 1e-9
    assert abs(machine.measure_copy() - 500 * 2 / 1e3) < 1e-9
