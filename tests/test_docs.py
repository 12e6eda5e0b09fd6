"""What the documents point at exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

NAMED = sorted(
    {
        (page.name, *reference)
        for page in (ROOT / "docs").glob("*.md")
        for reference in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text())
    }
)
# Without parameters a test is skipped: where the pattern finds nothing any more it is to fail.
assert len(NAMED) > 20


@pytest.mark.parametrize(("page", "file", "test"), NAMED)
def test_named_tests_exist(page, file, test):
    assert f"def {test}(" in (ROOT / file).read_text(), page


@pytest.mark.parametrize(
    "page", ["README.md", "WORKSPACE.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), target
