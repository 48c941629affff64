"""Puts a report's page together: figures first, then curves, classes, agreement, speed and wire, the run itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from html import escape

from teacherfarm.student.accounts import ClientStats
from teacherfarm.student.recipes import report_classes
from teacherfarm.student.recipes.report import ReportData
from teacherfarm.student.recipes.report_charts import Series, confidences, line_chart, number, reliability
from teacherfarm.student.recipes.report_classes import table
from teacherfarm.student.recipes.report_style import STYLE
from teacherfarm.student.recipes.run_log import PassRow
from teacherfarm.student.tally import Tally

UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def page(data: ReportData) -> str:
    """The whole page; it loads nothing."""
    title = escape(data.title)
    sections = (
        _head(data),
        _section("Training", _curves(data)),
        *(_by_class(data, data.tally) if data.tally is not None and data.tally.student.crops else ()),
        _section("Speed and wire", _speed(data)),
        _section("This run", _run(data)),
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body><main>{''.join(sections)}</main></body></html>\n"
    )


def _head(data: ReportData) -> str:
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in data.notes)
    tiles = "".join(
        f'<div class="tile"><span>{escape(name)}</span><b>{escape(value)}</b><span>{escape(beside)}</span></div>'
        for name, value, beside in _tiles(data)
    )
    crops = f"<p class='soft'>{_count(data.result.crops)} crops evaluated</p>" if data.result.crops else ""
    return f'<h1>{escape(data.title)}</h1>{crops}{notes}<div class="tiles">{tiles}</div>'


def _tiles(data: ReportData) -> list[tuple[str, str, str]]:
    """Name, value and what stands beside it; figures that are not there are left out."""
    result, tally = data.result, data.tally
    teacher = tally.teacher if tally is not None else None
    teachers_error = f"teacher {teacher.calibration_error:.3f}" if teacher is not None else ""
    speed = data.passes[-1].images_per_s if data.passes else math.nan
    stall = data.passes[-1].stall if data.passes else math.nan
    offered: list[tuple[str, float, Callable[[float], str], str]] = [
        (
            result.names[0],
            result.top1,
            percent,
            f"teacher {percent(result.teacher_top1)}" if _is(result.teacher_top1) else "",
        ),
        (result.names[1], result.top5, percent, ""),
        ("calibration error", result.calibration_error, lambda value: f"{value:.3f}", teachers_error),
        ("agrees with the teacher", result.agreement, percent, ""),
        ("validation loss", result.loss, number, ""),
        ("crops per second", speed, lambda value: _count(round(value)), "last pass"),
        ("waited for labels", stall, percent, "of the last pass"),
    ]
    tiles = [(name, words(value), beside) for name, value, words, beside in offered if _is(value)]
    if data.client is not None and data.client.crops_answered:
        total = data.client.bytes_sent + data.client.bytes_received
        tiles.append(("on the wire", _bytes(total / data.client.crops_answered), "per crop, both ways"))
    return tiles


def _curves(data: ReportData) -> str:
    passes = data.passes
    if not passes:
        return ""

    def column(read: Callable[[PassRow], float], scale: float = 1.0) -> list[float]:
        return [scale * read(row) for row in passes]

    xs = column(lambda row: row.epoch)
    parts = [Series(name=name, values=values, colour=2 + place) for place, (name, values) in enumerate(_parts(data))]
    top1, top5 = column(lambda row: row.val_top1, 100), column(lambda row: row.val_top5, 100)
    charts = (
        line_chart(
            "Loss in training",
            xs,
            [Series(name="sum", values=column(lambda row: row.loss), colour=0), *parts],
        ),
        line_chart(
            "Accuracy on validation images",
            xs,
            [
                Series(name=name, values=values, colour=colour)
                for name, values, colour in zip(data.result.names, (top1, top5), (0, 2), strict=True)
            ],
            unit=" %",
            levels=[("teacher's top-1", 100 * data.result.teacher_top1)],
        ),
        line_chart(
            "Loss on validation images", xs, [Series(name="loss", values=column(lambda row: row.val_loss), colour=1)]
        ),
        line_chart(
            "Learning rate",
            xs,
            [Series(name="learning rate", values=column(lambda row: row.learning_rate), colour=6)],
            from_zero=True,
        ),
    )
    names = [field.name for field in dataclasses.fields(PassRow) if field.type in ("int", "float")]
    rows = [[number(float(getattr(row, name))) for name in names] for row in passes]
    figures = f"<details><summary>every pass in numbers</summary>{table(names, rows)}</details>"
    return f'<div class="charts">{"".join(charts)}</div>{figures}'


def _parts(data: ReportData) -> list[tuple[str, list[float]]]:
    """The loss's parts over the passes, gaps where a phase has none of that name; a single part is the sum itself."""
    names = list(dict.fromkeys(name for parts in data.parts for name in parts))
    if len(names) < 2 or len(data.parts) != len(data.passes):
        return []
    return [(name, [parts.get(name, math.nan) for parts in data.parts]) for name in names]


def _by_class(data: ReportData, tally: Tally) -> tuple[str, ...]:
    student, teacher = tally.student, tally.teacher
    models = [("student", student.bins, 0)] + ([("teacher", teacher.bins, 1)] if teacher is not None else [])
    errors = ", ".join(
        f"{name} {answers.calibration_error:.3f}"
        for name, answers in (("student", student), ("teacher", teacher))
        if answers is not None
    )
    calibration = (
        f"<p class='soft'>Expected calibration error: {errors}. On the dashed line a model that says 80 % is right in "
        "80 of 100 cases; below it, it is too sure. Larger points stand for more crops.</p>"
        f'<div class="charts">{reliability("How often answers are right", models)}'
        f"{confidences('How sure answers are', models)}</div>"
    )
    tables = report_classes.most_confused(student, data.classes), report_classes.weakest(student, teacher, data.classes)
    confused = (
        f'<div class="charts"><div class="card">{report_classes.confusion(student, data.classes)}</div>'
        f'<div class="card"><div class="side">{"".join(tables)}</div></div></div>'
    )
    agreement = report_classes.agreement(tally)
    return (
        _section("Confusion, in % of each class (rows: the data's class)", confused),
        _section("Calibration", calibration),
        _section("Student and teacher", f'<div class="card">{agreement}</div>' if agreement else ""),
    )


def _speed(data: ReportData) -> str:
    xs = [row.epoch for row in data.passes]
    speeds = Series(name="crops per second", values=[row.images_per_s for row in data.passes], colour=2)
    stalls = Series(name="waited for labels", values=[100 * row.stall for row in data.passes], colour=1)
    charts = ""
    if xs:
        charts = line_chart("Crops per second", xs, [speeds], from_zero=True) + line_chart(
            "Time spent waiting for labels", xs, [stalls], unit=" %", from_zero=True
        )
    words = f"<p>{escape(data.stall)}</p>" if data.stall else ""
    wire = f'<div class="card">{table(("on the wire", ""), _wire(data, data.client))}</div>' if data.client else ""
    return f'{words}<div class="charts">{charts}{wire}</div>' if words or charts or wire else ""


def _wire(data: ReportData, client: ClientStats) -> list[tuple[str, str]]:
    answered = client.crops_answered
    rows = [("address", data.wire)] if data.wire else []
    rows += [("crops answered", _count(answered)), ("sent", _bytes(client.bytes_sent))]
    rows.append(("received", _bytes(client.bytes_received)))
    if answered:
        rows.append(("sent per crop", _bytes(client.bytes_sent / answered)))
        rows.append(("received per crop", _bytes(client.bytes_received / answered)))
    rows.append(("sessions", _count(client.sessions)))
    trouble = (("without an answer", "starved"), ("failed", "failed"), ("sent again", "resent"))
    counts = [(f"crops {words}", getattr(client, f"crops_{name}")) for words, name in trouble]
    return rows + [(words, _count(count)) for words, count in counts if count]


def _run(data: ReportData) -> str:
    facts = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in data.facts.items())
    shown = f'<div class="card"><table class="facts"><tbody>{facts}</tbody></table></div>' if facts else ""
    settings = (
        f"<details><summary>settings</summary><div class='card'><pre>{escape(data.settings)}</pre></div></details>"
    )
    return shown + (settings if data.settings else "")


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{inside}</section>" if inside else ""


def percent(share: float) -> str:
    """A share from 0 to 1."""
    return f"{100 * share:.1f} %"


def _is(value: float) -> bool:
    return math.isfinite(value)


def _count(value: int) -> str:
    return f"{value:,}".replace(",", "\u202f")


def _bytes(value: float) -> str:
    for size, unit in UNITS:
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} bytes"
