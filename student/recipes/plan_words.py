"""Says in words and tables what a plan's figures are and which way is cheapest, and why. Computes nothing new."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from teacherfarm.student.recipes.plan_arithmetic import (
    IN_THE_LOOP,
    LINK,
    LOADING,
    TEACHERS,
    Costs,
    Setup,
    Way,
    cheapest_of,
    core_seconds,
    teachers_for,
)
from teacherfarm.student.recipes.study_rows import aligned

FEW_VIEWS = 50


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One input: where it comes from, and which option gives another."""

    name: str
    value: float
    unit: str
    source: str
    option: str = ""


def figure_lines(figures: Sequence[Figure]) -> list[str]:
    """One line a figure, the assumed ones as plain as the measured ones."""
    rows = [(figure.name, f"{short(figure.value)} {figure.unit}", figure.source, figure.option) for figure in figures]
    return aligned(rows, num_left=4)


def way_lines(setup: Setup, ways: Sequence[Way]) -> list[str]:
    """The comparison; ``>`` marks the cheapest."""
    cheapest = cheapest_of(ways)
    header = (
        "",
        "",
        "crops/s",
        "wall h",
        "teacher h",
        "wire MB/s",
        "disk GB",
        "cores",
        "server cores",
        "cost",
        "bound by",
    )
    widest = max(len(way.bound) for way in ways)
    rows = [
        (
            ">" if way is cheapest else "",
            way.name,
            short(way.crops_per_s),
            short(way.wall_hours),
            short(way.teacher_hours),
            short(way.wire_bytes_per_s / 1e6),
            short(way.disk_bytes / 1e9),
            short(way.decode_cores),
            short(way.server_cores),
            short(way.cost),
            way.bound.ljust(widest),
        )
        for way in ways
    ]
    paid = "all the time that the farm is asked" if setup.dedicated else "the hours that teachers compute"
    return [
        *aligned([(*header[:-1], header[-1].ljust(widest)), *rows], num_left=2),
        f"cost: device-hours of students and teachers ({paid}) at their prices; disk and network have none",
        "wire, server cores: while labels are asked; cores: loading at the student while it trains",
    ]


def advice(setup: Setup, costs: Costs, ways: Sequence[Way]) -> list[str]:
    """Which way, and why."""
    cheapest = cheapest_of(ways)
    fastest = min(ways, key=lambda way: way.wall_hours)
    said = [
        f"Cheapest: {cheapest.name}, {short(cheapest.cost)} in {short(cheapest.wall_hours)} hours.",
        _why(setup, cheapest, ways),
    ]
    if fastest.wall_hours < 0.98 * cheapest.wall_hours:
        said.append(f"Fastest: {fastest.name}, {short(fastest.wall_hours)} hours.")
    if not cheapest.fresh:
        fresh = cheapest_of([way for way in ways if way.fresh])
        said.append(f"Where each crop must be a new one (FunMatch), the cheapest is {fresh.name}: {short(fresh.cost)}.")
        if setup.views < FEW_VIEWS:
            said.append(f"{setup.views} views are few: a student that replays fewer than {FEW_VIEWS} overfits to them.")
    return said + _obstacles(setup, costs, ways)


def _why(setup: Setup, cheapest: Way, ways: Sequence[Way]) -> str:
    used = setup.epochs * setup.runs
    if cheapest.labels < setup.crops:
        times = setup.crops / cheapest.labels
        hours = setup.crops / setup.teacher_rate / 3600
        return (
            f"Why: {setup.views} labels an image are computed once and used {short(times)} times each, so teachers "
            f"work {short(cheapest.teacher_hours)} hours; streaming takes them {short(hours)}."
        )
    if cheapest.name == IN_THE_LOOP:
        farm = cheapest_of([way for way in ways if way is not cheapest])
        return (
            f"Why: at {short(setup.loop_rate)} crops/s beside the student the teacher costs less there than what "
            f"{farm.name} pays for teachers of its own ({short(farm.cost)})."
        )
    saves = "saves no label" if setup.views >= used else "costs more"
    return f"Why: with {setup.views} views for {used} epochs in all, recording {saves}, and the student only trains."


def _obstacles(setup: Setup, costs: Costs, ways: Sequence[Way]) -> list[str]:
    """What keeps a way from the student's own speed, and what would help."""
    said = []
    named = {way.name: way for way in ways}
    share = named[IN_THE_LOOP].crops_per_s / setup.loop_rate
    said.append(f"With the teacher in the loop the student's device works {share:.0%} of its time for the teacher.")
    if named["stream raw"].bound == LINK:
        need, has = setup.student_rate * costs.raw_bytes * 8 / 1e6, setup.link_bytes * 8 / 1e6
        said.append(
            f"Raw crops for a busy student are {short(need)} Mbit/s, the link carries {short(has)}: send jpeg or by "
            "reference."
        )
    if any(way.bound.startswith(TEACHERS) for way in ways):
        needed = teachers_for(setup.student_rate, setup.teacher_rate)
        said.append(f"{count_teachers(setup.teachers)} cannot feed this student; {needed} can.")
    if any(way.bound.startswith(LOADING) for way in ways):
        cores = setup.student_rate * core_seconds(costs, setup.crops_per_image, None)
        said.append(
            f"Loading for a busy student takes {short(cores)} cores or more, there are {short(setup.cores)}: give it "
            "more cores, more crops per decode, or smaller images on disk."
        )
    return said


def count_teachers(number: float) -> str:
    return "1 teacher" if number == 1 else f"{short(number)} teachers"


def short(value: float) -> str:
    """Three digits, without exponents where that is readable."""
    if value >= 1e7:
        return f"{value:.3g}"
    return f"{value:,.0f}".replace(",", " ") if value >= 100 else f"{value:.3g}"
