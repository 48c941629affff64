"""What the dashboard shows: its rows and panels, each with its queries and a sentence on what it means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

T = 'teacher=~"$teacher"'
TP = f'{T}, project=~"$project"'
P = 'project=~"$project"'
RATE = "[$__rate_interval]"

GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"
WAITING = ((None, GREEN), (0.02, YELLOW), (0.1, "orange"), (0.5, RED))
BUSY = ((None, BLUE), (0.5, GREEN), (0.9, YELLOW))
UP = ((None, RED), (1, GREEN))
PLAIN = ((None, BLUE),)
Steps = Sequence[tuple[float | None, str]]

HOW_TO_READ = """\
**Students wait** is the share of their time that students spend waiting for labels.

- *Students wait, teachers busy*: there are too few teachers. The number beside this says how many more would feed the
  students: `docker compose up -d --scale triton=N`.
- *Students wait, teachers not busy*: the way is too slow. `teacherfarm doctor ADDRESS` on the student's machine
  measures the link; a larger `window`, `codec="jpeg"` or a faster network helps, another teacher does not.
- *Nobody waits*: the students are the bound, as it should be. Teachers that are hardly busy are more than you need.
"""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A panel; ``queries``: PromQL by legend. ``kind``: Grafana's name of the visualisation."""

    title: str
    about: str
    queries: Mapping[str, str]
    unit: str
    width: int
    height: int = 8
    kind: str = "timeseries"
    steps: Steps = PLAIN
    stacked: bool = False
    most: float | None = None
    mappings: Sequence[Mapping[str, Any]] = field(default=())
    text: str = ""


def words(value_to_text: Mapping[str, tuple[str, str]]) -> list[Mapping[str, Any]]:
    """Values shown as words, each in its colour."""
    options = {value: {"text": text, "color": color} for value, (text, color) in value_to_text.items()}
    return [{"type": "value", "options": options}]


def quantiles(name: str, by: str = "le, teacher") -> dict[str, str]:
    """Median, 95th and 99th percentile of a histogram by teacher."""
    found = {}
    for label, quantile in (("half", 0.5), ("95 %", 0.95), ("99 %", 0.99)):
        found[f"{{{{teacher}}}} {label}"] = (
            f"histogram_quantile({quantile}, sum by ({by}) (rate({name}_bucket{{{T}}}{RATE})))"
        )
    return found


ROWS: Mapping[str, Sequence[Panel]] = {
    "At a glance": (
        Panel(
            title="Labels",
            about="Crops answered per second, over all teachers and projects that are chosen above.",
            queries={"labels/s": f"sum(rate(teacherfarm_labels_total{{{TP}}}{RATE}))"},
            unit="suffix:labels/s",
            width=4,
            height=5,
            kind="stat",
        ),
        Panel(
            title="Students",
            about="Sessions that are open now, over both wires; a student on several GPUs has one for each.",
            queries={"students": "sum(teacherfarm_sessions)"},
            unit="none",
            width=4,
            height=5,
            kind="stat",
        ),
        Panel(
            title="Students wait",
            about="Share of their time that students waited for labels in the last minute. Below 2 % is as good "
            "as none.",
            queries={"waiting": f"avg(teacherfarm:student_stall:ratio{{{TP}}})"},
            unit="percentunit",
            width=4,
            height=5,
            kind="stat",
            steps=WAITING,
            most=1,
        ),
        Panel(
            title="Teachers busy",
            about="Share of the time of all slots in which teacher batches ran. From 90 % on there is no time to"
            " spare.",
            queries={"busy": f"avg(teacherfarm:busy:ratio{{{T}}})"},
            unit="percentunit",
            width=4,
            height=5,
            kind="stat",
            steps=BUSY,
            most=1,
        ),
        Panel(
            title="Teachers ready",
            about="Whether every teacher in the model directory is served. http://GATEWAY:7002/readyz says why "
            "one is not.",
            queries={"{{teacher}}": f"min by (teacher) (teacherfarm_teacher_ready{{{T}}})"},
            unit="none",
            width=4,
            height=5,
            kind="stat",
            steps=UP,
            mappings=words({"0": ("not ready", RED), "1": ("ready", GREEN)}),
        ),
        Panel(
            title="Crops in flight",
            about="Crops received and not yet answered, at all gateways: what would be sent again if they died now.",
            queries={"crops": "sum(teacherfarm_admitted_crops)"},
            unit="none",
            width=4,
            height=5,
            kind="stat",
        ),
    ),
    "Sizing": (
        Panel(
            title="Reading this",
            about="What to do about students that wait.",
            queries={},
            unit="",
            width=8,
            height=9,
            kind="text",
            text=HOW_TO_READ,
        ),
        Panel(
            title="Teachers that would feed the students",
            about="How many more backends like the present ones would give all students of a teacher what they "
            "would take if they never waited. None where students hardly wait, or where the teachers have "
            "time to spare.",
            queries={"{{teacher}}": f"teacherfarm:teachers_missing{{{T}}}"},
            unit="suffix:more teachers",
            width=8,
            height=9,
            kind="stat",
            steps=((None, GREEN), (1, "orange")),
            mappings=words({"0": ("none: they are fed", GREEN), "1": ("1 more teacher", "orange")}),
        ),
        Panel(
            title="Wanted, given, possible",
            about="Crops/s that students would take if they never waited, labels/s that they get, and crops/s "
            "that the present backends could compute.",
            queries={
                "{{teacher}} wanted": f"sum by (teacher) (teacherfarm_student_wanted_crops_per_second{{{TP}}})",
                "{{teacher}} given": f"sum by (teacher) (teacherfarm:labels:rate1m{{{TP}}})",
                "{{teacher}} possible": f"teacherfarm:backend_capacity:crops_per_second{{{T}}} "
                f"* on (teacher) sum by (teacher) (teacherfarm_backends{{{T}}})",
            },
            unit="suffix:crops/s",
            width=8,
            height=9,
        ),
    ),
    "Labels": (
        Panel(
            title="Labels by teacher and project",
            about="Crops answered per second, computed or joined.",
            queries={
                "{{teacher}} for {{project}}": "sum by (teacher, project) "
                f"(rate(teacherfarm_labels_total{{{TP}}}{RATE}))"
            },
            unit="suffix:labels/s",
            width=12,
            stacked=True,
        ),
        Panel(
            title="Share per project",
            about="Each project's part of all labels. Among projects that all want labels it follows their weights.",
            queries={
                "{{project}}": f"sum by (project) (rate(teacherfarm_labels_total{{{TP}}}{RATE})) "
                f"/ ignoring (project) group_left () (sum(rate(teacherfarm_labels_total{{{TP}}}{RATE})) > 0)"
            },
            unit="percentunit",
            width=12,
            stacked=True,
            most=1,
        ),
        Panel(
            title="Labels that cost nothing",
            about="Share of the labels that joined a computation which another session had under way: the same "
            "crop, the same teacher, the same project.",
            queries={
                "{{teacher}}": f"sum by (teacher) (rate(teacherfarm_joined_total{{{TP}}}{RATE})) "
                f"/ (sum by (teacher) (rate(teacherfarm_labels_total{{{TP}}}{RATE})) > 0)"
            },
            unit="percentunit",
            width=12,
            most=1,
        ),
        Panel(
            title="Labels found",
            about="Share of the labels that were kept and not computed again, where the server keeps labels "
            "(serve --store). Zero is right where every crop is a fresh one: then a store is no use.",
            queries={
                "{{project}} from {{teacher}}": "sum by (teacher, project) "
                f"(rate(teacherfarm_store_hits_total{{{TP}}}{RATE})) "
                f"/ (sum by (teacher, project) (rate(teacherfarm_labels_total{{{TP}}}{RATE})) > 0)"
            },
            unit="percentunit",
            width=12,
            most=1,
        ),
        Panel(
            title="Labels kept",
            about="Labels written to each layer of the store per second, and those that were not: a full queue, a full "
            "disk, or Redis gone (teacherfarm_store_up says which).",
            queries={
                "{{layer}} written": f"sum by (layer) (rate(teacherfarm_store_written_total{RATE}))",
                "{{layer}} dropped": f"sum by (layer) (rate(teacherfarm_store_dropped_total{RATE}))",
            },
            unit="suffix:labels/s",
            width=12,
        ),
        Panel(
            title="Traffic",
            about="Bytes of pixels received and of labels sent, by wire. A full link shows as a flat top.",
            queries={
                "{{wire}} received": f"sum by (wire) (rate(teacherfarm_received_bytes_total{RATE}))",
                "{{wire}} sent": f"sum by (wire) (rate(teacherfarm_sent_bytes_total{RATE}))",
            },
            unit="Bps",
            width=12,
        ),
    ),
    "Teachers": (
        Panel(
            title="Crops waiting",
            about="Crops in each teacher's queue. A queue that stays is demand beyond what the teachers give; "
            "students' windows bound it.",
            queries={"{{teacher}}": f"sum by (teacher) (teacherfarm_waiting_crops{{{T}}})"},
            unit="suffix:crops",
            width=8,
        ),
        Panel(
            title="Wait",
            about="How long a teacher batch's first slice waited for a free slot.",
            queries=quantiles("teacherfarm_wait_seconds"),
            unit="s",
            width=8,
        ),
        Panel(
            title="Run",
            about="How long a teacher batch ran, on the backend or on its way to an endpoint and back.",
            queries=quantiles("teacherfarm_run_seconds"),
            unit="s",
            width=8,
        ),
        Panel(
            title="Teacher batches",
            about="Teacher batches per second by their size in crops: the bucket's upper bound.",
            queries={"{{le}}": f"sum by (le) (increase(teacherfarm_batch_crops_bucket{{{T}}}{RATE}))"},
            unit="none",
            width=8,
            kind="heatmap",
        ),
        Panel(
            title="Crops per teacher batch",
            about="Mean size of teacher batches. Far below the largest one on a busy GPU: preferred_batch and "
            "max_wait_ms.",
            queries={
                "{{teacher}}": f"sum by (teacher) (rate(teacherfarm_batch_crops_sum{{{T}}}{RATE})) "
                f"/ (sum by (teacher) (rate(teacherfarm_batch_crops_count{{{T}}}{RATE})) > 0)"
            },
            unit="suffix:crops",
            width=8,
        ),
        Panel(
            title="Load",
            about="Share of each teacher's slots' time in which teacher batches ran.",
            queries={"{{teacher}}": f"teacherfarm:busy:ratio{{{T}}}"},
            unit="percentunit",
            width=8,
            most=1,
            steps=BUSY,
        ),
    ),
    "Students": (
        Panel(
            title="Waiting for labels",
            about="Share of their time that students waited, as they say themselves, by project and teacher.",
            queries={"{{project}} for {{teacher}}": f"teacherfarm_student_stall_ratio{{{TP}}}"},
            unit="percentunit",
            width=12,
            most=1,
            steps=WAITING,
        ),
        Panel(
            title="Sessions",
            about="Open sessions by wire.",
            queries={"{{wire}}": "sum by (wire) (teacherfarm_sessions)"},
            unit="none",
            width=12,
            stacked=True,
        ),
        Panel(
            title="Refusals",
            about="Sessions and slices refused per second: a wrong key (project -), a teacher that is not "
            "allowed, or a limit of the project. Students wait for room under a limit by themselves.",
            queries={
                "{{project}}: {{reason}}": f"sum by (project, reason) (rate(teacherfarm_refusals_total{RATE}))",
            },
            unit="suffix:refusals/s",
            width=12,
        ),
        Panel(
            title="Faults",
            about="Faults answered per second, by class; docs/USING.md says what each means. Overloaded, "
            "QuotaExceeded, NotReady and GoingAway pass by themselves.",
            queries={"{{fault}}": f"sum by (fault) (rate(teacherfarm_faults_total{RATE}))"},
            unit="suffix:faults/s",
            width=12,
        ),
    ),
    "Endpoints": (
        Panel(
            title="Endpoints",
            about="Every endpoint that is configured or resolved: whether the gateway uses it for the teacher.",
            queries={"{{endpoint}} {{teacher}}": f"min by (endpoint, teacher) (teacherfarm_endpoint_up{{{T}}})"},
            unit="none",
            width=12,
            kind="state-timeline",
            steps=UP,
            mappings=words({"0": ("out of use", RED), "1": ("in use", GREEN)}),
        ),
        Panel(
            title="Backends and slots",
            about="Backends that run each teacher now, and the teacher batches that they can run at once.",
            queries={
                "{{teacher}} backends": f"sum by (teacher) (teacherfarm_backends{{{T}}})",
                "{{teacher}} slots": f"sum by (teacher) (teacherfarm_slots{{{T}}})",
            },
            unit="none",
            width=12,
        ),
        Panel(
            title="Triton: crops",
            about="Crops that each Triton server computed per second. Equal servers on equal GPUs draw level.",
            queries={
                "{{instance}} {{model}}": "sum by (instance, model) "
                f'(rate(nv_inference_count{{model=~"$teacher"}}{RATE}))'
            },
            unit="suffix:crops/s",
            width=12,
        ),
        Panel(
            title="Triton: time per request",
            about="Where a request's time goes at each Triton server. Queueing there should be short: the "
            "gateway's slots bound what is under way.",
            queries={
                f"{{{{instance}}}} {what}": f"sum by (instance) (rate(nv_inference_{name}_duration_us{RATE})) / 1e6 "
                f"/ (sum by (instance) (rate(nv_inference_request_success{RATE})) > 0)"
                for what, name in (("queueing", "queue"), ("computing", "compute_infer"))
            },
            unit="s",
            width=12,
        ),
    ),
}
