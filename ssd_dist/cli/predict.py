"""Detects on your own pictures: python -m ssd_dist.cli.predict --model_dir=RUN --images='DIR/*.jpg' --output=DIR.

--saved_model=DIR takes an export (`ssd-export --format=saved_model`) in place of a run.

Writes each picture with its boxes and `detections.json` (COCO results, `image_id` is the file's path).
"""

from absl import flags

from ssd_dist.core.commands import define_override_flag, overrides_from_flags, required_flag, run_command
from ssd_dist.core.errors import UsageError


def main(_: list[str]) -> None:
    """Detects on the images of the flags and tells what could not be read."""
    images, output = required_flag("images"), required_flag("output")
    model_dir, saved_model = flags.FLAGS["model_dir"].value, flags.FLAGS["saved_model"].value
    if bool(model_dir) == bool(saved_model):
        raise UsageError("give either --model_dir=RUN or --saved_model=DIR")
    threshold = flags.FLAGS["score_threshold"].value
    # TensorFlow takes seconds to load: only once the flags are right.
    from ssd_dist.training.prediction import find_images, open_run, predict_images

    files = find_images(images)
    if not files:
        raise UsageError(f"--images={images} matches no file; quote the pattern, e.g. --images='photos/*.jpg'")
    if saved_model:
        from ssd_dist.export.formats import open_saved_model

        detector = open_saved_model(saved_model)
    else:
        detector = open_run(model_dir, flags.FLAGS["checkpoint"].value, overrides_from_flags())
    written, unreadable = predict_images(detector, files, output, threshold)
    for name, reason in unreadable:
        print(f"skipped {name}: {reason}")
    print(f"{written} pictures and detections.json in {output}; {len(unreadable)} skipped")


def run_main() -> None:
    """Console script `ssd-predict`."""
    flags.DEFINE_string("model_dir", None, "Folder of a training run.")
    flags.DEFINE_string("saved_model", None, "Folder of an export to use in place of a run.")
    flags.DEFINE_string("checkpoint", "best", "best, last, or the path of a checkpoint.")
    flags.DEFINE_string("images", None, "A file, a folder or a quoted glob pattern.")
    flags.DEFINE_string("output", None, "Folder for the pictures and detections.json.")
    flags.DEFINE_float("score_threshold", 0.4, "Boxes below this score are not drawn; detections.json has them all.")
    define_override_flag()
    run_command(main)


if __name__ == "__main__":
    run_main()
