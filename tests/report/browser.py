"""Opens a report in headless Chromium and checks its width, requests and console messages; extracts its text."""

import json
import re
import shutil
import subprocess
import warnings
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

# An outer page shows the report in a frame of the given width, measures it, and writes the result as JSON.
_PROBE = """<!doctype html><title>probe</title><pre id="found"></pre>
<iframe id="page" src="{page}" style="width:{width}px;height:4000px;border:0"></iframe>
<script>
document.getElementById("page").onload = function () {{
  const inside = this.contentWindow, root = inside.document.documentElement;
  document.getElementById("found").textContent = JSON.stringify({{
    scroll_width: root.scrollWidth, height: root.scrollHeight, title: inside.document.title,
    requests: inside.performance.getEntriesByType("resource").map(entry => entry.name),
    scripts: inside.document.scripts.length,
    broken_images: [...inside.document.images].filter(image => !image.naturalWidth).length,
  }});
}};
</script>"""


@dataclass(frozen=True)
class Visit:
    """Measurements of the page, as `_PROBE` writes them, and console messages."""

    found: dict
    console: list[str]


def visit(program: str, page: Path, width: int, folder: Path) -> Visit:
    """Opens a page in a frame of `width` pixels."""
    probe = folder / f"probe{width}.html"
    probe.write_text(_PROBE.format(page=page.resolve().as_uri(), width=width))
    done = subprocess.run(
        [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            "--allow-file-access-from-files", "--virtual-time-budget=5000", "--enable-logging=stderr", "--v=0",
            f"--user-data-dir={folder / 'profile'}", "--window-size=1400,4000", "--dump-dom", probe.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    text = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert text is not None, "the page did not load"
    unescaped = text.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    return Visit(json.loads(unescaped), [line for line in done.stderr.splitlines() if "CONSOLE" in line])


def check_page(page: Path, folder: Path) -> str:
    """Asserts that a report is self-contained and fits its width, the latter only if Chromium is installed.

    Returns the text of the report.
    """
    html = page.read_text()
    assert len(html.encode()) < 5e6
    assert not re.findall(r'(?:src|href|action)="(?!data:|#)', html), "the file refers to other files"
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        # Of all warnings, only this one does not fail the test.
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.warn("Chromium is not installed: the report was not opened in a browser", stacklevel=2)
    for width in (1280, 400) if program else ():
        result = visit(program, page, width, folder)
        assert result.console == []
        assert result.found["requests"] == []
        assert result.found["scripts"] == 0
        assert result.found["broken_images"] == 0
        assert result.found["scroll_width"] <= width, "the page is wider than the viewport"
    return read_text(html)


def read_text(html: str) -> str:
    """Returns the text between the tags, decoded as in a browser."""
    parts: list[str] = []

    class Reader(HTMLParser):
        def handle_data(self, data: str) -> None:
            if self.lasttag != "style":
                parts.append(data)

    Reader().feed(html)
    return " ".join(" ".join(parts).split())
