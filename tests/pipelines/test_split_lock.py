"""Jobs and training runs that use one split at the same time."""

import fcntl
import hashlib
import threading

import pytest
from raw_sets import jpeg, labeled_images, make_voc

from pipelines.split_lock import check_job_id, lock_splits
from ssd_dist.core.config import Config
from ssd_dist.core.errors import DataError
from ssd_dist.core.manifest import Manifest
from ssd_dist.core.storage import LOCK_NAME, lock_shared

SMALL = Config.model_validate({"model": {"input_size": 64}})


def test_a_second_job_for_the_same_split_is_refused_and_changes_nothing(tmp_path, prepare):
    source = make_voc(tmp_path / "voc", labeled_images(4))
    prepare("voc", source, tmp_path / "out", config=SMALL)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with lock_splits(str(tmp_path / "out"), ["train"], "first"):
        with pytest.raises(DataError, match="another prepare job is writing this split"):
            prepare("voc", make_voc(tmp_path / "other", labeled_images(3)), tmp_path / "out", config=SMALL)
        # Another split may be prepared meanwhile.
        manifest = prepare("voc", source, tmp_path / "out", split="val", source_split="train", config=SMALL)
        assert manifest.splits["val"].images == 4
    for path, data in before.items():
        assert path.name == "dataset.json" or path.read_bytes() == data


def test_a_split_that_a_training_run_reads_is_not_prepared_again(tmp_path, prepare):
    source = make_voc(tmp_path / "voc", labeled_images(4))
    prepare("voc", source, tmp_path / "out", config=SMALL)
    with lock_shared(str(tmp_path / "out/train" / LOCK_NAME)) as is_held:
        assert is_held
        with pytest.raises(DataError, match="a training run is reading it"):
            prepare("voc", source, tmp_path / "out", config=SMALL)
    assert prepare("voc", source, tmp_path / "out", config=SMALL).splits["train"].images == 4


def test_several_runs_read_a_split_but_none_while_it_is_written(tmp_path):
    path = str(tmp_path / "out/train" / LOCK_NAME)
    with lock_splits(str(tmp_path / "out"), ["train"], "a"), lock_shared(path) as is_held:
        assert not is_held
    with lock_shared(path) as first, lock_shared(path) as second:
        assert first
        assert second
    with lock_shared(str(tmp_path / "nothing")) as is_held:
        assert is_held


def test_file_systems_without_locks_do_not_stop_a_job(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock_splits(str(tmp_path), ["train"], "a"), lock_shared(str(tmp_path / "train" / LOCK_NAME)) as is_held:
        assert is_held


def test_the_id_of_a_later_job_stops_the_earlier_one_where_there_are_no_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    with lock_splits(str(tmp_path), ["train"], "early"):
        check_job_id(str(tmp_path), "train", "early")
        with lock_splits(str(tmp_path), ["train"], "late"):
            with pytest.raises(DataError, match="another prepare job has started to write this split"):
                check_job_id(str(tmp_path), "train", "early")
            # A submitted job has no id.
            check_job_id(str(tmp_path), "train", "")


def test_resume_notices_images_that_changed_or_were_supplied(tmp_path, prepare):
    source = make_voc(tmp_path / "voc", labeled_images(12))
    missing = source / "JPEGImages/image_00003.jpg"
    data = missing.read_bytes()
    missing.unlink()
    first = prepare("voc", source, tmp_path / "out", config=SMALL, shards=3, resume=True)
    assert (first.splits["train"].images, first.splits["train"].rejected_images) == (11, {"missing_image": 1})
    missing.write_bytes(data)
    (source / "JPEGImages/image_00007.jpg").write_bytes(jpeg(99))
    resumed = prepare("voc", source, tmp_path / "out", config=SMALL, shards=3, resume=True)
    afresh = prepare("voc", source, tmp_path / "afresh", config=SMALL, shards=3)
    assert resumed == afresh
    assert resumed.splits["train"].images == 12


def test_concurrent_jobs_leave_the_result_of_one_of_them(tmp_path, prepare):
    sources = [make_voc(tmp_path / name, labeled_images(count)) for name, count in (("a", 9), ("b", 5))]
    outcomes = []

    def run(source):
        try:
            outcomes.append(prepare("voc", source, tmp_path / "out", config=SMALL).splits["train"].images)
        except DataError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=run, args=(source,)) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    numbers = [outcome for outcome in outcomes if isinstance(outcome, int)]
    assert numbers
    assert all("one at a time" in text or "another prepare" in text for text in outcomes if isinstance(text, str))
    # The manifest and the shards are those of the same job.
    split = Manifest.from_json((tmp_path / "out/dataset.json").read_text(), "dataset.json").splits["train"]
    assert split.images == numbers[-1]
    for shard in split.views[0].shards:
        assert hashlib.sha256((tmp_path / "out" / shard.file).read_bytes()).hexdigest() == shard.sha256
