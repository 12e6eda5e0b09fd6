"""The kinds of files that `ssd-predict` reads and writes, and limits of its flags, known without TensorFlow."""

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
# Before the index of a camera, instead of the path of a video.
WEBCAM = "webcam:"
# Formats of labeling tools; `inference/preannotations.py` writes them.
ANNOTATION_FORMATS = ("coco", "cvat", "label_studio", "yolo", "voc")
# Tiles along each side of an image: 401 parts with 20.
MOST_TILES = 20


def is_video(source: str) -> bool:
    """Returns whether a value of `--images` is a video file or a webcam.

    >>> is_video("a/clip.MP4"), is_video("webcam:0"), is_video("photos")
    (True, True, False)
    """
    return source.startswith(WEBCAM) or source.lower().endswith(VIDEO_SUFFIXES)
