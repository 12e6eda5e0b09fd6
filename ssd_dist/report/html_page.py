"""From a template and its values to one file that needs nothing else: no network, no script, no second file."""

from pathlib import Path
from typing import Any

import jinja2

from ssd_dist.core.errors import UsageError
from ssd_dist.report.svg import format_number

# Longer tables of classes are folded.
SHOWN_CLASSES = 24


def render_page(template: str, **values: Any) -> str:
    """The page of `templates/<template>`; every value is escaped but drawings, which are escaped already."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ssd_dist.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = format_number
    environment.filters["share"] = lambda value: "0%" if not value else "<0.1%" if value < 1e-3 else f"{value:.1%}"
    environment.filters["metric"] = lambda value: "–" if value is None else f"{value:.3f}"
    return environment.get_template(template).render(**values)


def write_page(output: str, html: str) -> None:
    """Writes the text under a temporary name and renames it.

    Raises:
      UsageError: if it cannot be written.
    """
    path = Path(output)
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A file name that is no Unicode must not cost the page.
        partial.write_text(html, encoding="utf-8", errors="replace")
        partial.replace(path)
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error}") from None
