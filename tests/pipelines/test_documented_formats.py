"""The table of exports in the guide names the formats and the tests that exist."""

import re

from raw_sets import ROOT

from pipelines.detection import FORMATS

GUIDE = (ROOT / "docs/your_own_data.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in GUIDE.splitlines()
    if re.match(r"\|.*\|.*\|.*`test_\w+\.py`.*\|$", line)
]


def test_every_format_is_in_the_table_and_every_row_names_formats():
    named = [name for row in ROWS for name in re.findall(r"`(\w+)`", row[2])]
    assert len(ROWS) > 30
    assert {*named} == {*FORMATS}


def test_every_row_names_tests_that_exist():
    for row in ROWS:
        files = re.findall(r"`(test_\w+\.py)`", row[3])
        assert files, row
        for name in files:
            assert (ROOT / "tests/pipelines" / name).exists(), name
