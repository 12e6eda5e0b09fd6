"""Tests augmented copies from prepare to the trainer: which splits have them, their counts, and checks on resume."""

import json

import pytest
from raw_sets import digests, labeled_images, make_voc

from ssd_dist.core.config import Config
from ssd_dist.core.errors import DataError

VIEWS = Config.model_validate({"model": {"input_size": 64}, "data": {"views": 3}})
PLAIN = Config.model_validate({"model": {"input_size": 64}})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, prepare):
    """Prepares a training split with three augmented copies and a validation split from one config."""
    root = tmp_path_factory.mktemp("views")
    images = labeled_images(48)
    names = list(images)
    source = make_voc(root / "voc", images, {"train": names[:32], "val": names[32:]})
    for split in ("train", "val"):
        manifest = prepare("voc", source, root / "out", split, config=VIEWS)
    return source, root / "out", manifest


def test_only_the_training_split_has_augmented_copies(prepared):
    _, output, manifest = prepared
    assert {name: len(split.views) for name, split in manifest.splits.items()} == {"train": 3, "val": 1}
    assert not list((output / "val").glob("view01-*"))
    for view in manifest.splits["train"].views:
        assert view.examples == manifest.splits["train"].images == 32


def test_the_trainer_reads_both_splits_with_one_config(prepared):
    pipeline = pytest.importorskip("ssd_dist.data.pipeline")
    _, output, manifest = prepared
    data = VIEWS.data.model_copy(update={"dir": str(output)})
    config = VIEWS.model_copy(update={"data": data, "train": VIEWS.train.model_copy(update={"global_batch_size": 4})})
    manifest.check_fits(config, "dataset.json")
    plan = pipeline.plan_training(config.data, config.train, manifest.splits["train"])
    assert len(plan.files) == 3
    batches = list(pipeline.eval_batches(config.data, config.model.input_size, manifest.splits["val"], 4, 16).take(4))
    assert sorted(int(index) for batch in batches for index in batch.indices) == list(range(16))


def test_the_trainer_rejects_crop_settings_that_differ_from_the_manifest(prepared):
    pipeline = pytest.importorskip("ssd_dist.data.pipeline")
    _, output, manifest = prepared
    train = manifest.splits["train"]
    assert train.windows.model_dump() == {"largest_expansion": 4.0, "smallest_crop": 0.3}
    assert manifest.splits["val"].windows is None

    def plan(split=train, **data):
        tree = {"model": {"input_size": 64}, "data": {"views": 3, "dir": str(output), **data}}
        config = Config.model_validate(tree | {"train": {"global_batch_size": 4}})
        return pipeline.plan_training(config.data, config.train, split)

    other = {"augmentation": {"smallest_crop": 0.5}}
    with pytest.raises(DataError, match=r"data\.augmentation\.smallest_crop: prepared 0\.3, config 0\.5.*prepare"):
        plan(**other)
    # Without crops there are no settings to compare, and older manifests do not record the settings.
    assert len(plan(views=1, **other).files) == len(plan(targets="online", **other).files) == 1
    assert len(plan(train.model_copy(update={"windows": None}), **other).files) == 3


def test_copy_zero_equals_the_output_of_a_job_without_further_copies(prepared, prepare, tmp_path):
    source, output, _ = prepared
    prepare("voc", source, tmp_path, "train", config=PLAIN)
    plain = {name: value for name, value in digests(tmp_path / "train").items() if name.startswith("view00-")}
    views = digests(output / "train")
    assert plain
    assert plain == {name: value for name, value in views.items() if name.startswith("view00-")}


def test_the_counts_of_each_copy_add_up(prepared, records_of):
    _, output, manifest = prepared
    split = manifest.splits["train"]
    plain = records_of(output, manifest, view=0)
    differing = 0
    for number, view in enumerate(split.views):
        records = records_of(output, manifest, view=number)
        assert set(records) == set(plain)
        histogram = view.positives_per_object.histogram
        assert sum(positives * objects for positives, objects in histogram.items()) == sum(
            len(record.targets.anchors) for record in records.values()
        )
        assert sum(histogram.values()) == sum(len(record.objects.labels) for record in records.values())
        assert sum(view.objects_per_class.values()) == sum(histogram.values())
        assert view.images_per_class == {
            name: sum(name in record.objects.names for record in records.values()) for name in manifest.classes
        }
        # Every object of every copy has at least one positive anchor.
        assert view.positives_per_object.minimum >= 1
        differing += sum(records[name].encoded != plain[name].encoded for name in plain)
    assert differing > 32
    # A crop may lose an object at its edge; the boxes of the split are those of copy 0, the whole image.
    assert sum(split.views[0].objects_per_class.values()) == split.boxes


def test_the_config_bounds_the_crops(prepared, prepare, tmp_path):
    source, _, _ = prepared
    # Without expansion and cropping, every copy equals copy 0.
    bounds = {"largest_expansion": 1.0, "smallest_crop": 1.0}
    config = Config.model_validate({"model": {"input_size": 64}, "data": {"views": 2, "augmentation": bounds}})
    prepare("voc", source, tmp_path, "train", config=config)
    files = {name: value for name, value in digests(tmp_path / "train").items() if name.startswith("view")}
    plain = {name: value for name, value in files.items() if name.startswith("view00")}
    assert plain
    assert {name.replace("view01", "view00"): value for name, value in files.items() if "view01" in name} == plain


def test_a_job_with_other_crop_settings_is_not_resumed(prepared, prepare, tmp_path):
    source, _, _ = prepared
    prepare("voc", source, tmp_path, "train", config=VIEWS)
    augmentation = VIEWS.data.augmentation.model_copy(update={"smallest_crop": 0.6})
    data = VIEWS.data.model_copy(update={"augmentation": augmentation})
    with pytest.raises(DataError, match=r"smallest_crop was 0\.3, is 0\.6"):
        prepare("voc", source, tmp_path, "train", config=VIEWS.model_copy(update={"data": data}), resume=True)


def test_rejections_are_counted_once_for_any_number_of_copies(prepare, tmp_path):
    source = make_voc(tmp_path / "voc", labeled_images(10))
    (source / "JPEGImages/image_00003.jpg").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"1 of 10 images were rejected, more than --max_rejected_fraction=0\.09"):
        prepare("voc", source, tmp_path / "strict", config=VIEWS, max_rejected_fraction=0.09)
    assert not (tmp_path / "strict/dataset.json").exists()
    split = prepare("voc", source, tmp_path / "out", config=VIEWS, max_rejected_fraction=0.3).splits["train"]
    assert (split.images_read, split.images, split.rejected_images) == (10, 9, {"unreadable": 1})
    assert [view.examples for view in split.views] == [9, 9, 9]


def test_leakage_counts_source_images_for_any_number_of_copies(prepared, prepare, tmp_path):
    source, _, _ = prepared
    (source / "ImageSets/Main/both.txt").write_text("image_00003\nimage_00043\n")
    prepare("voc", source, tmp_path, "train", config=VIEWS)
    (leak,) = prepare("voc", source, tmp_path, "val", source_split="both", config=VIEWS).leakage
    assert (leak.splits, leak.images, leak.examples) == (("train", "val"), 1, ("image_00003.jpg",))


def test_the_number_of_copies_does_not_affect_evaluation_splits(prepared, prepare):
    source, output, manifest = prepared
    more = VIEWS.model_copy(update={"data": VIEWS.data.model_copy(update={"views": 5})})
    assert prepare("voc", source, output, "val", config=more, resume=True) == manifest
    with pytest.raises(DataError, match=r"data\.views was 3, is 5"):
        prepare("voc", source, output, "train", config=more)


def test_images_per_class_are_unknown_if_a_shard_was_written_by_an_earlier_version(prepared, prepare, tmp_path):
    source, _, _ = prepared
    prepare("voc", source, tmp_path, "train", config=PLAIN)
    first = next((tmp_path / "train/.parts").glob("00000-of-*.json"))
    report = json.loads(first.read_text())
    assert report["views"][0].pop("images_per_class")
    first.write_text(json.dumps(report))
    manifest = prepare("voc", source, tmp_path, "train", config=PLAIN, resume=True)
    assert manifest.splits["train"].views[0].images_per_class is None
    # A new preparation counts them again.
    manifest = prepare("voc", source, tmp_path, "train", config=PLAIN)
    assert sum(manifest.splits["train"].views[0].images_per_class.values()) > 0
