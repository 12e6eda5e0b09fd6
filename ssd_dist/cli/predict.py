"""Detects on your own pictures: python -m ssd_dist.cli.predict --model_dir=RUN --images='DIR/*.jpg' --output=DIR.

Writes each picture with its boxes and `detections.json` (COCO results, `image_id` is the file's path).
"""

from absl import flags

from ssd_dist.core.commands import define_override_flag, overrides_from_flags, required_flag, run_command
from ssd_dist.core.errors import UsageError


def main(_: list[str]) -> None:
    """Detects on the images of the flags and tells what could not be read."""
    model_dir, images, output = required_flag("model_dir"), required_flag("images"), required_flag("output")
    threshold = flags.FLAGS["score_threshold"].value
    # TensorFlow takes seconds to load: only once the flags are right.
    from ssd_dist.training.prediction import find_images, predict_images

    files = find_images(images)
    if not files:
        raise UsageError(f"--images={images} matches no file; quote the pattern, e.g. --images='photos/*.jpg'")
    written, unreadable = predict_images(
        model_dir, flags.FLAGS["checkpoint"].value, files, output, threshold, overrides_from_flags()
    )
    for name, reason in unreadable:
        print(f"skipped {name}: {reason}")
    print(f"{written} pictures and detections.json in {output}; {len(unreadable)} skipped")


def run_main() -> None:
    """Console script `ssd-predict`."""
    flags.DEFINE_string("model_dir", None, "Folder of a training run.")
    flags.DEFINE_string("checkpoint", "best", "best, last, or the path of a checkpoint.")
    flags.DEFINE_string("images", None, "A file, a folder or a quoted glob pattern.")
    flags.DEFINE_string("output", None, "Folder for the pictures and detections.json.")
    flags.DEFINE_float("score_threshold", 0.4, "Boxes below this score are not drawn; detections.json has them all.")
    define_override_flag()
    run_command(main)


if __name__ == "__main__":
    run_main()
