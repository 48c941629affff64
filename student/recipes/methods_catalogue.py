"""The methods in words: what each asks of a teacher for a student, and how many bytes a crop its answers take."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from teacherfarm.protos.crop import CropFormat, Rendering
from teacherfarm.protos.soft_label import LABELS
from teacherfarm.protos.teacher_card import EMBEDDING, OutputCard, TeacherCard
from teacherfarm.student.methods.method import Method, MethodMismatch, Phase, Setup, StudentShape
from teacherfarm.student.recipes.distill_command import add_common_arguments
from teacherfarm.student.recipes.method_options import add_settings, words
from teacherfarm.student.recipes.run_config import preset_names, read_preset

WIDTH = 110


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A teacher and a student, as a method meets them. ``title``: above the column of bytes; ``about``: the two by
    name. ``typical``: a pair of papers, by shapes alone.
    """

    title: str
    about: str
    setup: Setup
    typical: bool = False

    def asks(self, method: type[Method]) -> tuple[Phase, ...] | str:
        """What the method asks with its defaults; why it does not fit, where it does not."""
        try:
            return method.phases(method.Settings(), self.setup)
        except MethodMismatch as error:
            reason = str(error)
        if self.typical:
            # Perhaps it is for teachers of another kind.
            card = dataclasses.replace(self.setup.card, activation="sigmoid")
            with contextlib.suppress(MethodMismatch):
                return method.phases(method.Settings(), dataclasses.replace(self.setup, card=card))
        return reason

    def bytes_per_crop(self, phase: Phase) -> int:
        """Of one answer."""
        spec = phase.asks.spec
        return 0 if spec is None else spec.resolve(self.setup.card).record_dtype(self.setup.card).itemsize


def typical_pairs() -> list[Pair]:
    """ImageNet's and CIFAR-100's pairs, by shapes alone; the teacher has every output that a method could use."""
    imagenet = {"layer1": (56, 256), "layer2": (28, 512), "layer3": (14, 1024), "layer4": (7, 2048)}
    cifar = {"layer1": (32, 64), "layer2": (16, 128), "layer3": (8, 256)}
    resnet18 = {"layer1": (64, 56, 56), "layer2": (128, 28, 28), "layer3": (256, 14, 14), "layer4": (512, 7, 7)}
    resnet8x4 = {"layer1": (64, 32, 32), "layer2": (128, 16, 16), "layer3": (256, 8, 8)}
    return [
        _typical(
            "ImageNet", "ResNet-50 for ResNet-18", imagenet, resnet18, size=224, num_classes=1000, num_samples=1_281_167
        ),
        _typical(
            "CIFAR-100", "ResNet-32x4 for ResNet-8x4", cifar, resnet8x4, size=32, num_classes=100, num_samples=50_000
        ),
    ]


def pair_of(options: argparse.Namespace) -> Pair:
    """The teacher served at an address and a student by name."""
    from teacherfarm.student.blocking import TeacherClient
    from teacherfarm.student.methods.student_taps import TappedStudent
    from teacherfarm.student.recipes.students import default_taps, make_student
    from teacherfarm.student.recipes.trainee import num_outputs

    with TeacherClient(options.teacher_address, options.teacher, api_key=options.api_key) as client:
        card = client.card
    size = options.student_size or card.rendering.height
    student = make_student(options.student, num_outputs(card))
    taps = default_taps(options.student, student, height=size, width=size)
    shape = TappedStudent(student, taps).measure(size, size)
    setup = Setup(card=card, student=shape, num_samples=50_000, batch_size=128, crops_per_image=4, epochs=300)
    return Pair(title="bytes/crop", about=f"{card.name} for {options.student}", setup=setup)


def table(methods: Sequence[type[Method]], pairs: Sequence[Pair]) -> str:
    """One line each."""
    rows = [["method", "asks the teacher for", *(pair.title for pair in pairs), "labels of the data", "paper"]]
    for method in methods:
        asked = [pair.asks(method) for pair in pairs]
        known = next((phases for phases in asked if not isinstance(phases, str)), ())
        targets = "yes" if any(phase.asks.targets for phase in known) else "no" if known else "?"
        cells = [
            _bytes(pair, phases) if not isinstance(phases, str) else "-"
            for pair, phases in zip(pairs, asked, strict=True)
        ]
        needs = _kinds(known, pairs[0].setup.card) if known else _short(next(a for a in asked if isinstance(a, str)))
        rows.append([method.name, needs, *cells, targets, _where(method.paper)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    numbers = range(2, 2 + len(pairs))
    lines = [
        "  ".join(
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    about = "; ".join(f"{pair.title}: {pair.about}" if pair.typical else pair.about for pair in pairs)
    notes = [
        f"Bytes are of one crop's answer ({about}).",
        "teacherfarm methods NAME: all about one.",
    ]
    return "\n".join([*lines, "", *notes])


def describe(method: type[Method], pairs: Sequence[Pair]) -> str:
    """All about one."""
    lines = [f"{method.name}: {method.about}", method.paper, ""]
    for pair in pairs:
        phases = pair.asks(method)
        if isinstance(phases, str):
            lines += textwrap.wrap(f"{pair.title}: {phases}", WIDTH, subsequent_indent="    ")
            continue
        for phase in phases:
            begin = pair.title if len(phases) == 1 else f"{pair.title}, {phase.name}"
            outputs = (
                "no teacher" if phase.asks.spec is None else ", ".join(phase.asks.spec.resolve(pair.setup.card).outputs)
            )
            lines += textwrap.wrap(
                f"{begin}: {pair.bytes_per_crop(phase)} bytes a crop ({outputs}){_besides(phase)}",
                WIDTH,
                subsequent_indent="    ",
            )
    lines += ["", "settings (teacherfarm distill --method " + method.name + " ...)"]
    distill = argparse.ArgumentParser()
    add_common_arguments(distill)
    called = add_settings(distill, method)
    for setting in dataclasses.fields(method.Settings):
        text = f"{setting.metadata['help']} (default: {words(setting.default)})"
        choices = setting.metadata.get("choices")
        if choices:
            text += f"; one of {', '.join(map(str, choices))}"
        lines += textwrap.wrap(f"  {called[setting.name]:<24} {text}", WIDTH, subsequent_indent=" " * 27)
    if not dataclasses.fields(method.Settings):
        lines.append("  none")
    if method.Settings.__doc__:
        lines += ["", *textwrap.wrap(" ".join(method.Settings.__doc__.split()), WIDTH)]
    presets = [name for name in preset_names() if read_preset(name).method == method.name]
    return "\n".join([*lines, "", f"presets: {', '.join(presets) or 'none'}"])


def _typical(
    title: str,
    about: str,
    teacher: dict[str, tuple[int, int]],
    student: dict[str, tuple[int, int, int]],
    *,
    size: int,
    num_classes: int,
    num_samples: int,
) -> Pair:
    maps = {name: (channels, side, side) for name, (side, channels) in teacher.items()}
    features = [_map(name, shape) for name, shape in maps.items()]
    for name, (channels, side, _) in maps.items():
        features.append(_reduced(f"{name}@attention", (side * side,), "attention", name))
        smaller = sorted({shape[1] for shape in maps.values() if shape[1] < side})
        features += [_reduced(f"{name}@{to}x{to}", (channels, to, to), "pool", name) for to in smaller]
    width = next(reversed(maps.values()))[0]
    features += [OutputCard(name=EMBEDDING, shape=(width,)), OutputCard(name="mean_logits", shape=(num_classes,))]
    card = TeacherCard(
        name=f"a teacher of {title}",
        teacher_digest="",
        artifact_digest="",
        model_file="",
        crop_format=CropFormat(height=size, width=size),
        rendering=Rendering(height=size, width=size),
        num_classes=num_classes,
        activation="softmax",
        features=tuple(features),
        has_head=True,
    )
    embedding = next(reversed(student.values()))[0]
    shape = StudentShape(num_classes=num_classes, embedding=embedding, features=student)
    setup = Setup(card=card, student=shape, num_samples=num_samples, batch_size=64, crops_per_image=4, epochs=240)
    return Pair(title=title, about=about, setup=setup, typical=True)


def _map(name: str, shape: tuple[int, ...]) -> OutputCard:
    return OutputCard(name=name, shape=shape, layout="map")


def _reduced(name: str, shape: tuple[int, ...], reduction: str, of: str) -> OutputCard:
    layout = "map" if len(shape) == 3 else "vector"
    return OutputCard(name=name, shape=shape, layout=layout, reduction=reduction, of=of)  # type: ignore[arg-type]


def _bytes(pair: Pair, phases: Sequence[Phase]) -> str:
    sizes = [pair.bytes_per_crop(phase) for phase in phases]
    return str(max(sizes)) if len(set(sizes)) == 1 else f"{min(sizes)} to {max(sizes)}"


def _kinds(phases: Sequence[Phase], card: TeacherCard) -> str:
    """The outputs of all phases, by what they are."""
    found: dict[str, None] = {}
    for phase in phases:
        spec = phase.asks.spec
        for name in () if spec is None else spec.resolve(card).outputs:
            if name == LABELS:
                found[f"{spec.top_k} classes" if spec is not None and spec.top_k else "labels"] = None
            elif name in (EMBEDDING, "mean_logits"):
                found[name] = None
            else:
                layout = card.feature(name).layout
                found["attention maps" if layout == "vector" else f"{'maps' if layout == 'map' else layout}"] = None
        if phase.asks.head:
            found["classifier, once"] = None
    return " + ".join(found)


def _besides(phase: Phase) -> str:
    asks = phase.asks
    besides = [
        "the teacher's classifier, once" if asks.head else "",
        "the data's own labels" if asks.targets else "",
        "which image a crop is of" if asks.samples else "",
        f"crops mixed by {asks.draw}" if asks.draw else "",
        "always new crops" if asks.fresh else "",
    ]
    found = [words for words in besides if words]
    return f"; besides: {', '.join(found)}" if found else ""


def _where(paper: str) -> str:
    """The paper's number, or where it appeared."""
    found = re.search(r"arXiv \d+\.\d+|[A-Z]{3,} \d{4}", paper)
    return found.group() if found else "-"


def _short(reason: str) -> str:
    return textwrap.shorten(reason, 60, placeholder=" ...")
