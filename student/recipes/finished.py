"""The finished student on disk: its weights, and how it is built again without teacher or farm.

student = load_student(Path("runs/simkd"))        # pixels [N, C, H, W], normalised as its card says -> logits
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from teacherfarm.protos.crop import Rendering
from teacherfarm.protos.teacher_card import from_json_value
from teacherfarm.student.methods.registry import find_method
from teacherfarm.student.recipes.students import make_student

STUDENT_FILE = "student.pt"
STUDENT_CARD_FILE = "student.json"
STUDENT_CARD_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class StudentCard:
    """What a finished student is and what it takes.

    ``source`` and ``num_outputs``: for make_student. ``plan``: plain values, the method's ``inference_plan()``.
    ``rendering``: how its crops are cut; ``mean`` and ``std``: of their pixels, as shares of the brightest.
    """

    source: str
    num_outputs: int
    method: str
    rendering: Rendering
    mean: tuple[float, ...]
    std: tuple[float, ...]
    center_crop_fraction: float = 1.0
    classes: tuple[str, ...] = ()
    teacher: str = ""
    teacher_digest: str = ""
    plan: Mapping[str, Any] = field(default_factory=dict)
    card_version: int = STUDENT_CARD_VERSION


def save_student(folder: Path, student: nn.Module, card: StudentCard) -> None:
    """Write student.pt and student.json. ``student``: what ``distiller.inference()`` gives."""
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / STUDENT_FILE, lambda path: torch.save(student.state_dict(), path))
    text = json.dumps(dataclasses.asdict(card), indent=2, ensure_ascii=False) + "\n"
    # Names of folders may be no UTF-8; what stands for such a byte is escaped as JSON does it.
    content = text.encode(errors="backslashreplace")
    _replace(folder / STUDENT_CARD_FILE, lambda path: path.write_bytes(content))


def read_student_card(folder: Path) -> StudentCard:
    """Raises ValueError naming the file and what is wrong with it."""
    path = folder / STUDENT_CARD_FILE
    if not path.is_file():
        raise ValueError(f"there is no {path}: expected the folder of a finished run (teacherfarm distill ... --out)")
    try:
        values = json.loads(path.read_bytes())
        version = values.pop("card_version", None) if isinstance(values, dict) else None
        if version != STUDENT_CARD_VERSION:
            raise ValueError(f"card version {version!r}, this teacherfarm reads {STUDENT_CARD_VERSION}")
        plan = values.pop("plan", {})
        if not isinstance(plan, dict):
            raise ValueError(f"plan must be an object, got {plan!r}")
        card: StudentCard = from_json_value(StudentCard, values, "student")
        return dataclasses.replace(card, plan=plan)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no student's card: {error}") from error


def load_student(folder: Path, *, device: torch.device | str = "cpu") -> nn.Module:
    """The finished student in eval mode; needs neither teacher nor farm, and reads no pickled code.

    A student from ``package.module:function`` is built by calling that function: load only folders that you trust to
    name it. Raises ValueError where the files do not fit each other.
    """
    card, weights = read_student_card(folder), folder / STUDENT_FILE
    student = make_student(card.source, card.num_outputs)
    try:
        built = find_method(card.method).rebuild(student, card.plan)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / STUDENT_CARD_FILE}: the plan of method {card.method!r} is damaged: {error!r}"
        ) from error
    try:
        built.load_state_dict(torch.load(weights, map_location=device, weights_only=True))
    except Exception as error:
        raise ValueError(f"{weights} holds no weights of {card.source} by {card.method}: {error}") from error
    return built.to(device).eval()


def _replace(path: Path, write: Any) -> None:
    """All of a file under its name, or what was there before."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
