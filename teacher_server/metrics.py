"""What the server counts, as Prometheus metrics. No label's values grow with the number of students or crops."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from teacherfarm.teacher_server.busy_seconds import BusySeconds
from teacherfarm.teacher_server.counting import TallyCounter, TallyHistogram
from teacherfarm.teacher_server.endpoint_states import EndpointStates
from teacherfarm.teacher_server.store_layers import StoreLayers
from teacherfarm.teacher_server.student_reports import StudentReports

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class LaneMetrics:
    """One teacher's share of the metrics, with its label already bound: a lane counts per teacher batch."""

    def __init__(self, metrics: Metrics, teacher: str) -> None:
        self._batches = metrics.batch_crops.labels(teacher)
        self._wait = metrics.wait_seconds.labels(teacher)
        self._run = metrics.run_seconds.labels(teacher)
        self.crops = 0

    def teacher_batch(self, num_crops: int, wait_s: float, run_s: float) -> None:
        """A teacher batch was answered; ``wait_s`` is how long its first slice waited in the queue."""
        self._batches.observe(num_crops)
        self._wait.observe(wait_s)
        self._run.observe(run_s)
        # Kept beside the histogram, whose sum cannot be read back: students are told their teacher's load.
        self.crops += num_crops


class ScopeMetrics:
    """One teacher's and one project's share of the metrics, with both labels already bound: counted per slice."""

    def __init__(self, metrics: Metrics, teacher: str, project: str) -> None:
        self._labels = metrics.labels.labels(teacher, project)
        self._joined = metrics.joined.labels(teacher, project)
        self._hits = metrics.store_hits.labels(teacher, project)
        self._misses = metrics.store_misses.labels(teacher, project)

    def answered(self, num_crops: int) -> None:
        """So many crops were answered."""
        self._labels.inc(num_crops)

    def joined(self, num_crops: int) -> None:
        """So many of them from a computation that was under way already."""
        self._joined.inc(num_crops)

    def looked_up(self, num_found: int, num_missing: int) -> None:
        """So many of them were kept, and so many were looked for in vain."""
        self._hits.inc(num_found)
        self._misses.inc(num_missing)


class Metrics:
    """Every metric of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.labels = TallyCounter(
            "teacherfarm_labels_total", "Crops answered", ["teacher", "project"], registry=self.registry
        )
        self.joined = TallyCounter(
            "teacherfarm_joined_total",
            "Crops answered from a computation that was under way already",
            ["teacher", "project"],
            registry=self.registry,
        )
        self.store_hits = TallyCounter(
            "teacherfarm_store_hits_total",
            "Crops answered from kept labels",
            ["teacher", "project"],
            registry=self.registry,
        )
        self.store_misses = TallyCounter(
            "teacherfarm_store_misses_total",
            "Crops looked for among kept labels in vain",
            ["teacher", "project"],
            registry=self.registry,
        )
        self.faults = Counter("teacherfarm_faults_total", "Faults answered", ["fault"], registry=self.registry)
        self.refusals = Counter(
            "teacherfarm_refusals_total",
            "Sessions and slices refused by a project's key, allowance or quota",
            ["project", "reason"],
            registry=self.registry,
        )
        self.projects_current = Gauge(
            "teacherfarm_projects_current",
            "0 after a reload that found the projects file broken",
            registry=self.registry,
        )
        self.projects_current.set(1)
        self.sessions = Gauge("teacherfarm_sessions", "Open sessions", ["wire"], registry=self.registry)
        self.waiting = Gauge("teacherfarm_waiting_crops", "Crops in the queue", ["teacher"], registry=self.registry)
        self.admitted = Gauge(
            "teacherfarm_admitted_crops", "Crops received and not yet answered", registry=self.registry
        )
        self.ready = Gauge(
            "teacherfarm_teacher_ready", "1 once the teacher is served", ["teacher"], registry=self.registry
        )
        self.backends = Gauge(
            "teacherfarm_backends", "Backends that run the teacher now", ["teacher"], registry=self.registry
        )
        self.slots = Gauge(
            "teacherfarm_slots",
            "Teacher batches that can run at once",
            ["teacher"],
            registry=self.registry,
        )
        self.received = TallyCounter(
            "teacherfarm_received_bytes_total", "Payload bytes received", ["wire"], registry=self.registry
        )
        self.sent = TallyCounter("teacherfarm_sent_bytes_total", "Payload bytes sent", ["wire"], registry=self.registry)
        self.wait_seconds = TallyHistogram(
            "teacherfarm_wait_seconds",
            "How long a teacher batch's first slice waited",
            ["teacher"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.run_seconds = TallyHistogram(
            "teacherfarm_run_seconds",
            "How long a teacher batch ran",
            ["teacher"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batch_crops = TallyHistogram(
            "teacherfarm_batch_crops",
            "Crops in a teacher batch",
            ["teacher"],
            buckets=BATCHES,
            registry=self.registry,
        )
        self.busy = BusySeconds()
        self.endpoints = EndpointStates()
        self.students = StudentReports()
        self.store = StoreLayers()
        self.registry.register(self.busy)
        self.registry.register(self.endpoints)
        self.registry.register(self.students)
        self.registry.register(self.store)

    def lane(self, teacher: str) -> LaneMetrics:
        """The metrics of one teacher's lane."""
        return LaneMetrics(self, teacher)

    def scope(self, teacher: str, project: str) -> ScopeMetrics:
        """The metrics of one teacher's labels for one project."""
        return ScopeMetrics(self, teacher, project)

    def page(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)
