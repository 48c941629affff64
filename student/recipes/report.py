"""The final report of a training run: one page that needs nothing else, to be opened, kept and sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from teacherfarm.student.accounts import ClientStats
from teacherfarm.student.evaluation import Evaluation
from teacherfarm.student.recipes.run_log import PassRow
from teacherfarm.student.tally import Tally

REPORT_FILE = "report.html"


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportData:
    """What a report shows; what is empty or None is left out.

    ``passes``: the run's rows, in order. ``parts``: the means of the loss's parts by name, for each pass. ``result``:
    the finished student; ``tally``: counted in the same evaluation. ``classes``: their names in order, or none.
    ``client``: what this run's clients counted (all ranks' sum where they were summed), ``wire``: their address.
    ``facts``: what was trained, by name ("method", "student", "teacher", "data" ...). ``settings``: the run's
    configuration, as it is written to config.yaml. ``notes``: sentences the reader must not miss.
    """

    title: str
    passes: Sequence[PassRow]
    result: Evaluation
    parts: Sequence[Mapping[str, float]] = ()
    tally: Tally | None = None
    classes: Sequence[str] = ()
    client: ClientStats | None = None
    wire: str = ""
    stall: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    settings: str = ""
    notes: Sequence[str] = ()


def write_report(folder: Path, data: ReportData) -> Path:
    """Write ``folder/report.html``, whole or not at all, and return its path; the folder must exist."""
    from teacherfarm.student.recipes.report_page import page

    path = folder / REPORT_FILE
    temporary = folder / f".{REPORT_FILE}.tmp"
    # Names of folders may be no UTF-8; a report must not fail over them when everything else is done.
    temporary.write_text(page(data), encoding="utf-8", errors="backslashreplace")
    temporary.replace(path)
    return path
