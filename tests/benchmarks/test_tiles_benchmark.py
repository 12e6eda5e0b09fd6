"""The benchmark of tiles reads the original image of each record."""

import pytest

from benchmarks.tiles import match_files


def test_an_image_is_found_by_the_end_of_its_path_with_or_without_suffix():
    files = ["data/a/1.jpg", "data/b/1.jpg", "data/b/x.y.png"]
    assert match_files(["a/1.jpg", "b/1", "x.y"], files) == dict(zip(["a/1.jpg", "b/1", "x.y"], files, strict=True))


@pytest.mark.parametrize(("name", "count"), [("1.jpg", 2), ("1", 2), ("2.jpg", 0), ("x", 0)])
def test_an_image_without_a_file_or_with_several_ends_the_program(name, count):
    with pytest.raises(SystemExit, match=f"image {name}: {count} files of --images have this name instead of 1"):
        match_files([name], ["data/a/1.jpg", "data/b/1.jpg", "data/b/x.y.png"])
