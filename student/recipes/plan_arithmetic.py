"""What a training run costs with the teacher in the loop, streaming, or recording and replaying. Pure formulas.

N images, E epochs, R runs: N * E * R crops are trained on. A way's rate is the least of what its parts allow, in
crops/s:

    student        S                      teacher in the loop   1 / (1 / S + 1 / L): one device does one after the other
    teachers       G * T                  link                  bytes/s / (the larger of a crop up and a label down)
    loading        cores / (decode / m + cut + what this way needs besides), in core-seconds per crop

Streaming labels every crop. Recording labels V views of an image once, N * V in all; recording while training labels
no more than are used, N * min(V, E * R), and replays the others. A teacher's hours are those it computes; a farm that
stands by for this run alone is paid for the whole time that it is asked (``dedicated``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Wire = Literal["raw", "jpeg", "reference"]
WIRES: tuple[Wire, ...] = ("raw", "jpeg", "reference")

CHECKSUM_BYTES = 8 / 1024
"""One 8-byte checksum for each block of about 1024 recorded labels."""

IN_THE_LOOP = "teacher in the loop"
STUDENT, TEACHERS, LINK, LOADING = "the student", "the teachers", "the link", "loading"
"""What a way's rate may be bound by."""

_HOUR_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What one crop or image costs. Seconds are of one core; ``decode_s`` is per image, the others are per crop.

    ``teacher_cut_s``: cutting the teacher's view where it differs from the student's, else 0 is counted for students
    (``same_view``). ``encode_s``, ``unpack_s``: JPEG at either end.
    """

    decode_s: float
    student_cut_s: float
    teacher_cut_s: float
    encode_s: float
    unpack_s: float
    raw_bytes: float
    jpeg_bytes: float
    reference_bytes: float
    label_bytes: float
    same_view: bool = False

    def up_bytes(self, wire: Wire) -> float:
        """Bytes of one crop on its way to a teacher."""
        return {"raw": self.raw_bytes, "jpeg": self.jpeg_bytes, "reference": self.reference_bytes}[wire]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What there is. Rates in crops/s: ``student_rate`` with nothing to wait for, ``teacher_rate`` of one of
    ``teachers``, ``loop_rate`` of the teacher on the student's device. ``cores``: for loading, at the student;
    ``link_bytes``: per second, each way. Prices are per device and hour.
    """

    num_images: int
    epochs: int
    runs: int
    views: int
    crops_per_image: int
    student_rate: float
    teacher_rate: float
    teachers: float
    loop_rate: float
    cores: float
    link_bytes: float
    student_devices: int = 1
    student_price: float = 1.0
    teacher_price: float = 1.0
    dedicated: bool = False

    @property
    def crops(self) -> int:
        """That all runs train on."""
        return self.num_images * self.epochs * self.runs

    @property
    def farm_rate(self) -> float:
        return self.teachers * self.teacher_rate


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to train all runs. ``bound``: what its rate is limited by. ``student_hours``: of wall time with the
    student's devices taken; ``wall_hours``: with recording beforehand, too. ``wire_bytes_per_s``: both directions, and
    ``server_cores``, while labels are asked. ``decode_cores``: at the student, while it trains. ``fresh``: no crop is
    seen twice.
    """

    name: str
    bound: str
    crops_per_s: float
    labels: float
    teacher_hours: float
    student_hours: float
    wall_hours: float
    wire_bytes_per_s: float
    disk_bytes: float
    decode_cores: float
    server_cores: float
    cost: float
    fresh: bool


def core_seconds(costs: Costs, crops_per_image: int, wire: Wire | None, *, in_loop: bool = False) -> float:
    """Core-seconds at the student for one trained crop; ``wire`` None: replayed, or labelled ``in_loop``."""
    views_cut = costs.student_cut_s
    if (wire in ("raw", "jpeg") or in_loop) and not costs.same_view:
        views_cut += costs.teacher_cut_s
    return costs.decode_s / crops_per_image + views_cut + (costs.encode_s if wire == "jpeg" else 0.0)


def server_seconds(costs: Costs, crops_per_image: int, wire: Wire) -> float:
    """Core-seconds at the server for one labelled crop, the teacher's own not counted."""
    if wire == "reference":
        return costs.decode_s / crops_per_image + costs.teacher_cut_s
    return costs.unpack_s if wire == "jpeg" else 0.0


def link_rate(setup: Setup, costs: Costs, wire: Wire) -> float:
    """Crops/s that the link carries."""
    return setup.link_bytes / max(costs.up_bytes(wire), costs.label_bytes)


def in_the_loop(setup: Setup, costs: Costs) -> Way:
    """The teacher on the student's own device."""
    seconds = core_seconds(costs, setup.crops_per_image, None, in_loop=True)
    rate, bound = _least(
        ("the device, which runs teacher and student in turn", 1 / (1 / setup.student_rate + 1 / setup.loop_rate)),
        (LOADING, setup.cores / seconds),
    )
    hours = setup.crops / rate / _HOUR_S
    return Way(
        name=IN_THE_LOOP,
        bound=bound,
        crops_per_s=rate,
        labels=setup.crops,
        teacher_hours=setup.crops / setup.loop_rate / _HOUR_S,
        student_hours=hours,
        wall_hours=hours,
        wire_bytes_per_s=0.0,
        disk_bytes=0.0,
        decode_cores=rate * seconds,
        server_cores=0.0,
        cost=hours * setup.student_devices * setup.student_price,
        fresh=True,
    )


def streaming(setup: Setup, costs: Costs, wire: Wire) -> Way:
    """Every crop is labelled while the student trains."""
    rate, bound = _stream_rate(setup, costs, wire)
    hours = setup.crops / rate / _HOUR_S
    return Way(
        name={"raw": "stream raw", "jpeg": "stream jpeg", "reference": "stream by reference"}[wire],
        bound=bound,
        crops_per_s=rate,
        labels=setup.crops,
        teacher_hours=setup.crops / setup.teacher_rate / _HOUR_S,
        student_hours=hours,
        wall_hours=hours,
        wire_bytes_per_s=rate * (costs.up_bytes(wire) + costs.label_bytes),
        disk_bytes=0.0,
        decode_cores=rate * core_seconds(costs, setup.crops_per_image, wire),
        server_cores=rate * server_seconds(costs, setup.crops_per_image, wire),
        cost=_price(setup, student_hours=hours, labels=setup.crops, asked_hours=hours),
        fresh=True,
    )


def recording_first(setup: Setup, costs: Costs, wire: Wire) -> Way:
    """All views are labelled, then every run replays."""
    labels = setup.num_images * setup.views
    cutting = costs.decode_s / setup.crops_per_image + costs.teacher_cut_s + (costs.encode_s if wire == "jpeg" else 0)
    here = 0.0 if wire == "reference" else cutting
    parts = [(TEACHERS, setup.farm_rate), (LINK, link_rate(setup, costs, wire))]
    record_rate, record_bound = _least(*parts, *([(LOADING, setup.cores / here)] if here else []))
    record_hours = labels / record_rate / _HOUR_S
    replay_rate, replay_bound, replay_s = _replay_rate(setup, costs)
    hours = setup.crops / replay_rate / _HOUR_S
    return Way(
        name="record, then replay",
        bound=f"{replay_bound}; recording: {record_bound} ({record_rate:.0f}/s)",
        crops_per_s=replay_rate,
        labels=labels,
        teacher_hours=labels / setup.teacher_rate / _HOUR_S,
        student_hours=hours,
        wall_hours=hours + record_hours,
        wire_bytes_per_s=record_rate * (costs.up_bytes(wire) + costs.label_bytes),
        disk_bytes=disk_bytes(setup, costs),
        decode_cores=replay_rate * replay_s,
        server_cores=record_rate * server_seconds(costs, setup.crops_per_image, wire),
        cost=_price(setup, student_hours=hours, labels=labels, asked_hours=record_hours),
        fresh=setup.views >= setup.epochs * setup.runs,
    )


def recording_meanwhile(setup: Setup, costs: Costs, wire: Wire) -> Way:
    """Labels are recorded as they stream, until all views are there; the rest of all runs replays."""
    asked = setup.num_images * min(setup.views, setup.epochs * setup.runs)
    stream_rate, bound = _stream_rate(setup, costs, wire)
    replay_rate, _, replay_s = _replay_rate(setup, costs)
    asked_hours = asked / stream_rate / _HOUR_S
    hours = asked_hours + (setup.crops - asked) / replay_rate / _HOUR_S
    rate = setup.crops / (hours * _HOUR_S)
    streamed_cores = stream_rate * core_seconds(costs, setup.crops_per_image, wire)
    return Way(
        name="record while training",
        bound=f"{bound} while it streams",
        crops_per_s=rate,
        labels=asked,
        teacher_hours=asked / setup.teacher_rate / _HOUR_S,
        student_hours=hours,
        wall_hours=hours,
        wire_bytes_per_s=stream_rate * (costs.up_bytes(wire) + costs.label_bytes),
        disk_bytes=disk_bytes(setup, costs) * asked / (setup.num_images * setup.views),
        decode_cores=max(streamed_cores, replay_rate * replay_s),
        server_cores=stream_rate * server_seconds(costs, setup.crops_per_image, wire),
        cost=_price(setup, student_hours=hours, labels=asked, asked_hours=asked_hours),
        fresh=setup.views >= setup.epochs * setup.runs,
    )


def all_ways(setup: Setup, costs: Costs) -> list[Way]:
    """Every way; recording by the wire that streams fastest, of equal ones the one with fewest bytes."""
    fastest = max(WIRES, key=lambda wire: (_stream_rate(setup, costs, wire)[0], -costs.up_bytes(wire)))
    return [
        in_the_loop(setup, costs),
        *(streaming(setup, costs, wire) for wire in WIRES),
        recording_first(setup, costs, fastest),
        recording_meanwhile(setup, costs, fastest),
    ]


def cheapest_of(ways: Sequence[Way]) -> Way:
    """The least cost; of costs that differ by a hundredth at most the least wall time, then the fewest cores and
    bytes on disk.
    """
    least = min(way.cost for way in ways)
    equal = [way for way in ways if way.cost <= 1.01 * least]
    return min(equal, key=lambda way: (way.wall_hours, way.decode_cores + way.server_cores, way.disk_bytes))


def disk_bytes(setup: Setup, costs: Costs) -> float:
    """Of all recorded labels."""
    return setup.num_images * setup.views * (costs.label_bytes + CHECKSUM_BYTES)


def teachers_for(student_rate: float, teacher_rate: float) -> int:
    """So many teachers keep a student busy."""
    return math.ceil(student_rate / teacher_rate)


def _stream_rate(setup: Setup, costs: Costs, wire: Wire) -> tuple[float, str]:
    return _least(
        (STUDENT, setup.student_rate),
        (TEACHERS, setup.farm_rate),
        (LINK, link_rate(setup, costs, wire)),
        (LOADING, setup.cores / core_seconds(costs, setup.crops_per_image, wire)),
    )


def _replay_rate(setup: Setup, costs: Costs) -> tuple[float, str, float]:
    seconds = core_seconds(costs, setup.crops_per_image, None)
    return *_least((STUDENT, setup.student_rate), (LOADING, setup.cores / seconds)), seconds


def _least(*parts: tuple[str, float]) -> tuple[float, str]:
    """The least rate and whose it is; the first of equal ones."""
    name, rate = min(parts, key=lambda part: part[1])
    return rate, name


def _price(setup: Setup, *, student_hours: float, labels: float, asked_hours: float) -> float:
    computed = labels / setup.teacher_rate / _HOUR_S
    teacher_hours = setup.teachers * asked_hours if setup.dedicated else computed
    student = student_hours * setup.student_devices * setup.student_price
    return student + teacher_hours * setup.teacher_price
