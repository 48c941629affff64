"""Which way is cheapest? teacherfarm plan DATA --student-rate 2500 --teacher-address ADDRESS

Gathers figures (given, measured or assumed, and says which), has the ways compared, and prints what follows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from dataclasses import dataclass

from teacherfarm.crops.sample_readers import SampleReader, open_samples
from teacherfarm.protos.crop import Rendering
from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.student.blocking import TeacherClient
from teacherfarm.student.recipes.folders import training_images
from teacherfarm.student.recipes.plan_arithmetic import Costs, Setup, all_ways, teachers_for
from teacherfarm.student.recipes.plan_command import CROPS_PER_IMAGE, EPOCHS, LINK_MBIT_S
from teacherfarm.student.recipes.plan_measure import FarmFacts, ImageFacts, measure_farm, measure_images
from teacherfarm.student.recipes.plan_words import Figure, advice, count_teachers, figure_lines, way_lines
from teacherfarm.student.recipes.study_formats import LabelFormat
from teacherfarm.student.recipes.study_pixels import REFERENCE_BYTES, check_pictures
from teacherfarm.student.settings import Timeouts

USUAL_SIZE, USUAL_CLASSES, USUAL_VIEWS = 224, 1000, 50
POSITIVE = (
    *("images", "student_rate", "student_devices", "student_size", "epochs", "runs", "crops_per_image", "cores"),
    *("teacher_rate", "teachers", "loop_rate", "measure", "classes", "views", "link", "size", "sample"),
)


def main(options: argparse.Namespace) -> int:
    """Run the command. Mistakes and faults are raised."""
    check(options)
    reader = open_samples(training_images(options.data))
    if not options.teacher_address:
        size = options.size or USUAL_SIZE
        rendering = Rendering(height=size, width=size)
        images = _images(options, reader, rendering)
        return show(options, images, card=None, farm=None, rendering=rendering)
    with TeacherClient(
        options.teacher_address,
        options.teacher,
        digest=options.digest,
        api_key=options.api_key,
        spec=LabelSpec(top_k=options.top_k),
        timeouts=Timeouts(answer_s=options.answer_timeout),
        on_starved="raise",
    ) as teacher:
        card = teacher.card
        check_pictures(card)
        images = _images(options, reader, card.rendering)
        farm = None
        if options.teacher_rate is None:
            farm = measure_farm(teacher, images.crops, seconds=options.measure, seed=options.seed)
        return show(options, images, card=card, farm=farm, rendering=card.rendering)


def check(options: argparse.Namespace) -> None:
    """ValueError for arguments that cannot be planned with."""
    if options.teacher_rate is None and not options.teacher_address:
        raise ValueError(
            "how fast is a teacher? --teacher-rate CROPS/S of one of them, or --teacher-address ADDRESS to measure "
            "your farm (local://MODELS: the teacher on this machine)"
        )
    for name in POSITIVE:
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name.replace('_', '-')} must be positive, got {value:g}")
    for name in ("student_price", "teacher_price", "top_k"):
        if getattr(options, name) < 0:
            raise ValueError(f"--{name.replace('_', '-')} must not be negative, got {getattr(options, name):g}")
    if options.teacher_address and options.size is not None:
        raise ValueError("--size is the card's where --teacher-address names a teacher: leave one of them out")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the formulas take, and where each figure comes from."""

    setup: Setup
    costs: Costs
    figures: list[Figure]


def gather(
    options: argparse.Namespace,
    images: ImageFacts,
    *,
    card: TeacherCard | None,
    farm: FarmFacts | None,
    rendering: Rendering,
) -> Inputs:
    """Options, measurements and assumptions as the formulas' inputs."""
    figures: list[Figure] = []

    def note(name: str, value: float, unit: str, source: str, option: str = "") -> float:
        figures.append(Figure(name=name, value=value, unit=unit, source=source, option=option))
        return value

    def given(name: str, unit: str, option: str, fallback: float, source: str) -> float:
        """An option's value; ``fallback`` from ``source`` where it was left out (or left at its default)."""
        value = getattr(options, option.strip("-").replace("-", "_"))
        known = value is not None and value != fallback
        return note(name, value if known else fallback, unit, "given" if known else source, option)

    measured = f"measured here on {images.num_measured} of the images"
    of_farm = (farm.teacher_rate, _of_farm(farm)) if farm is not None else (0.0, "given")
    teacher_rate = given("one teacher", "crops/s", "--teacher-rate", *of_farm)
    student_rate = note("student, never waiting", options.student_rate, "crops/s", "given", "--student-rate")
    known = farm.teachers if farm is not None and farm.teachers else None
    as_needed = teachers_for(student_rate, teacher_rate)
    of_teachers = (known, "the farm's") if known else (as_needed, "as many as keep the student busy")
    teachers = given("teachers", "", "--teachers", *of_teachers)
    num_images = int(given("images", "", "--images", images.num_images, "counted"))
    of_card = (card.num_classes, "its card") if card is not None else (USUAL_CLASSES, "assumed")
    num_classes = int(given("classes", "", "--classes", *of_card))
    used = options.epochs * options.runs
    label = LabelFormat(top_k=0 if options.top_k >= num_classes else options.top_k)
    why_views = "as many as are used" if used <= USUAL_VIEWS else "the fewest that replay without a warning"
    views = given("recorded views per image", "", "--views", min(USUAL_VIEWS, used), why_views)
    setup = Setup(
        num_images=num_images,
        epochs=int(given("epochs", "", "--epochs", EPOCHS, "default, FKD's")),
        runs=int(given("runs with these labels", "", "--runs", 1, "default")),
        views=int(views),
        crops_per_image=int(given("crops per decode", "", "--crops-per-image", CROPS_PER_IMAGE, "default, FKD's m")),
        student_rate=student_rate,
        teacher_rate=teacher_rate,
        teachers=teachers,
        loop_rate=given("teacher on the student's device", "crops/s", "--loop-rate", teacher_rate, "as one teacher"),
        cores=given("cores for loading", "", "--cores", len(os.sched_getaffinity(0)), "this machine's"),
        link_bytes=given("link, each way", "Mbit/s", "--link", LINK_MBIT_S, "assumed") * 1e6 / 8,
        student_devices=options.student_devices,
        student_price=given(
            "price of a student's device", "an hour", "--student-price", 1.0, "default: hours are counted"
        ),
        teacher_price=given("price of a teacher", "an hour", "--teacher-price", 1.0, "default: hours are counted"),
        dedicated=options.dedicated,
    )
    student = _student_rendering(options, rendering)
    costs = Costs(
        decode_s=note("decoding an image", images.decode_s * 1e3, "ms", measured) / 1e3,
        student_cut_s=note("cutting a student's crop", images.student_cut_s * 1e3, "ms", measured) / 1e3,
        teacher_cut_s=note("cutting a teacher's crop", images.teacher_cut_s * 1e3, "ms", measured) / 1e3,
        encode_s=note("encoding a crop, jpeg", images.encode_s * 1e3, "ms", measured) / 1e3,
        unpack_s=note("decoding a crop, jpeg", images.unpack_s * 1e3, "ms", measured) / 1e3,
        raw_bytes=note("a raw crop", rendering.height * rendering.width * 3, "bytes", "the teacher's size", "--size"),
        jpeg_bytes=note("a jpeg crop", images.jpeg_bytes, "bytes", measured),
        reference_bytes=note("a crop by reference", REFERENCE_BYTES, "bytes", "the wire's record"),
        label_bytes=note(f"a label ({label.name})", label.label_bytes(num_classes), "bytes", "its record", "--top-k"),
        same_view=student == rendering,
    )
    return Inputs(setup=setup, costs=costs, figures=figures)


def show(
    options: argparse.Namespace,
    images: ImageFacts,
    *,
    card: TeacherCard | None,
    farm: FarmFacts | None,
    rendering: Rendering,
) -> int:
    """Compare and print."""
    inputs = gather(options, images, card=card, farm=farm, rendering=rendering)
    ways = all_ways(inputs.setup, inputs.costs)
    words = advice(inputs.setup, inputs.costs, ways)
    if options.json:
        said = {
            "figures": [dataclasses.asdict(figure) for figure in inputs.figures],
            "ways": [dataclasses.asdict(way) for way in ways],
            "advice": words,
        }
        print(json.dumps(said, indent=2))
        return 0
    pixels = f"{images.height:.0f} x {images.width:.0f} pixels, {images.image_bytes / 1e3:.0f} kB"
    print(f"images    {training_images(options.data)}: {images.num_images}, on average {pixels}")
    if card is not None:
        print(f"teacher   {card.name}: {card.num_classes} classes, {rendering.height}x{rendering.width} crops")
    print()
    print(*figure_lines(inputs.figures), "", *way_lines(inputs.setup, ways), "", *words, sep="\n")
    return 0


def _images(options: argparse.Namespace, reader: SampleReader, rendering: Rendering) -> ImageFacts:
    return measure_images(
        reader,
        teacher=rendering,
        student=_student_rendering(options, rendering),
        num_images=options.sample,
        crops_per_image=options.crops_per_image,
        seed=options.seed,
    )


def _student_rendering(options: argparse.Namespace, teacher: Rendering) -> Rendering:
    if options.student_size is None:
        return teacher
    return Rendering(height=options.student_size, width=options.student_size)


def _of_farm(farm: FarmFacts) -> str:
    asked = f"this machine got {farm.labels_per_s:.0f}/s"
    if farm.busy is None or farm.teachers is None:
        return f"measured: {asked} (how many teachers there are, the farm does not say: taken as one)"
    return f"measured: {asked} from {count_teachers(farm.teachers)}, {farm.busy:.0%} busy"
