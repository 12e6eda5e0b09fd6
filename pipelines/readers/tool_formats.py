"""The formats of annotation tools and datasets that have a parser of their own, and how their files are recognized."""

import re
from collections.abc import Callable, Mapping

from pipelines.readers.create_ml import parse_create_ml
from pipelines.readers.cvat_xml import list_cvat_images, parse_cvat_xml
from pipelines.readers.dota import parse_dota
from pipelines.readers.keras_yolo import parse_keras_yolo
from pipelines.readers.kitti import parse_kitti
from pipelines.readers.label_studio import parse_label_studio
from pipelines.readers.label_studio_paths import remove_upload_prefix, to_upload_name
from pipelines.readers.labelme import parse_labelme
from pipelines.readers.supervisely import parse_supervisely
from pipelines.readers.tool_files import ToolFormat
from pipelines.readers.via import parse_via
from pipelines.readers.via3 import parse_via3
from pipelines.readers.visdrone import parse_visdrone
from pipelines.readers.vott import parse_vott
from pipelines.readers.wider import parse_wider

NUMBER = r"-?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?"


def has_keys(*names: str) -> Callable[[str], bool]:
    """Returns a test of whether a JSON text contains all these keys; `a|b` accepts either."""
    patterns = [re.compile(rf'"(?:{name})"\s*:') for name in names]
    return lambda head: head[:1] in ("{", "[") and all(pattern.search(head) for pattern in patterns)


def has_lines(pattern: str, header: str = "") -> Callable[[str], bool]:
    """Returns a test of whether the first line that is not a header has this form."""
    line_form, header_form = re.compile(pattern), re.compile(header) if header else None

    def recognize(head: str) -> bool:
        lines = (line.strip() for line in head.splitlines())
        first = next((line for line in lines if line and not (header_form and header_form.match(line))), "")
        return bool(line_form.fullmatch(first))

    return recognize


def is_array_with(*names: str) -> Callable[[str], bool]:
    """Returns a test of whether a JSON text is an array and contains all these keys."""
    contains = has_keys(*names)
    return lambda head: head.startswith("[") and contains(head)


def is_cvat_for_video(head: str) -> bool:
    """Returns whether a text is an export "CVAT for video", which contains tracks instead of images."""
    return "<annotations>" in head and bool(re.search(r"<track\s", head)) and not re.search(r"<image\s", head)


# Formats that are recognized only to explain that they are not supported: suffix, test of the beginning of a file, and
# the explanation.
UNSUPPORTED: tuple[tuple[str, Callable[[str], bool], str], ...] = (
    (
        ".xml",
        is_cvat_for_video,
        'an export "CVAT for video", which is not supported; export "CVAT for images" or COCO from CVAT',
    ),
    (
        ".json",
        lambda head: has_keys("items")(head) and has_keys("dm_format_version|categories|annotations")(head),
        "a Datumaro dataset, which is not supported; export COCO, or convert it to COCO with datumaro",
    ),
    (".json", has_keys("item", "slots", "annotations"), "a file of Darwin (V7), which is not supported; export COCO"),
)

# By the value of --input_format, in the order in which they are tried.
TOOL_FORMATS: Mapping[str, ToolFormat] = {
    "labelme": ToolFormat(
        "labelme annotations", ".json", has_keys("shapes", "imagePath|version|flags"), parse_labelme, is_per_image=True
    ),
    "supervisely": ToolFormat(
        "Supervisely annotations", ".json", has_keys("objects", "size"), parse_supervisely, is_per_image=True
    ),
    "via3": ToolFormat("VIA 3 project", ".json", has_keys("project", "metadata", "file"), parse_via3),
    "via": ToolFormat("VIA annotations", ".json", has_keys("filename", "regions"), parse_via),
    "vott": ToolFormat("VoTT export", ".json", has_keys("assets?", "regions|lastVisitedAssetId"), parse_vott),
    "label_studio": ToolFormat(
        "Label Studio export",
        ".json",
        lambda head: is_array_with("annotations|completions", "data")(head) or is_array_with("annotator")(head),
        parse_label_studio,
        other_name=remove_upload_prefix,
        to_stored_name=to_upload_name,
    ),
    "create_ml": ToolFormat(
        "Create ML annotations",
        ".json",
        lambda head: is_array_with("image|imagefilename", "annotations?")(head) and not has_keys("data")(head),
        parse_create_ml,
    ),
    "cvat": ToolFormat(
        "CVAT for images export",
        ".xml",
        lambda head: (
            "<annotations>" in head
            and bool(re.search(r"<image\s|<meta>|<version>", head))
            and not is_cvat_for_video(head)
        ),
        parse_cvat_xml,
        list_images=list_cvat_images,
    ),
    "kitti": ToolFormat(
        "KITTI labels", ".txt", has_lines(rf"[A-Za-z_]\S*(?:\s+{NUMBER}){{14,15}}"), parse_kitti, is_per_image=True
    ),
    "dota": ToolFormat(
        "DOTA labels",
        ".txt",
        has_lines(rf"(?:{NUMBER}\s+){{8}}[A-Za-z][\w-]*(?:\s+\d)?", header=r"(imagesource|gsd):"),
        parse_dota,
        is_per_image=True,
    ),
    "visdrone": ToolFormat(
        "VisDrone annotations",
        ".txt",
        has_lines(r"-?\d+,-?\d+,\d+,\d+,[01],\d+,-?\d+,-?\d+,?"),
        parse_visdrone,
        is_per_image=True,
    ),
    "wider": ToolFormat(
        "WIDER FACE annotations",
        ".txt",
        lambda head: bool(re.match(r"\S.*\.\w{3,4}\s*\n\d+\s*\n(?:\d+ ){9}\d+\s*$", head, re.MULTILINE)),
        parse_wider,
    ),
    "keras_yolo": ToolFormat(
        "Keras YOLO annotations",
        ".txt",
        # Lines of images without objects contain only the path.
        has_lines(
            rf"\S.*?\.\w{{3,4}}(?:\s+{NUMBER},{NUMBER},{NUMBER},{NUMBER},[^,\s]+)+", header=r"\S.*\.[A-Za-z]{3,4}$"
        ),
        parse_keras_yolo,
        class_files=("_classes.txt", "classes.txt", "*_classes.txt", "class_names.txt"),
    ),
}
