"""Tests prepare with an emulated object store: reading, writing, renaming, resuming, and reading with gcsfs."""

import json
import os

import pytest
from apache_beam.internal.gcp import auth
from google.api_core.client_options import ClientOptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from raw_sets import jpeg, labeled_images, make_coco, make_voc, make_yolo
from support.object_store import emulated_store

from pipelines.classes import ClassRules
from ssd_dist.core.config import Config
from ssd_dist.core.errors import DataError
from ssd_dist.core.manifest import Manifest
from ssd_dist.core.records import Record
from ssd_dist.core.tfrecord_io import read_records

BUCKET = "data"
OPTIONS = ("--no_auth", "--project=my-project-1")
SMALL = Config.model_validate({"model": {"input_size": 64}})


@pytest.fixture(scope="module")
def endpoint():
    """Starts an emulated store for all tests of this file; yields its address."""
    with emulated_store(BUCKET) as address:
        yield address


@pytest.fixture
def bucket(endpoint, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # Without this, Beam searches for credentials for 30 seconds before it continues without any.
    monkeypatch.setattr(auth._Credentials, "_credentials_init", True)
    client = storage.Client(
        project="my-project-1", credentials=AnonymousCredentials(), client_options=ClientOptions(api_endpoint=endpoint)
    )
    found = client.bucket(BUCKET)
    for blob in list(client.list_blobs(BUCKET)):
        blob.delete()
    return found


def upload(bucket, folder, name):
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.blob(f"{name}/{path.relative_to(folder)}").upload_from_filename(str(path))
    return f"gs://{BUCKET}/{name}"


def list_names(bucket):
    return {blob.name for blob in bucket.client.list_blobs(BUCKET)}


def test_voc_from_bucket_to_bucket(bucket, tmp_path, prepare):
    images = labeled_images(12)
    folder = make_voc(tmp_path / "voc", images, {"train": [*images, "ghost"]})
    source = upload(bucket, folder, "raw/voc")
    remote = prepare("voc", source, f"gs://{BUCKET}/out", config=SMALL, shards=3, options=OPTIONS)
    local = prepare("voc", folder, tmp_path / "out", config=SMALL, shards=3)
    assert remote == local
    assert remote.splits["train"].rejected_images == {"missing_annotation": 1}
    assert not [name for name in list_names(bucket) if ".tmp-" in name]

    import gcsfs

    store = gcsfs.GCSFileSystem(endpoint_url=os.environ["STORAGE_EMULATOR_HOST"], token="anon", project="my-project-1")
    path = f"{BUCKET}/out/dataset.json"
    manifest = Manifest.from_json(store.cat_file(path).decode(), path)
    assert manifest == remote
    ids = set()
    for shard in manifest.splits["train"].views[0].shards:
        data = store.cat_file(f"{BUCKET}/out/{shard.file}")
        assert data == (tmp_path / "out" / shard.file).read_bytes()
        with store.open(f"{BUCKET}/out/{shard.file}", "rb") as file:
            ids |= {Record.from_bytes(record).source_id for record in read_records(file, shard.file)}
    assert ids == set(images)
    rejected = [json.loads(line) for line in store.cat_file(f"{BUCKET}/out/train/rejected.jsonl").splitlines()]
    assert [line["reason"] for line in rejected] == ["missing_annotation"]


@pytest.mark.parametrize("train", ["../images/train", "train.txt", ["images/train", "images/more"]])
def test_yolo_from_a_bucket(bucket, tmp_path, prepare, train):
    folder = make_yolo(tmp_path / "yolo", {"a": ["0 .5 .5 .5 .5"], "b": None}, ["x"])
    make_yolo(folder, {"a": ["0 .5 .5 .2 .2"]}, ["x"], "more")
    (folder / "train.txt").write_text("/home/u/yolo/images/train/a.jpg\n./images/train/b.jpg\n")
    (folder / "data.yaml").write_text(json.dumps({"train": train, "names": ["x"]}))
    source = upload(bucket, folder, "raw/yolo")
    remote = prepare("yolo", source, tmp_path / "remote", config=SMALL, options=OPTIONS)
    local = prepare("yolo", folder, tmp_path / "local", config=SMALL)
    assert remote == local
    assert (remote.splits["train"].images, remote.splits["train"].rejected_images) == (2 + isinstance(train, list), {})


@pytest.mark.parametrize("kind", ["csv", "csv of another machine", "csv file", "tfrecord"])
def test_csv_and_tfrecord_files_from_a_bucket(bucket, tmp_path, prepare, kind):
    folder = tmp_path / "set"
    images = folder / ("photos/set" if kind == "csv of another machine" else "train")
    images.mkdir(parents=True)
    for number in range(3):
        (images / f"{number}.jpg").write_bytes(jpeg(number))
    prefix = {"csv of another machine": "/home/u/set/"}.get(kind, "")
    lines = [f"{prefix}{number}.jpg,x,5,5,30,30\n" for number in range(2)]
    (folder / "train.csv").write_text("filename,class,xmin,ymin,xmax,ymax\n" + "".join(lines))
    if kind == "tfrecord":
        prepare("csv", folder, tmp_path / "first", config=SMALL)
        (record,) = (tmp_path / "first/train").glob("*.tfrecord")
        (folder / "records").mkdir()
        (folder / "records/train.record").write_bytes(record.read_bytes())
    below = {"csv file": "/train.csv", "tfrecord": "/records"}.get(kind, "")
    source = upload(bucket, folder, "raw/set")
    input_format = kind.partition(" ")[0]
    remote = prepare(input_format, source + below, tmp_path / "remote", config=SMALL, options=OPTIONS)
    local = prepare(input_format, f"{folder}{below}", tmp_path / "local", config=SMALL)
    assert remote == local
    rejected = {} if kind == "tfrecord" else {"not_annotated": 1}
    assert (remote.splits["train"].images, remote.splits["train"].rejected_images) == (2, rejected)


def test_coco_with_a_pattern_a_second_split_and_a_missing_image(bucket, tmp_path, prepare):
    boxes = {"a.jpg": [(1, 5, 5, 30, 30)], "b.jpg": [], "c.jpg": [(2, 5, 5, 30, 30)]}
    folder = make_coco(tmp_path / "coco", boxes, {1: "x", 2: "y"})
    (folder / "train/b.jpg").unlink()
    source = upload(bucket, folder, "raw/coco")
    out = f"gs://{BUCKET}/coco"
    first = prepare("coco", f"{source}/annotations/*.json", out, config=SMALL, options=OPTIONS)
    assert first.splits["train"].rejected_images == {"missing_image": 1}
    fixed = ClassRules(fixed=first.classes)
    both = prepare("coco", source, out, "val", source_split="train", config=SMALL, rules=fixed, options=OPTIONS)
    assert set(both.splits) == {"train", "val"}
    assert both.leakage[0].images == 2


def test_resume_on_an_object_store(bucket, tmp_path, prepare):
    source = upload(bucket, make_voc(tmp_path / "voc", labeled_images(12)), "raw/voc")
    out = f"gs://{BUCKET}/resumed"
    manifest = prepare("voc", source, out, config=SMALL, shards=3, options=OPTIONS)
    first, second, _ = (shard.file for shard in manifest.splits["train"].views[0].shards)
    bucket.blob("resumed/dataset.json").delete()
    bucket.blob(f"resumed/{first}").delete()
    bucket.blob("resumed/train/.view00-x.tmp-1").upload_from_string("half")
    kept = bucket.get_blob(f"resumed/{second}").generation
    again = prepare("voc", source, out, config=SMALL, shards=3, options=OPTIONS, resume=True)
    assert again == manifest
    assert bucket.get_blob(f"resumed/{second}").generation == kept
    assert not [name for name in list_names(bucket) if ".tmp-" in name]


def test_missing_input_and_buckets_are_reported(bucket, tmp_path, prepare):
    with pytest.raises(DataError, match="nowhere"):
        prepare("voc", f"gs://{BUCKET}/nowhere", f"gs://{BUCKET}/x", config=SMALL, options=OPTIONS)
    source = upload(bucket, make_voc(tmp_path / "voc", labeled_images(3)), "raw/small")
    for paths in (("gs://no_bucket/raw", f"gs://{BUCKET}/x"), (source, "gs://no_bucket/x")):
        with pytest.raises(DataError, match=r"gs://no_bucket/.*check the name of the bucket and its permissions"):
            prepare("voc", *paths, config=SMALL, options=OPTIONS)
    with pytest.raises(DataError, match="val"):
        prepare("voc", source, f"gs://{BUCKET}/x", "val", config=SMALL, options=OPTIONS)
