"""Detects objects in image files: python -m ssd_dist.cli.predict --model_dir=RUN --images='DIR/*.jpg' --output=DIR.

Writes each image with its boxes, `detections.csv` with the boxes that are drawn, and `detections.json` with all
detections (COCO results format). --format=cvat, for example, also writes them as annotations that CVAT imports.
--images=VIDEO or --images=webcam:0 writes a video with boxes. --export=DIR uses an export instead of a run.
"""

import dataclasses

from absl import flags  # type: ignore[import-untyped]

from ssd_dist.core.commands import (
    define_override_flag,
    local_path,
    overrides_from_flags,
    refuse_flags,
    required_flag,
    run_command,
)
from ssd_dist.core.environment_variables import set_tensorflow_defaults
from ssd_dist.core.errors import DataError, UsageError
from ssd_dist.core.file_kinds import ANNOTATION_FORMATS, MOST_TILES, is_video
from ssd_dist.core.printable import print_line
from ssd_dist.core.stage_line import StageLine, show_stages


def main(_: list[str]) -> None:
    """Detects objects in the images given by the flags and prints which files could not be read."""
    output, sources = required_flag("output"), flags.FLAGS["images"].value
    local_path("output")
    if not sources:
        raise UsageError(f"--images is missing: {flags.FLAGS['images'].help}")
    given = [name for name in ("model_dir", "export", "saved_model") if flags.FLAGS[name].value]
    if len(given) != 1:
        where = ", ".join(f"--{name}" for name in given) or "no model"
        raise UsageError(f"{where}: exactly one model source is required; give --model_dir=RUN or --export=DIR")
    if given != ["model_dir"]:
        refuse_flags(["set", "checkpoint"], beside=given[0])
    videos = [source for source in sources if is_video(source)]
    if videos:
        refuse_flags(["format", "coco_ids"], beside=f"images={videos[0]}")
        if len(sources) > 1:
            raise UsageError(f"--images={videos[0]}: a video cannot be combined with other --images; give it alone")
    with show_stages("start TensorFlow", flags.FLAGS["model_dir"].value or "", "predict") as stages:
        lines = predict(given[0], sources, output, stages)
    for line in lines:
        print_line(line)


def predict(given: str, sources: list[str], output: str, stages: StageLine) -> list[str]:
    """Detects objects and returns the lines to print.

    Args:
      given: the flag that gives the detector.
      sources: the values of `--images`.
      output: the folder to write to.
      stages: shows the progress.

    Raises:
      DataError: if no image could be read.
      UsageError, CheckpointError: for other errors that the user can fix.
    """
    # TensorFlow takes seconds to import, so it is imported after the flags are checked.
    from ssd_dist.evaluation.result_files import CocoIds, read_coco_ids
    from ssd_dist.evaluation.thresholds import parse_thresholds
    from ssd_dist.export.exported_detector import open_exported_detector
    from ssd_dist.inference.image_files import find_images
    from ssd_dist.inference.loaded_detector import open_run
    from ssd_dist.inference.prediction import PredictionOutputs, predict_images

    videos = [source for source in sources if is_video(source)]
    files = [] if videos else find_images(sources)
    stages.show("load the detector")
    folder = flags.FLAGS[given].value
    if given == "model_dir":
        detector = open_run(folder, flags.FLAGS["checkpoint"].value, overrides_from_flags())
    else:
        detector = open_exported_detector(folder)
    if size := flags.FLAGS["batch_size"].value:
        detector = dataclasses.replace(detector, batch_size=size)
    tiles = flags.FLAGS["tiles"].value
    ids = CocoIds(tuple(range(1, len(detector.classes) + 1)))
    if annotations := flags.FLAGS["coco_ids"].value:
        ids = read_coco_ids(annotations, detector.classes, files)
    outputs = PredictionOutputs(
        parse_thresholds(flags.FLAGS["score_threshold"].value, detector.classes),
        ids,
        flags.FLAGS["pictures"].value,
        tuple(dict.fromkeys(flags.FLAGS["format"].value)),
    )
    if videos:
        from ssd_dist.inference.video import predict_video

        frames, shown, path = predict_video(detector, videos[0], output, outputs, stages, tiles)
        return [f"{path or output}: {shown} detections on {frames} frames"]
    processed, shown, unreadable = predict_images(detector, files, output, outputs, stages, tiles)
    lines = [f"skipped {name}: {reason}" for name, reason in unreadable]
    if not processed:
        for line in lines:
            print_line(line)
        raise DataError(f"--images: none of the {len(files)} files could be read; the lines above give the reasons")
    return [*lines, f"{output}: {shown} detections on {processed} images; {len(unreadable)} files skipped"]


def run_main() -> None:
    """Console script `ssd-predict`."""
    flags.DEFINE_string("model_dir", None, "Folder of a training run.")
    flags.DEFINE_string(
        "export", None, "Folder or file of an export (SavedModel, TFLite, ONNX or OpenVINO), used instead of a run."
    )
    flags.DEFINE_string("saved_model", None, "The same as --export.")
    flags.DEFINE_string("checkpoint", "best", "best, last, or the path of a checkpoint.")
    flags.DEFINE_multi_string(
        "images",
        [],
        "An image file, a folder, or a quoted glob pattern, local or on gs://; repeat the flag for several. Or a video "
        "file, or webcam:0 for the first camera, which is read until Ctrl-C.",
    )
    flags.DEFINE_string("output", None, "Folder for images, detections.csv and detections.json; created if missing.")
    flags.DEFINE_string(
        "score_threshold",
        "0.4",
        "Minimum score of the boxes that are drawn and listed in detections.csv. Either one number (0.4), or numbers "
        "per class (0.4,CLASS:0.3), or the JSON file of ssd-evaluate --output or export.json of ssd-export, for the "
        "threshold of the best F1 of each class.",
    )
    flags.DEFINE_bool("pictures", True, "Write the images with their boxes; --nopictures writes only the detections.")
    flags.DEFINE_multi_enum(
        "format",
        [],
        ANNOTATION_FORMATS,
        "Also write the drawn boxes as annotations for labeling tools: coco, cvat, label_studio, yolo or voc; repeat "
        "the flag for several.",
    )
    flags.DEFINE_string("coco_ids", None, "COCO annotation file; the results use its image and category ids.")
    flags.DEFINE_integer(
        "batch_size",
        None,
        "Images or tiles per batch; by default eval.batch_size, or 16 for an export.",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "tiles",
        1,
        "N: also detect objects in N x N overlapping tiles of each image. Finds small objects in large images; takes "
        "about 1 + N * N times as long.",
        lower_bound=1,
        upper_bound=MOST_TILES,
    )
    define_override_flag()
    set_tensorflow_defaults()
    run_command(main)


if __name__ == "__main__":
    run_main()
