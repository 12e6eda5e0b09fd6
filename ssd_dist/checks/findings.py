"""The findings of preflight: the results of the checks of a worker, their comparison by the chief, and the table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssd_dist.cluster.rendezvous import find_disagreement
from ssd_dist.cluster.rendezvous_messages import WorkerDescription
from ssd_dist.cluster.strategy import WorkerRole
from ssd_dist.core.errors import SsdDistError, UsageError
from ssd_dist.core.printable import make_printable


@dataclass(frozen=True)
class Finding:
    """The result of one check; one row of the table.

    Attributes:
      worker: index of the worker.
      check: name of the check.
      detail: what was found; for a failure also how to fix it.
      exit_code: 0 if the check passed.
    """

    worker: int
    check: str
    detail: str
    exit_code: int = 0


@dataclass(frozen=True)
class WorkerReport:
    """What a worker sends to the chief: its findings, the facts and the token of `gather_findings`."""

    findings: list[Finding]
    facts: dict[str, str]
    token: str


class Findings(list[Finding]):
    """The findings of one worker."""

    def __init__(self, worker: int) -> None:
        super().__init__()
        self._worker = worker

    def run_check(self, name: str, check: Callable[[], str]) -> None:
        """Runs a check and adds a finding with the text that the check returns, or with its error."""
        try:
            self.append(Finding(self._worker, name, check()))
        except SsdDistError as error:
            self.append(Finding(self._worker, name, str(error), error.exit_code))

    @property
    def exit_code(self) -> int:
        """0 if all checks passed, else the code of the first failure: 2, 3 or 4."""
        return next((finding.exit_code for finding in self if finding.exit_code), 0)


def compare_reports(descriptions: Sequence[WorkerDescription], probe: Path) -> list[Finding]:
    """Compares the descriptions of all workers; runs on the chief.

    Args:
      descriptions: the descriptions of all workers, in order.
      probe: the file that the chief wrote in the run folder.

    Returns:
      The findings of all workers, and the findings of the comparison.
    """
    reports = [read_report(one) for one in descriptions]
    table = [finding for report in reports for finding in report.findings]
    chief = replace(descriptions[0], facts=reports[0].facts)
    for one, report in zip(descriptions[1:], reports[1:], strict=True):
        # A worker without facts has no valid data, which is already among its findings.
        if chief.facts and report.facts:
            problem = find_disagreement(chief, replace(one, facts=report.facts))
            text = problem or "config, data and versions are equal to the chief's"
            table.append(Finding(one.index, "equal settings", text, UsageError.exit_code if problem else 0))
        table.append(Finding(one.index, "clock", f"differs by {one.skew:+.1f} s from the chief's"))
        try:
            shared = (probe.parent / f".preflight-{one.index}").read_text() == report.token
        except (OSError, ValueError):
            shared = False
        if shared:
            table.append(Finding(one.index, "shared folder", "the chief can read this worker's file"))
        else:
            problem = f"the chief cannot read this worker's file in {probe.parent}; mount one folder on all workers"
            table.append(Finding(one.index, "shared folder", problem, UsageError.exit_code))
    return table


def read_report(description: WorkerDescription) -> WorkerReport:
    """Reads the report of a worker; if it is not valid, returns a report with this finding."""
    try:
        return TypeAdapter(WorkerReport).validate_json(description.report, strict=True)
    except ValidationError:
        text = "its report is not valid; start all workers with --preflight and the same version of ssd-dist"
        finding = Finding(description.index, "report", text, UsageError.exit_code)
        return WorkerReport([finding], {}, "")


def print_table(table: Sequence[Finding], role: WorkerRole) -> None:
    """Prints all findings, and a last line with the overall result."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        # In a log file each finding is one line.
        console.width = 400
    rows = Table(box=None, title_justify="left", title="Preflight", title_style="bold")
    for column in ("worker", "check", "result", "detail"):
        rows.add_column(column, overflow="fold")
    for finding in table:
        result = Text("FAIL", style="bold red") if finding.exit_code else Text("pass", style="green")
        rows.add_row(str(finding.worker), finding.check, result, Text(make_printable(" ".join(finding.detail.split()))))
    console.print(rows)
    failed = sum(finding.exit_code > 0 for finding in table)
    console.print(f"{failed} of {len(table)} checks failed" if failed else f"{role.count} workers are ready to train")
