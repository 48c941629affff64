"""What may a label and a crop weigh? teacherfarm labels study DATA --teacher-address ADDRESS --out DIR

Asks a teacher about random crops of real images and compares formats of its answers, and ways to send it the crops,
with what it says in full precision. Trains nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from teacherfarm.crops.crop_plan import CropPlan
from teacherfarm.crops.sample_readers import open_samples
from teacherfarm.label_store.recorded_labels import RecordedLabels
from teacherfarm.student.recipes.folders import training_images
from teacherfarm.student.recipes.study_answers import ROUNDED, Answers, open_answers, recorded_log_probabilities
from teacherfarm.student.recipes.study_drift import Drift, drift, tempered
from teacherfarm.student.recipes.study_formats import NAMES, LabelFormat, formats
from teacherfarm.student.recipes.study_pictures import draw_crops, draw_labels
from teacherfarm.student.recipes.study_pixels import REFERENCE_BYTES, CropSample, arrivals, check_pictures, num_ways
from teacherfarm.student.recipes.study_rows import Row, Table, nats

FEWEST_CROPS = 2


def main(options: argparse.Namespace) -> int:
    """Run the command. Mistakes and faults are raised."""
    check(options)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    if options.labels:
        return of_recorded(options)
    asked = open_answers(
        options.teacher_address,
        options.teacher,
        digest=options.digest,
        api_key=options.api_key,
        answer_s=options.answer_timeout,
    )
    with asked as teacher:
        return of_teacher(options, teacher)


def check(options: argparse.Namespace) -> None:
    """ValueError for arguments that do not go together."""
    if bool(options.labels) == bool(options.teacher_address):
        raise ValueError("either --teacher-address ADDRESS (with DATA) or --labels DIR says where labels come from")
    if bool(options.data) == bool(options.labels):
        raise ValueError("DATA, the images, goes with --teacher-address; recorded labels (--labels) need none")
    if options.labels and options.only == "crops":
        raise ValueError("a study of crops asks a teacher about other pixels: --teacher-address ADDRESS, not --labels")
    if options.crops < FEWEST_CROPS:
        raise ValueError(f"--crops is at least {FEWEST_CROPS}, got {options.crops}")
    if not options.budget > 0:
        raise ValueError(f"--budget is a mean divergence in nats above 0, got {options.budget:g}")
    for temperature in (*options.temperatures, options.temperature):
        LabelFormat(top_k=1).spec(temperature)
    if min(options.top_k) < 1:
        raise ValueError(f"--top-k counts classes, at least 1; dense is always there; got {min(options.top_k)}")


def of_recorded(options: argparse.Namespace) -> int:
    """A study of labels that were recorded dense."""
    recorded = RecordedLabels.open(options.labels)
    generator = np.random.default_rng(options.seed)
    num_samples, num_views = len(recorded.index), recorded.manifest.views
    chosen = generator.choice(num_samples * num_views, min(options.crops, num_samples * num_views), replace=False)
    rows, views = chosen % num_samples, chosen // num_samples
    full = recorded_log_probabilities(recorded.soft_labels(rows, views))
    teacher = recorded.manifest.teacher
    print(f"recorded  {options.labels}: {len(full)} labels of {teacher.name}, {teacher.num_classes} classes")
    report = [*_label_study(options, full, ROUNDED, teacher.name)]
    _write_report(options, report)
    return 0


def of_teacher(options: argparse.Namespace, teacher: Answers) -> int:
    """A study of a live teacher."""
    card = teacher.card
    if card.activation != "softmax":
        raise ValueError(
            f"teacher {card.name!r} gives no distribution over classes ({card.activation}): its labels are dense or "
            "features, and there is nothing to compare"
        )
    check_pictures(card)
    location = training_images(options.data)
    reader = open_samples(location)
    scale = tuple(options.crop_scale) if options.crop_scale else card.crop_scale
    plan = CropPlan(seed=options.seed, scale=scale, ratio=card.crop_ratio)
    sample = CropSample(reader, num_crops=options.crops, plan=plan)
    print(f"teacher   {card.name}: {card.num_classes} classes, digest {card.teacher_digest[:12]}, {teacher.precision}")
    print(f"images    {location}: crops of {scale[0]:g} to {scale[1]:g} of the area")

    ways = arrivals(sample, card.rendering, card.crop_format)
    total = num_ways(card.rendering) if options.only != "labels" else 1
    full: NDArray[np.float32] | None = None
    truth: dict[float, NDArray[np.float64]] = {}
    rows: list[Row] = []
    with tqdm(total=total, desc="asking the teacher", unit=" ways", disable=None, leave=False) as bar:
        for arrival in ways:
            answer = teacher.log_probabilities(arrival.pixels)
            bar.update()
            if full is None:
                full = answer
                truth = {temperature: tempered(full, temperature) for temperature in _temperatures(options)}
            rows.append(
                Row(
                    cells={"kind": arrival.way.group, "way": arrival.way.name},
                    num_bytes=arrival.crop_bytes,
                    drift={t: drift(np.exp(tempered(answer, t)), truth[t]) for t in truth},
                    settings=dict.fromkeys(truth, arrival.way.advice) if arrival.way.advice else {},
                    seconds=arrival.seconds,
                )
            )
            if options.only == "labels":
                break
    assert full is not None
    print(f"asked     {len(full)} crops of {sample.num_images} images")
    report: list[str] = []
    if options.only != "crops":
        report += _label_study(options, full, teacher.precision, card.name)
    if options.only != "labels":
        report += _crop_study(options, rows, card.name)
    _write_report(options, report)
    return 0


def _label_study(options: argparse.Namespace, full: NDArray[np.float32], precision: str, name: str) -> list[str]:
    temperatures, num_classes = _temperatures(options), full.shape[1]
    truth = {temperature: tempered(full, temperature) for temperature in temperatures}
    rows = []
    for kind in tqdm(list(formats(options.top_k, num_classes)), desc="formats", disable=None, leave=False):
        drifts: dict[float, Drift] = {t: drift(kind.read_back(full, t), truth[t]) for t in temperatures}
        rows.append(
            Row(
                cells={
                    "label": kind.name,
                    "numbers": NAMES[kind.number_type],
                    "completion": kind.completion if kind.top_k else "",
                },
                num_bytes=kind.label_bytes(num_classes),
                drift=drifts,
                settings={t: _label_setting(kind, t) for t in temperatures} if kind.spec_known else {},
            )
        )
    table = Table(rows=rows, temperatures=temperatures, temperature=options.temperature, budget=options.budget)
    title = f"Labels of {name}, {len(full)} crops, {num_classes} classes"
    said = [f"full precision: {precision}", *_chosen(table, "label")]
    if options.out is not None:
        draw_labels(table, options.out / "labels.png", title=title)
    return _show(options, title, table, said, "labels")


def _crop_study(options: argparse.Namespace, rows: list[Row], name: str) -> list[str]:
    temperatures = _temperatures(options)
    table = Table(rows=rows, temperatures=temperatures, temperature=options.temperature, budget=options.budget)
    title = f"Crops for {name}, {rows[0].drift[options.temperature].num_crops} crops"
    said = [
        f"by reference (serve --dataset NAME=PATH): {REFERENCE_BYTES} bytes, no drift: the server cuts the same pixels",
        *_chosen(table, "crop"),
        "µs: to cut one crop (raw) or to encode and decode it (jpeg), on one core of this machine",
    ]
    if options.out is not None:
        draw_crops(table, options.out / "crops.png", title=title)
    return _show(options, title, table, said, "crops")


def _label_setting(kind: LabelFormat, temperature: float) -> str:
    if not kind.top_k:
        return "LabelSpec()"
    cut = "" if temperature == 1.0 else f", temperature={temperature:g}"
    return f'LabelSpec(top_k={kind.top_k}{cut}), completion="{kind.completion}"'


def _chosen(table: Table, what: str) -> list[str]:
    """What keeps the budget, in words."""
    offered, any_ = table.smallest(offered=True), table.smallest(offered=False)
    asked = f"{table.budget:g} nats on average at temperature {table.temperature:g}"
    if offered is None:
        return [f"no {what} that can be asked for keeps {asked}: allow more (--budget)"]
    found = offered.drift[table.temperature]
    figures = f"{nats(found.kl_mean)} ± {nats(found.kl_error)}, worst {nats(found.kl_worst)}"
    said = [
        f"smallest {what} within {asked}: {offered.name}, {offered.num_bytes:.0f} bytes ({figures})",
        f"to write: {offered.settings[table.temperature]}",
    ]
    if any_ is not None and any_.num_bytes < offered.num_bytes:
        kept = any_.drift[table.temperature]
        said.append(f"smaller, but no setting gives it: {any_.name}, {any_.num_bytes:.0f} bytes ({nats(kept.kl_mean)})")
    return said


def _temperatures(options: argparse.Namespace) -> tuple[float, ...]:
    return tuple(sorted({*options.temperatures, options.temperature}))


def _show(options: argparse.Namespace, title: str, table: Table, said: list[str], name: str) -> list[str]:
    """Print one table and what follows from it; the same for the report."""
    print(f"\n{title}: bytes against KL from full precision in nats (* Pareto front, > chosen)")
    print(*table.lines(everything=name == "crops"), "", *said, sep="\n")
    if options.out is None:
        return []
    table.write_csv(options.out / f"{name}.csv")
    words = [f"- {sentence}" for sentence in said]
    return [f"## {title}", "", *words, "", f"![]({name}.png)", "", *table.markdown(), ""]


def _write_report(options: argparse.Namespace, report: list[str]) -> None:
    if options.out is None:
        return
    path: Path = options.out / "report.md"
    head: list[Any] = [
        "# What a label and a crop may weigh",
        "",
        "`*` Pareto front, `>` chosen; divergences in nats.",
        "",
    ]
    path.write_text("\n".join([*head, *report]))
    print(f"\nwritten: {path} and what it shows")
