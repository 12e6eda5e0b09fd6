"""Renders a report as one self-contained HTML file: no scripts, no network access, no other files."""

from typing import Any

import jinja2

from ssd_dist.core.errors import UsageError
from ssd_dist.core.storage import replace_file
from ssd_dist.report.svg import format_number

# Further rows of a class table are collapsed.
SHOWN_CLASSES = 24


def render_page(template: str, **values: Any) -> str:
    """Renders `templates/<template>`; values are escaped, except drawings (`Markup`), which are escaped already."""
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
    """Writes `html` to a temporary file and renames it to `output`.

    Raises:
      UsageError: if the file cannot be written.
    """
    try:
        with replace_file(output) as temporary:
            # errors="replace": an image file name that is not valid Unicode must not prevent the report.
            temporary.write_text(html, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(f"{output}: cannot write the file: {error}") from None
