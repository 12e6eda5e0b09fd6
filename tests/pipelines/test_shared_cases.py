"""The small exports of annotation tools in ../shared/cases, each with the command that a user would type."""

import json
import os
import shlex
from pathlib import Path

import pytest
from raw_sets import ROOT

CASES = Path(os.environ.get("SSD_DIST_SHARED") or ROOT.parent / "shared") / "cases/data"
# Exit code, images and boxes in shards, classes; or exit code 3 and words of the message.
RESULTS = {
    "01": (2, 3, ["bolt"]),
    "02": (1, 1, ["bolt"]),
    "03": (1, 1, ["bolt", "nut"]),
    "04": (1, 1, ["bolt"]),
    "06": (2, 2, ["bolt", "nut"]),
    "07": (2, 2, ["bolt", "nut"]),
    "09": (2, 2, ["bolt", "nut"]),
    "10": (2, 3, ["bolt", "nut"]),
    "12": (1, 2, ["bolt", "nut"]),
    "13": (1, 1, ["bolt", "nut"]),
    "14": (2, 2, ["bolt", "nut"]),
    "16": (3, 3, ["bolt"]),
    "19": (1, 1, ["bolt"]),
    "20": (2, 2, ["bolt", "nut"]),
    "22": (1, 1, ["bolt"]),
    "23": (2, 2, ["bolt", "nut"]),
    "25": (1, 1, ["bolt"]),
    "26": (1, 1, ["bolt", "nut"]),
    "27": (1, 1, ["bolt"]),
    "29": (2, 2, ["bolt"]),
    "34": (1, 1, ["bolt"]),
    "36": (1, 3, ["bolt", "nut"]),
    "37": ("Create ML", "--input_format=create_ml"),
    "38": ("VIA", "--input_format=via"),
    "39": ("labelme", "--input_format=labelme"),
    "41": ("Label Studio", "--input_format=label_studio"),
    "42": (1, 1, ["bolt", "nut"]),
    "43": (2, 2, ["bolt"]),
    "44": (1, 1, ["bolt"]),
    "46": (1, 1, ["yes", "no"]),
    "48": (1, 1, ["bolt", "nut"]),
    "49": ("Git LFS pointer", "git lfs pull"),
    "51": (1, 1, ["bolt"]),
    "52": (1, 1, ["bolt"]),
    "58": (1, 1, ["bolt"]),
    "60": (2, 3, ["bolt", "nut"]),
    "61": ("CVAT", "--input_format=cvat"),
    "65": (2, 2, ["bolt", "nut"]),
    "74": (1, 1, ["bolt"]),
    "75": ("fractions",),
    "79": (1, 1, ["bolt"]),
}
# Images that are rejected: not annotated, or in a format that is not supported.
REJECTED = {"34": {"not_annotated": 3}, "48": {"unsupported_format": 2}}


@pytest.mark.parametrize("number", RESULTS)
def test_an_export_is_read_or_refused_with_its_name(tmp_path, command, number):
    folders = list(CASES.glob(f"{number}_*"))
    if not folders:
        pytest.skip(f"no cases in {CASES}; set SSD_DIST_SHARED")
    line = (folders[0] / "cmd.txt").read_text().splitlines()[-1]
    line = line.replace("$IN", str(folders[0] / "in")).replace("$OUT", str(tmp_path))
    arguments = [word for word in shlex.split(line)[3:] if not word.startswith("--config")]
    code, out, err = command(*arguments, "--set=model.input_size=64")
    if isinstance(RESULTS[number][0], str):
        assert code == 3
        assert len(err.splitlines()) == 1
        assert all(word in err for word in RESULTS[number]), err
        return
    assert (code, err) == (0, "")
    assert ("fractions" in out) == (number == "16")
    manifest = json.loads((tmp_path / "dataset.json").read_text())
    (split,) = manifest["splits"].values()
    assert (split["images"], split["boxes"], manifest["classes"]) == RESULTS[number]
    assert split["images_read"] == split["images"] + sum(split["rejected_images"].values())
    assert split["rejected_images"] == REJECTED.get(number, {})
