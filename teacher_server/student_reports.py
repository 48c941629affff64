"""What students say of themselves in their pings, summed up by project and teacher whenever a monitor looks."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from teacherfarm.protos.messages import StudentReport

Owner = tuple[str, str]
"""Project and teacher."""


class StudentReports(Collector):
    """The newest report of every open session. A session's series vanish with the last student of its owner."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[Owner, StudentReport]] = {}

    def note(self, session_id: str, *, project: str, teacher: str, report: StudentReport) -> None:
        """A student said how it fared since its last ping."""
        self._told[session_id] = ((project, teacher), report)

    def forget(self, session_id: str) -> None:
        """The session is over."""
        self._told.pop(session_id, None)

    def by_owner(self) -> dict[Owner, list[StudentReport]]:
        """The reports of each project's students of each teacher."""
        found: dict[Owner, list[StudentReport]] = {}
        # A copy in one go: a monitor's thread looks while sessions come and go.
        for owner, report in list(self._told.values()):
            found.setdefault(owner, []).append(report)
        return found

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        stall, wanted = self.describe()
        for owner, reports in self.by_owner().items():
            stall.add_metric(owner, sum(report.stall for report in reports) / len(reports))
            wanted.add_metric(owner, sum(report.wanted_per_s for report in reports))
        yield from (stall, wanted)

    def describe(self) -> list[GaugeMetricFamily]:
        """The families without a sample."""
        labels = ["project", "teacher"]
        return [
            GaugeMetricFamily(
                "teacherfarm_student_stall_ratio",
                "Share of their time that students waited for labels, 0 to 1, mean over those that say so",
                labels=labels,
            ),
            GaugeMetricFamily(
                "teacherfarm_student_wanted_crops_per_second",
                "Crops/s that these students would take together if they never waited",
                labels=labels,
            ),
        ]
