"""The documentation refers only to things that exist, and the site builds without warnings."""

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import ssd_dist

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    str(page.relative_to(ROOT))
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md")
    for page in ROOT.glob(pattern)
)
PACKAGES = ("ssd_dist", "pipelines", "toyset")
TOP_FOLDERS = ("ssd_dist", "pipelines", "toyset", "configs", "launch", "tests", "benchmarks", "docs")

NAMED_TESTS = sorted(
    {
        (page, *reference)
        for page in PAGES
        for reference in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / page).read_text())
    }
)
# pytest skips a parametrized test without parameters: a pattern that no longer matches anything must fail instead.
assert len(NAMED_TESTS) > 20


@pytest.mark.parametrize(("page", "file", "test"), NAMED_TESTS)
def test_named_tests_exist(page, file, test):
    assert f"def {test}(" in (ROOT / file).read_text(), page


@pytest.mark.parametrize("page", PAGES)
def test_links_have_targets(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page):
    named = set(re.findall(rf"`((?:{'|'.join(TOP_FOLDERS)})/[\w./-]*\w)`", (ROOT / page).read_text()))
    generated = {"benchmarks/results/bench.json"}
    assert not [path for path in named - generated if not (ROOT / path).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_named_make_targets_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = (ROOT / page).read_text()
    named = set(re.findall(r"`make ([\w-]+)`", text)) | set(re.findall(r"^    make ([\w-]+)", text, re.MULTILINE))
    assert named <= targets


def test_the_named_sections_of_the_reports_exist():
    guide = (ROOT / "docs/reading_the_report.md").read_text()
    titles = {title for line in guide.splitlines() for title in re.findall(r"^(?:\| )?\*\*([^*]+)\*\*", line)}
    assert len(titles) > 10
    sources = [path.read_text() for path in ROOT.glob("ssd_dist/report/**/*") if path.suffix in (".py", ".html")]
    assert not [title for title in titles if not any(title.lower() in source.lower() for source in sources)]


def test_every_module_of_the_layout_diagram_exists():
    diagram = (ROOT / "docs/code_layout.md").read_text().partition("## Two functions")[0]
    modules = re.findall(r"([\w/]+/)?(\w+\.py)\b", diagram)
    assert len(modules) > 20
    for folder, name in modules:
        parents = [f"pipelines/{folder}", f"ssd_dist/{folder}", folder]
        assert any((ROOT / parent / name).exists() for parent in parents), folder + name


def test_every_package_has_a_reference_page():
    pages = [page.read_text() for page in (*(ROOT / "docs/reference").glob("*.md"), ROOT / "docs/python.md")]
    documented = {name for page in pages for name in re.findall(r"^::: (\S+)", page, re.MULTILINE)}
    packages = {path.parent.name for path in (ROOT / "ssd_dist").glob("*/__init__.py")}
    # The page of the Python interface documents what `import ssd_dist` offers, with the result of `predict`.
    offered = {f"{ssd_dist._MODULES[name]}.{name}" for name in ssd_dist.__all__ if name != "__version__"}
    offered.add("ssd_dist.export.trained_detector.ImageDetections")
    others = {"pipelines", "toyset", "ssd_dist.core.config"}
    assert documented == {f"ssd_dist.{name}" for name in packages} | others | offered


def test_every_page_is_in_the_navigation():
    def paths(node):
        if isinstance(node, str):
            yield node
        else:
            for child in node.values() if isinstance(node, dict) else node:
                yield from paths(child)

    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    pages = sorted(str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md"))
    assert sorted(paths(navigation)) == pages


def test_the_site_builds_without_warnings(tmp_path):
    """Broken links, unknown anchors, and docstring arguments that do not exist are warnings."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    assert "generate_anchors" in (tmp_path / "reference/core.html").read_text()


def test_docstring_examples_run():
    files = [path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    modules = [file for file in sorted(files) if ">>> " in (ROOT / file).read_text()]
    results = [doctest.testmod(importlib.import_module(".".join(file.with_suffix("").parts))) for file in modules]
    assert sum(result.attempted for result in results) >= 5
    assert not sum(result.failed for result in results)


def test_module_names_are_unique():
    """A file name identifies a module; only package roots share theirs."""
    names = [path.name for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(names) > 100
    assert {name for name in names if names.count(name) > 1} == {"__init__.py"}
