"""Tests atomic writes, retries, pattern matching and relative paths."""

import errno
import fcntl
import gzip
import io
import os
import zlib

import pytest
from apache_beam.io.filesystem import BeamIOError
from google.auth.exceptions import TransportError
from hypothesis import given
from hypothesis import strategies as st

from pipelines import beam_storage
from pipelines.annotations import Image, Problem
from pipelines.image_reading import READ_AHEAD, read_image, read_images
from ssd_dist.core import storage
from ssd_dist.core.errors import DataError, UsageError
from ssd_dist.core.storage import TEMPORARY


def test_a_file_is_written_atomically(tmp_path):
    path = tmp_path / "new/x.bin"
    with beam_storage.replace_file(str(path)) as file:
        file.write(b"half")
        assert not path.exists()
        assert [TEMPORARY in name.name for name in path.parent.iterdir()] == [True]
    assert path.read_bytes() == b"half"
    assert [name.name for name in path.parent.iterdir()] == ["x.bin"]


def write_half(path):
    with beam_storage.replace_file(str(path)) as file:
        file.write(b"new")
        raise RuntimeError


def test_a_failed_write_keeps_the_old_file_and_no_temporary_file(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError):
        write_half(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def fail_reads(monkeypatch, *errors):
    """Makes the next reads fail, one error each; returns the list of remaining errors."""
    remaining = list(errors)
    original_open = beam_storage.open_plain

    def flaky(path):
        if remaining:
            raise remaining.pop(0)
        return original_open(path)

    monkeypatch.setattr(beam_storage, "open_plain", flaky)
    monkeypatch.setattr(storage, "RETRY_PAUSES", (0.0, 0.0, 0.0))
    return remaining


def test_reads_are_retried(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"0123456789")
    fail_reads(monkeypatch, OSError("reset"), TimeoutError(), ConnectionError())
    assert beam_storage.read_bytes(str(tmp_path / "x")) == b"0123456789"
    fail_reads(monkeypatch, OSError("reset"))
    assert beam_storage.read_span(str(tmp_path / "x"), 2, 3) == b"234"


def test_permanent_errors_are_not_retried(tmp_path, monkeypatch):
    remaining = fail_reads(monkeypatch, PermissionError(), OSError("never reached"))
    with pytest.raises(PermissionError):
        beam_storage.read_bytes(str(tmp_path / "x"))
    assert len(remaining) == 1
    fail_reads(monkeypatch, *[OSError("down")] * (len(storage.RETRY_PAUSES) + 1))
    with pytest.raises(OSError, match="down"):
        beam_storage.read_bytes(str(tmp_path / "x"))


def test_a_refused_read_is_permanent(tmp_path, monkeypatch):
    class Forbidden(Exception):  # noqa: N818  (as Google's client names it)
        """The error of a cloud client for an object that the account may list, but not read."""

        code = 403

    remaining = fail_reads(monkeypatch, Forbidden(), OSError("never reached"))
    with pytest.raises(DataError, match=r"^gs://b/x: Forbidden; check the permissions of the account$"):
        beam_storage.read_text("gs://b/x")
    assert len(remaining) == 1
    monkeypatch.setattr(beam_storage.FileSystems, "open", lambda *_, **__: (_ for _ in ()).throw(Forbidden()))
    with pytest.raises(DataError, match=r"gs://b/x.json: Forbidden"):
        beam_storage.open_input("gs://b/x.json")
    # Not a rejected image: the credentials may have expired in the middle of the job.
    fail_reads(monkeypatch, Forbidden())
    with pytest.raises(DataError, match=r"gs://b/x.jpg: Forbidden"):
        read_image(Image("x", 0, 0, "", "x.jpg", "gs://b/x.jpg"))


@pytest.mark.parametrize(
    ("error", "damage"),
    [
        (EOFError(), True),
        (zlib.error("-3"), True),
        (gzip.BadGzipFile("no gzip"), True),
        (OSError("Invalid data stream"), True),  # bz2's
        (OSError(errno.EIO, "Input/output error"), False),
        (OSError(errno.ESTALE, "Stale file handle"), False),
        (ConnectionResetError(), False),  # without a number, as some clients raise it
        (TimeoutError(), False),
        (BeamIOError("read failed"), False),
    ],
)
def test_damaged_files_and_storage_errors_are_distinguished(error, damage):
    assert beam_storage.is_damage(error) == damage


@pytest.mark.parametrize("path", ["s3://b/o", "hdfs://h/o", "abc://x/y", "gs://bucket", "gs:/b/o"])
def test_paths_on_other_stores_are_rejected(path):
    with pytest.raises(UsageError, match=path.split(":")[0]):
        beam_storage.check_scheme(path)


@pytest.mark.parametrize("path", ["gs://b/o", "/data/x", "a:b/c", "here"])
def test_other_paths_are_accepted(path):
    beam_storage.check_scheme(path)


def test_a_store_that_does_not_answer_is_reported(monkeypatch):
    def fail(*_):
        raise BeamIOError("match failed", {"gs://b/*": TransportError("no route to host")})

    monkeypatch.setattr(beam_storage.FileSystems, "match", fail)
    with pytest.raises(DataError, match=r"gs://b/\*: the store does not answer \(TransportError\)"):
        beam_storage.match_files("gs://b/*")


def test_a_folder_lock_is_exclusive(tmp_path):
    with beam_storage.locked(str(tmp_path)):
        other = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)
    assert not list(tmp_path.iterdir())
    with beam_storage.locked("gs://b/o"):
        pass


def test_invalid_names_raise_file_not_found(tmp_path):
    for name in ("x" * 5000, "a/" * 3000 + "b"):
        with pytest.raises(FileNotFoundError):
            beam_storage.read_bytes(str(tmp_path / name))
    assert OSError(errno.ENAMETOOLONG, "").errno in beam_storage.IMPOSSIBLE_NAMES


def test_files_and_folders_are_distinguished(tmp_path):
    (tmp_path / "sub/deep").mkdir(parents=True)
    (tmp_path / "sub/deep/x.txt").write_text("x")
    assert beam_storage.exists(str(tmp_path / "sub"))
    assert beam_storage.exists(str(tmp_path / "sub/deep/x.txt"))
    assert not beam_storage.exists(str(tmp_path / "other"))
    assert [beam_storage.is_file(str(tmp_path / name)) for name in ("sub", "sub/deep/x.txt", "no")] == [
        False,
        True,
        False,
    ]
    assert beam_storage.list_files(str(tmp_path / "sub")) == []
    assert beam_storage.size(str(tmp_path / "sub/deep/x.txt")) == 1
    assert beam_storage.size(str(tmp_path / "no")) == -1
    (tmp_path / "o[1]").mkdir()
    (tmp_path / "o[1]/x").write_text("12")
    assert beam_storage.size(str(tmp_path / "o[1]/x")) == 2


def test_links_are_listed_like_their_targets(tmp_path):
    for name in ("set/a/x.jpg", "set/b/y.jpg", "elsewhere/deep/z.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x")
    for name, target in (
        ("far", tmp_path / "elsewhere"),
        ("lost.jpg", "nowhere.jpg"),
        # Cycles: a link to a parent folder, and two folders that link to each other.
        ("a/up", tmp_path / "set"),
        ("a/b", tmp_path / "set/b"),
        ("b/a", tmp_path / "set/a"),
    ):
        (tmp_path / "set" / name).symlink_to(target)
    below = [name.removeprefix(f"{tmp_path}/set/") for name in beam_storage.match_below(str(tmp_path / "set"), "**")]
    assert below == ["a/b/y.jpg", "a/x.jpg", "b/a/x.jpg", "b/y.jpg", "far/deep/z.jpg", "lost.jpg"]
    assert beam_storage.list_files(str(tmp_path / "set")) == [str(tmp_path / "set/lost.jpg")]
    assert beam_storage.match_files(str(tmp_path / "s?t/*/*/*.jpg")) == [
        str(tmp_path / "set" / name) for name in ("a/b/y.jpg", "b/a/x.jpg", "far/deep/z.jpg")
    ]


def test_files_are_matched_as_beam_matches_them(tmp_path, monkeypatch):
    for name in ("a/x.jpg", "a/b/y.jpg", "a/.h/z.txt", "a b/c.txt", "train-1", "a[1]/q.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    for pattern in ("*", "**", "a/*", "a/**", "*/*.jpg", "*/*", "train*", "a/x.jpg", "no", "no/*", "a/*/", "a?1?/*"):
        for path in (f"./{pattern}", str(tmp_path / pattern)):
            expected = beam_storage.FileSystems.match([path])[0].metadata_list
            assert beam_storage.match_files(path) == sorted(found.path for found in expected), path
        # Beam finds nothing for a pattern without a folder.
        expected = [path.removeprefix("./") for path in beam_storage.match_files(f"./{pattern}")]
        assert beam_storage.match_files(pattern) == sorted(expected), pattern


def test_wildcards_in_the_name_of_a_folder_are_literal(tmp_path):
    folder = tmp_path / "a[1]*"
    folder.mkdir()
    (folder / "x.txt").write_text("x")
    (tmp_path / "a1x").mkdir()
    (tmp_path / "a1x/y.txt").write_text("y")
    assert beam_storage.list_files(str(folder)) == [str(folder / "x.txt")]
    assert not beam_storage.is_pattern(str(folder))
    assert beam_storage.is_pattern(str(tmp_path / "*.txt"))


@given(lines=st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line)), limit=st.integers(31, 64))
def test_lines_are_complete_wherever_chunks_end(lines, limit):
    data = b"".join(line + b"\n" for line in lines)
    assert list(beam_storage.read_lines(io.BytesIO(data), limit)) == lines
    assert list(beam_storage.read_lines(io.BytesIO(data + b"end"), limit)) == [*lines, b"end"]


def test_a_very_long_line_is_split_into_pieces():
    pieces = list(beam_storage.read_lines(io.BytesIO(b"x" * 1000), 64))
    assert b"".join(pieces) == b"x" * 1000
    assert max(map(len, pieces)) <= 128


PARTS = st.sampled_from(["..", ".", "", "a", "\\", "/", "c:", "..\\.."])


@given(st.lists(PARTS, max_size=6).map("/".join) | st.text(max_size=40))
def test_relative_paths_never_leave_their_folder(name):
    clean = beam_storage.relative_path(name)
    if clean is not None:
        assert os.path.normpath(os.path.join("/root/images", clean)).startswith("/root/images/")


def test_pipes_and_devices_are_rejected(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "endless.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "endless.jpg"):
        (found,) = read_images([image(str(tmp_path / name))])
        assert found.reason == "unreadable"
        assert found.detail == f"{tmp_path / name}: is a device or a pipe; give a regular file"


def test_a_file_too_large_for_an_image_is_not_read(tmp_path):
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(beam_storage.MAX_ITEM_BYTES + 1)
    (found,) = read_images([image(str(tmp_path / "huge.jpg"))])
    assert (found.reason, "huge.jpg" in found.detail) == ("unreadable", True)


@pytest.mark.parametrize("failing", ["open", "write", "close"])
def test_a_full_disk_is_reported(tmp_path, monkeypatch, failing):
    class Full(io.FileIO):
        def write(self, data):
            raise_if("write")
            return super().write(data)

        def close(self):
            super().close()
            raise_if("close")

    def raise_if(step):
        if step == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def create(path, **_):
        raise_if("open")
        return Full(path, "wb")

    monkeypatch.setattr(beam_storage.FileSystems, "create", create)
    with pytest.raises(DataError, match="new cannot be written: No space left"):
        beam_storage.write_bytes(str(tmp_path / "new"), b"x")
    assert list(tmp_path.iterdir()) == []


def test_missing_write_permission_is_reported(tmp_path, monkeypatch):
    class ForbiddenError(Exception):
        code = 403

    monkeypatch.setattr(
        beam_storage.FileSystems, "create", lambda *_, **__: (_ for _ in ()).throw(ForbiddenError("no"))
    )
    with pytest.raises(DataError, match="new cannot be written: no; check the write permissions"):
        beam_storage.write_bytes(str(tmp_path / "new"), b"x")


def image(path, **rest):
    return Image("a", 0, 0, "list", path, path, **rest)


def test_local_and_remote_images_are_read_in_order(tmp_path, monkeypatch):
    read_paths = []

    def slow_read(path):
        read_paths.append(path)
        return path.encode()

    monkeypatch.setattr(beam_storage, "read_item", slow_read)
    paths = [f"gs://b/{number}" if number % 5 else f"/local/{number}" for number in range(60)]
    assert list(read_images(map(image, paths))) == [path.encode() for path in paths]
    assert sorted(read_paths) == sorted(paths)
    contents = read_images(map(image, [f"gs://b/{number}" for number in range(100)]))
    read_paths.clear()
    next(contents)
    assert len(read_paths) <= READ_AHEAD
    contents.close()


def test_an_image_with_a_problem_is_not_read(monkeypatch):
    monkeypatch.setattr(beam_storage, "read_item", lambda path: pytest.fail("read"))
    problem = Problem("broken_annotation", "x")
    assert list(read_images([image("gs://b/x", problem=problem), image("/x", problem=problem)])) == [problem] * 2


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    """Root may list every folder, so the error of the operating system is simulated."""

    def walk(folder, onerror, followlinks):
        onerror(PermissionError(errno.EACCES, "Permission denied", f"{folder}/sub"))
        return iter(())

    monkeypatch.setattr(beam_storage.os, "walk", walk)
    with pytest.raises(DataError, match=r"/sub: the folder cannot be read: Permission denied"):
        beam_storage.match_below(str(tmp_path), "**")
    for name in ("lost+found", ".Trash-1000"):
        monkeypatch.setattr(
            beam_storage.os,
            "walk",
            lambda folder, onerror, followlinks, name=name: iter(
                onerror(PermissionError(errno.EACCES, "Permission denied", f"{folder}/{name}")) or ()
            ),
        )
        assert beam_storage.match_below(str(tmp_path), "**") == []
