"""Mutated configs and manifests are read, or rejected in one line with the exit code for their kind.

SSD_DIST_FUZZ=2000 sets the number of mutations of each kind; the default takes a few seconds.
"""

import copy
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_manifest import make_manifest

from ssd_dist.core import errors
from ssd_dist.core.config import Config
from ssd_dist.core.config_files import dump_config, load_config
from ssd_dist.core.manifest import Manifest

MUTATIONS = int(os.environ.get("SSD_DIST_FUZZ", 200))
# A lone surrogate, a byte order mark, and a character that reverses the direction of the text, all in UTF-8.
PIECES = (
    b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xe2\x80\xae", b"\0", b"\xff", b"\x1b[31m", b"\n", b"\r", b"\t", b"\t- ",
    b"'", b'"', b"[", b"]", b"{", b"}", b":", b": ", b", ", b"- ", b"? ", b"#", b"&a ", b"*a", b"!!binary ",
    b"!!python/name:os.system ", b"|\n", b"<<: ", b"---\n", b"%YAML 1.1\n", b"null", b"true", b"yes", b"NaN",
    b"Infinity", b"-1", b"1e999", b"0x_", b"1:30", b"9" * 30, b"9" * 5000, b"2026-11-25", b"=", b"~", b"../../x",
    b"/etc/passwd", b"<script>", b"=1+1", b"${HOME}", b"${NONE_OF_THESE}", b"${A:-", b"\\", b"\\u0000", b"\\ud800",
    b"\\UFFFFFFFF", b"[" * 3000, b'{"a":' * 3000, b"x" * 10, b"a: 1\n" * 50, b"extends: x.yaml\n", b"extends: /\n",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 2**31, 2**63, 2**64, 10**400, -(10**400), 1e308, float("nan"), float("inf"), "", "x",
    "..", "/", "../x", "a\0b", "a\nb", "\x1b[2J", "\u202e", "\ud800", "x" * 10_000, [], [[]], [[[]]], {}, {"": 0},
    {"a": {"b": []}}, [None] * 3, ["x", "x"], "9" * 5000, "1", "nan", "ab" * 32, [0.1] * 7, [[2.0]] * 6,
)  # fmt: skip


def mutate_bytes(text: bytes, rng: random.Random) -> bytes:
    """Inserts, replaces, removes, repeats or swaps pieces of a text."""
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(text) + 1)
        end = min(len(text), start + rng.choice([0, 1, 2, 10, 100, 1000]))
        middle = rng.choice([rng.choice(PIECES), b"", text[start:end] * 2, rng.randbytes(rng.randint(1, 8))])
        text = text[:start] + middle + text[end:]
    return text


def mutate_tree(tree: Any, rng: random.Random) -> Any:
    """Replaces, removes or adds values anywhere in a tree of JSON values."""
    for _ in range(rng.randint(1, 3)):
        node = tree
        while isinstance(node, dict | list) and node:
            key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
            if not (isinstance(node[key], dict | list) and node[key]) or rng.random() < 0.15:
                break
            node = node[key]
        else:
            continue
        action = rng.random()
        if action < 0.6:
            node[key] = copy.deepcopy(rng.choice(VALUES))
        elif action < 0.75:
            del node[key]
        elif isinstance(node, dict):
            node[rng.choice(["extra", "", "a.b", "../x", "x" * 10_000, "a\nb", "\ud800"])] = copy.deepcopy(node[key])
        else:
            node.append(copy.deepcopy(node[key]))
    return tree


def check_outcome(read: Callable[[], object], code: int, capsys: pytest.CaptureFixture[str]) -> bool:
    """Runs `read` as a command does; returns whether it succeeded."""
    exit_code = errors.exit_with_message(lambda: read() and None)
    printed = capsys.readouterr()
    assert printed.out == ""
    if exit_code == 0:
        assert printed.err == ""
        return True
    assert exit_code == code
    assert printed.err.startswith("error: ")
    assert len(printed.err.splitlines()) == 1
    assert len(printed.err) < 1100
    assert printed.err.removesuffix("\n").isprintable()
    return False


@pytest.mark.parametrize("seed", range(4))
def test_mutated_configs_are_read_or_rejected_in_one_line(seed, tmp_path, capsys):
    rng = random.Random(seed)
    shipped = [path.read_bytes() for path in sorted(Path(__file__).parents[2].glob("configs/*.yaml"))]
    (tmp_path / "base.yaml").write_text("train: {epochs: 3}\n")
    path = tmp_path / "x.yaml"
    outcomes = set()
    for number in range(MUTATIONS // 4):
        if number % 3 == 2:
            tree = mutate_tree(Config().model_dump(mode="json"), rng)
            text = json.dumps(tree).encode()
        else:
            text = mutate_bytes(rng.choice([*shipped, dump_config(Config()).encode()]), rng)
        path.write_bytes(text)
        overrides = [rng.choice(["", "train.epochs=3", f"a.b={text[:40]!r}", os.fsdecode(text[:60])])]
        outcomes.add(check_outcome(lambda: load_config(path, list(filter(None, overrides))), 2, capsys))  # noqa: B023
    assert outcomes == {True, False}, "some mutations are valid, and some are not"


def test_mutated_manifests_are_read_or_rejected_in_one_line(capsys):
    rng = random.Random(0)
    text = make_manifest().to_json()
    outcomes = set()
    for number in range(MUTATIONS):
        if number % 2:
            mutated = json.dumps(mutate_tree(json.loads(text), rng)).encode()
        else:
            mutated = mutate_bytes(text.encode(), rng)

        def read(data=mutated):
            manifest = Manifest.from_json(data, "OUT/dataset.json")
            # What the other commands do with a manifest that was read.
            assert Manifest.from_json(manifest.to_json(), "OUT/dataset.json") == manifest
            manifest.check_fits(Config(), "OUT/dataset.json")

        outcomes.add(check_outcome(read, 3, capsys))
    # Few mutations of a manifest are valid, because its counts must add up.
    assert outcomes == {True, False}
