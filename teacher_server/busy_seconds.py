"""How long each teacher's slots were busy, read from the lanes whenever a monitor looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector


class BusySeconds(Collector):
    """Busy seconds over the time that passed and over the number of slots are a teacher's load."""

    def __init__(self) -> None:
        self._seconds: dict[str, Callable[[], float]] = {}

    def watch(self, teacher: str, seconds: Callable[[], float]) -> None:
        """From now on ask ``seconds``, which never fall, for a teacher's; called from a monitor's thread."""
        self._seconds[teacher] = seconds

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        (busy,) = self.describe()
        for teacher, seconds in list(self._seconds.items()):
            busy.add_metric((teacher,), seconds())
        yield busy

    def describe(self) -> list[CounterMetricFamily]:
        """The family without a sample."""
        about = "Seconds that slots were busy with teacher batches, added up: over teacherfarm_slots, the load"
        return [CounterMetricFamily("teacherfarm_busy_slot_seconds", about, labels=["teacher"])]
