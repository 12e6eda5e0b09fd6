"""Renders a report as one self-contained HTML file: no scripts, no network access, no other files."""

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ssd_dist.core.errors import UsageError
from ssd_dist.core.printable import make_printable
from ssd_dist.core.storage import replace_file
from ssd_dist.report.svg import format_number

# Further rows of a class table are collapsed.
SHOWN_CLASSES = 24
# Longest line of a text in a page, in characters.
MAX_LINE = 500


def render_page(template: str, templates: Path | None = None, **values: Any) -> str:
    """Renders a template; `templates` is an additional folder, which is searched first.

    Escapes texts, including control characters, and shortens them. Drawings (`Markup`) are already escaped.
    """
    own = jinja2.PackageLoader("ssd_dist.report")
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.FileSystemLoader(templates), own]) if templates else own,
        autoescape=True,
        finalize=_make_printable,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = format_number
    environment.filters["share"] = lambda value: "0%" if not value else "<0.1%" if value < 1e-3 else f"{value:.1%}"
    environment.filters["metric"] = lambda value: "–" if value is None else f"{value:.3f}"
    return environment.get_template(template).render(**values)


def _make_printable(value: Any) -> Any:
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "\n".join(make_printable(line, MAX_LINE) for line in value.split("\n"))


def write_page(output: str, html: str) -> None:
    """Writes `html` to a temporary file and renames it to `output`.

    Raises:
      UsageError: if the file cannot be written.
    """
    try:
        with replace_file(output) as temporary:
            temporary.write_text(html, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{output}: cannot write the file: {error}; give a file in a writable folder") from None
