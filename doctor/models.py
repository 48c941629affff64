"""Checks of a model directory: what a server would say about each teacher, before there is a server."""

from __future__ import annotations

import asyncio
from pathlib import Path

from teacherfarm.doctor.finding import Finding, ok, problem, warning
from teacherfarm.doctor.installation import installed
from teacherfarm.protos.faults import BadTeacher, TeacherFarmFault
from teacherfarm.protos.teacher_card import GOLDEN_TOLERANCE, TeacherCard

TRITON_FILE = "config.pbtxt"


def check_models(models: Path) -> list[Finding]:
    """Every check of this module on every teacher in ``models``."""
    from teacherfarm.teacher_server.farm.model_directory import ExportedTeacher, read_model_directory

    findings = check_unfinished(models)
    try:
        found = read_model_directory(models)
    except BadTeacher as fault:
        return [*findings, problem("model directory", fault.message, advice_for(fault, str(models)))]

    def check_teacher(teacher: ExportedTeacher) -> list[Finding]:
        name = f"teacher {teacher.name}"
        if teacher.fault is not None or teacher.card is None:
            fault = teacher.fault or BadTeacher("it has no card")
            return [problem(name, fault.message, advice_for(fault, str(models)))]
        return [
            ok(name, describe(teacher.card)),
            *check_beside(teacher.card, teacher.folder),
            check_golden(teacher.card, teacher.model_file, teacher.golden_file),
        ]

    for teacher in found:
        findings += check_teacher(teacher)
    return findings


def check_unfinished(models: Path) -> list[Finding]:
    """Exports write into a folder with a dot and rename it when they are done."""
    if not models.is_dir():
        return []
    left = sorted(path.name for path in models.iterdir() if path.is_dir() and path.name.startswith("."))
    if not left:
        return []
    return [
        warning(
            "unfinished exports",
            f"{', '.join(left)}: an export that runs at this moment, or one that was cut off; it is not served",
            f"if none runs: rm -r {' '.join(str(models / name) for name in left)}, and export again",
        )
    ]


def describe(card: TeacherCard) -> str:
    """A card in one line."""
    classes = f"{card.num_classes} classes, {card.activation}" if card.num_classes else "no classes"
    return (
        f"{classes}; takes {card.crop_format.describe()} {card.channel_order}; {card.precision}, "
        f"{card.provider_class}; digest {card.teacher_digest[:12]}"
    )


def check_beside(card: TeacherCard, folder: Path) -> list[Finding]:
    """Files that serving here does without, and others need."""
    findings = []
    if not (folder / TRITON_FILE).is_file():
        findings.append(
            warning(
                f"teacher {card.name}, for Triton",
                f"{folder} has no {TRITON_FILE}: a Triton server cannot serve it",
                "export it again, unless ONNX Runtime in the gateway is all you use",
            )
        )
    return findings


def check_golden(card: TeacherCard, model_file: Path, golden_file: Path) -> Finding:
    """Load the teacher as a server does, and compare its answers with PyTorch's at export."""
    name = f"teacher {card.name}, golden answers"
    if model_file.suffix != ".onnx":
        return warning(
            name,
            f"{model_file.name} runs in Triton alone and was not tried here",
            "serve it with --triton: every endpoint is checked when it joins",
        )
    if not (installed("onnxruntime") or installed("onnxruntime-gpu")):
        return warning(
            name, "not tried: ONNX Runtime is not installed here", "pip install 'teacherfarm[server]', and look again"
        )
    try:
        difference = asyncio.run(_largest_difference(card, model_file, golden_file))
    except TeacherFarmFault as fault:
        return problem(name, fault.message, advice_for(fault, str(golden_file.parent.parent)))
    except Exception as error:
        # What a model library raises on a file that it cannot take is its own.
        return problem(name, f"it cannot be run here: {error}", f"export {card.name!r} again on this machine")
    tolerance = GOLDEN_TOLERANCE[card.precision]
    return ok(name, f"differ from PyTorch's by {difference:.1g}; {tolerance:g} is allowed for {card.precision}")


async def _largest_difference(card: TeacherCard, model_file: Path, golden_file: Path) -> float:
    from teacherfarm.teacher_server.backends.onnx_backend import OnnxBackend
    from teacherfarm.teacher_server.farm.golden import check_golden_answers

    backend = OnnxBackend(card, model_file)
    try:
        await backend.start()
        return await check_golden_answers(card, golden_file, backend)
    finally:
        await backend.close()


def advice_for(fault: TeacherFarmFault, models: str) -> str:
    """What to do about a teacher that cannot be served."""
    match type(fault).__name__:
        case "EmptyModelDirectory":
            return f"teacherfarm export efficientnet-lite0 --out {models}, or give the directory that --out named"
        case "DamagedArtifact":
            return f"export it again (teacherfarm export NAME --out {models}), or copy the whole folder again"
        case "GoldenMismatch":
            return "export it again on this machine, or install the ONNX Runtime version that it was exported with"
        case _:
            return f"teacherfarm export NAME --out {models}"
