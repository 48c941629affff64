"""What each layer of the label store holds and whether it works, read from the store whenever a monitor looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from teacherfarm.label_store.label_store import LayerStats


class StoreLayers(Collector):
    """A series for each layer; none without a store, nor for what a layer cannot tell."""

    def __init__(self) -> None:
        self._stats: Callable[[], Sequence[LayerStats]] = tuple

    def watch(self, stats: Callable[[], Sequence[LayerStats]]) -> None:
        """From now on ask ``stats``; called from a monitor's thread."""
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        up, kept_bytes, kept_labels, written, dropped, damaged = families = self._families()
        for layer in self._stats():
            up.add_metric((layer.layer,), float(not layer.why))
            if layer.kept_bytes >= 0:
                kept_bytes.add_metric((layer.layer,), layer.kept_bytes)
                kept_labels.add_metric((layer.layer,), layer.kept_labels)
            written.add_metric((layer.layer,), layer.written)
            dropped.add_metric((layer.layer,), layer.dropped)
            damaged.add_metric((layer.layer,), layer.damaged)
        yield from families

    def describe(self) -> list[Metric]:
        """The families without a sample."""
        return list(self._families())

    def _families(
        self,
    ) -> tuple[
        GaugeMetricFamily,
        GaugeMetricFamily,
        GaugeMetricFamily,
        CounterMetricFamily,
        CounterMetricFamily,
        CounterMetricFamily,
    ]:
        gauge, counter, label = GaugeMetricFamily, CounterMetricFamily, ["layer"]
        return (
            gauge("teacherfarm_store_up", "1 while a layer of the label store works, 0 without it", labels=label),
            gauge("teacherfarm_store_kept_bytes", "Bytes that a layer takes", labels=label),
            gauge("teacherfarm_store_kept_labels", "Labels that a layer keeps", labels=label),
            counter("teacherfarm_store_written_total", "Labels kept (LMDB: committed)", labels=label),
            counter(
                "teacherfarm_store_dropped_total", "Labels not kept: a full queue or disk, Redis gone", labels=label
            ),
            counter("teacherfarm_store_damaged_total", "Kept labels that a checksum refused", labels=label),
        )
