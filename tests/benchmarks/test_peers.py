"""The comparison with other programs: programs take turns, every program gets the same boxes, mistakes are reported."""

import contextlib
import json
import sys

import numpy as np
import pytest

from benchmarks.peers.__main__ import (
    MOBILENETV2_SSD_FILE,
    STEPS,
    Program,
    Turn,
    compare,
    main,
    measure_in_turns,
)
from benchmarks.peers.images import BOXES, CLASSES, IMAGES, SIZE, draw_images, write_arrays, write_coco

# Needs `replies` and the path of a log that all programs share. Computes for 0.2 s per step.
PROGRAM = """
import sys, time
from benchmarks.peers.requests import answer_requests
for steps in answer_requests(int(sys.argv[1]), parameters=5_000_000, anchors=7):
    for _ in range(steps):
        print(sys.argv[3], file=open(sys.argv[2], "a"))
        until = time.process_time() + 0.2
        while time.process_time() < until:
            pass
"""


@pytest.fixture
def start():
    with contextlib.ExitStack() as running:
        yield lambda name, code, *arguments: running.enter_context(
            Program(name, [sys.executable, "-c", code], *map(str, arguments), name)
        )


def test_programs_take_turns_and_the_first_round_is_not_counted(start, tmp_path):
    programs = [start(name, PROGRAM, tmp_path / "log") for name in "ab"]
    turns = measure_in_turns(programs, rounds=2)
    assert (tmp_path / "log").read_text().split() == ([*"a"] * STEPS + [*"b"] * STEPS) * 3
    assert {name: len(measured) for name, measured in turns.items()} == {"a": 2, "b": 2}


def test_times_are_those_of_one_step(start, tmp_path):
    (turn,) = measure_in_turns([start("a", PROGRAM, tmp_path / "log")], rounds=1)["a"]
    # CPU time does not depend on the load of the machine; it is counted in ticks of 10 ms.
    assert turn.user + turn.system == pytest.approx(0.2, abs=0.05)
    assert turn.seconds > 0.19


def test_sizes_are_those_that_the_program_reports(start, tmp_path):
    program = start("a", PROGRAM, tmp_path / "log")
    assert (program.parameters, program.anchors) == (5_000_000, 7)


def test_output_of_a_program_that_fails_is_reported(start):
    with pytest.raises(RuntimeError, match=r"(?s)^a: .*No module named 'absent_module'"):
        start("a", "import absent_module")


def test_medians_are_compared_with_ours(start, tmp_path):
    programs = [start(name, PROGRAM, tmp_path / "log") for name in ("ours", "theirs")]
    turns = {
        "ours": [Turn(1.0, 0.5, 0.5), Turn(2.0, 1.0, 1.0), Turn(9.0, 9.0, 9.0)],
        "theirs": [Turn(8.0, 1.0, 4.0), Turn(8.0, 1.0, 4.0), Turn(0.0, 0.0, 0.0)],
    }
    ratios = {(row.what, row.unit): row.ratio for row in compare(programs, turns)}
    assert ratios == {
        ("training step", "s"): 2 / 8,
        ("training step", "CPU s"): 2 / 5,
        ("parameters", "million"): 1,
    }


def test_images_have_objects_of_every_class_inside():
    images = draw_images()
    assert images.pixels.shape == (IMAGES, SIZE, SIZE, 3)
    assert images.boxes.shape == (IMAGES, BOXES, 4)
    assert {*images.labels.ravel().tolist()} == {*range(1, CLASSES + 1)}
    assert images.boxes.min() >= 0
    assert images.boxes.max() <= SIZE
    assert (images.boxes[..., 2:] > images.boxes[..., :2]).all()


def test_peers_get_the_boxes_of_the_coco_file(tmp_path):
    images = draw_images()
    write_coco(images, tmp_path / "raw")
    write_arrays(images, tmp_path / "images.npz")
    arrays = np.load(tmp_path / "images.npz")
    coco = json.loads((tmp_path / "raw" / "annotations" / "instances_train.json").read_text())
    assert len(coco["annotations"]) == IMAGES * BOXES
    for number in range(IMAGES):
        objects = [entry for entry in coco["annotations"] if entry["image_id"] == number]
        assert [entry["category_id"] for entry in objects] == arrays["labels"][number].tolist()
        corners = [[x, y, x + width, y + height] for x, y, width, height in (entry["bbox"] for entry in objects)]
        np.testing.assert_allclose(300 * arrays["boxes"][number], corners, rtol=1e-6)


def test_without_a_peer_one_line_names_the_repositories(capsys):
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    output = capsys.readouterr().err
    assert output.count("\n") == 1
    for needed in ("AdmiralAki99/MobileNetV2-SSD", "qfgaohao/pytorch-ssd", "--mobilenetv2_ssd", "--pytorch_ssd"):
        assert needed in output


@pytest.mark.parametrize("flag", ["--mobilenetv2_ssd", "--pytorch_ssd"])
def test_a_folder_that_is_not_a_checkout_is_refused(flag, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([f"{flag}={tmp_path}"])
    assert stopped.value.code == 2
    assert f"error: {flag}: {tmp_path} does not contain " in capsys.readouterr().err


def test_a_python_that_does_not_exist_is_refused(tmp_path, capsys):
    file = tmp_path / MOBILENETV2_SSD_FILE
    file.parent.mkdir(parents=True)
    file.touch()
    with pytest.raises(SystemExit) as stopped:
        main([f"--mobilenetv2_ssd={tmp_path}", "--torch_python=/absent/python"])
    assert stopped.value.code == 2
    assert "error: --torch_python: /absent/python " in capsys.readouterr().err
