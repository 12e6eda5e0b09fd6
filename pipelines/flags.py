"""Defines the flags of prepare; imports neither Beam nor the readers, so that `--help` needs only the base package."""

from absl import flags  # type: ignore[import-untyped]

from ssd_dist.core.commands import define_config_flags

AUTO = "auto"
# The keys of `pipelines.detection.FORMATS`, in its order.
INPUT_FORMATS = (
    "labelme", "supervisely", "via3", "via", "vott", "label_studio", "create_ml", "cvat", "kitti", "dota",
    "visdrone", "wider", "keras_yolo", "coco", "yolo", "voc", "csv", "tfrecord",
)  # fmt: skip


def define_flags() -> None:
    """Defines the flags of prepare."""
    flags.DEFINE_enum(
        "input_format", AUTO, [AUTO, *INPUT_FORMATS], "Format of the annotations; auto recognizes it from the files."
    )
    flags.DEFINE_multi_string("input", [], "Folder, file or pattern of the annotations; repeat the flag for several.")
    flags.DEFINE_string("image_dir", "", "Folder of the images; by default the folder that the format defines.")
    flags.DEFINE_string("split", "", "Name of the only split to write, for example train; by default all splits.")
    flags.DEFINE_string(
        "source_split", "", "Name of the split in the source; by default that of --split, or all data with --split_by."
    )
    flags.DEFINE_string(
        "split_by",
        "",
        "Divides the source by a hash of the image id, e.g. train:0.8,val:0.1,test:0.1. By default train:0.8,val:0.2 "
        "for a source without splits, and for the training split of a source without a validation split; none "
        "switches this off.",
    )
    flags.DEFINE_string("output", None, "Folder for the shards and dataset.json.")
    flags.DEFINE_integer("shards", 0, "Number of shards; 0 derives it from the number of images.", lower_bound=0)
    flags.DEFINE_string("classes", "", "File with one class name per line; fixes the classes and their order.")
    flags.DEFINE_list("include_classes", [], "Names of the classes to keep; by default all.")
    flags.DEFINE_list("exclude_classes", [], "Names of the classes to omit.")
    flags.DEFINE_float(
        "max_rejected_fraction", 1.0, "Fails if a larger fraction of the images or boxes is rejected.", 0.0, 1.0
    )
    flags.DEFINE_integer("workers", 0, "Number of worker processes; 0 uses the default of the runner.", lower_bound=0)
    flags.DEFINE_bool("resume", False, "Keeps the finished shards of an interrupted run with the same flags.")
    flags.DEFINE_string(
        "survey", "", "JSON file for image counts and box sizes; with this flag, no shards are written."
    )
    define_config_flags()
