"""Which endpoints run each teacher and whether they answer, read from their pools whenever a monitor looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

States = Callable[[], Mapping[str, bool]]
"""One teacher's endpoints by name, and whether each is in use now."""


class EndpointStates(Collector):
    """A series for each endpoint that is configured or resolved at this moment, and none for those that vanished."""

    def __init__(self) -> None:
        self._states: dict[str, States] = {}

    def watch(self, teacher: str, states: States) -> None:
        """From now on ask ``states`` for a teacher's endpoints; called from a monitor's thread."""
        self._states[teacher] = states

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        (up,) = self.describe()
        for teacher, states in list(self._states.items()):
            for endpoint, alive in sorted(states().items()):
                up.add_metric((teacher, endpoint), float(alive))
        yield up

    def describe(self) -> list[GaugeMetricFamily]:
        """The family without a sample."""
        about = "1 while an endpoint runs the teacher, 0 while it is out of use"
        return [GaugeMetricFamily("teacherfarm_endpoint_up", about, labels=["teacher", "endpoint"])]
