"""A teacher that answers from a script, and what stands around it: card, crops, lane and gateway."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from teacherfarm.label_store.label_store import LabelStore
from teacherfarm.protos.crop import CropFormat, Rendering
from teacherfarm.protos.soft_label import log_softmax
from teacherfarm.protos.teacher_card import GOLDEN_FILE, OutputCard, TeacherCard
from teacherfarm.teacher_server.backends.scripted_backend import ScriptedBackend
from teacherfarm.teacher_server.credit import CreditPool
from teacherfarm.teacher_server.farm.farm import BatchSettings, Farm
from teacherfarm.teacher_server.farm.lane import Lane
from teacherfarm.teacher_server.farm.model_directory import ExportedTeacher
from teacherfarm.teacher_server.gateway import Gateway
from teacherfarm.teacher_server.metrics import Metrics
from teacherfarm.teacher_server.projects.api_keys import digest_of
from teacherfarm.teacher_server.projects.project import Allowance
from teacherfarm.teacher_server.projects.projects_file import ProjectEntry
from teacherfarm.teacher_server.projects.registry import Projects

SIZE = 4
NUM_CLASSES = 10


def make_card(name: str = "scripted", **changes: Any) -> TeacherCard:
    values: dict[str, Any] = {
        "name": name,
        "teacher_digest": name.encode().hex().ljust(64, "0"),
        "artifact_digest": f"{name}-artifact-digest",
        "model_file": "1/model.onnx",
        "crop_format": CropFormat(height=SIZE, width=SIZE),
        "rendering": Rendering(height=SIZE, width=SIZE),
        "num_classes": NUM_CLASSES,
        "activation": "softmax",
        "features": (OutputCard(name="embedding", shape=(3,)),),
    }
    return TeacherCard(**(values | changes))


CARD = make_card()


def crops(*firsts: int) -> np.ndarray:
    """One crop for each number, all of its bytes being that number."""
    return np.broadcast_to(np.array(firsts, np.uint8).reshape(-1, 1, 1, 1), (len(firsts), SIZE, SIZE, 3)).copy()


def answer(pixels: np.ndarray, outputs: Sequence[str]) -> dict[str, np.ndarray]:
    """Answers that depend on every crop alone: its first byte, spread over the classes."""
    first = pixels[:, 0, 0, 0].astype(np.float32)[:, None]
    logits = np.sin(first + np.arange(NUM_CLASSES, dtype=np.float32)) * 3
    known = {
        "log_probabilities": log_softmax(logits).astype(np.float16),
        "logits": logits,
        "embedding": np.repeat(first, 3, axis=1),
    }
    return {name: known[name] for name in outputs}


def records_of(*firsts: int) -> np.ndarray:
    """The dense log-probabilities that crops of these numbers get."""
    return answer(crops(*firsts), ("log_probabilities",))["log_probabilities"]


class Teacher(ScriptedBackend):
    """``raises``: what a crop with this first byte does. ``seen``: the first bytes of each call. See :meth:`hold`."""

    def __init__(self, card: TeacherCard = CARD, **options: Any) -> None:
        super().__init__(card, script=self._script_of, **options)
        self.seen: list[list[int]] = []
        self.raises: dict[int, Callable[[], BaseException]] = {}
        self.rewrite: Callable[[dict[str, np.ndarray]], Any] = lambda outputs: outputs
        self.running = 0
        self.closed = False
        self._free = asyncio.Event()
        self._free.set()

    def hold(self) -> None:
        """Calls wait from now on, until :meth:`let_go`."""
        self._free.clear()

    def let_go(self) -> None:
        self._free.set()

    async def run(self, pixels: np.ndarray, outputs: Sequence[str]) -> Any:
        self.seen.append([int(first) for first in pixels[:, 0, 0, 0]])
        self.running += 1
        try:
            await self._free.wait()
            return await super().run(pixels, outputs)
        finally:
            self.running -= 1

    async def close(self) -> None:
        self.closed = True
        await super().close()

    def _script_of(self, pixels: np.ndarray, outputs: Sequence[str]) -> Any:
        for first in pixels[:, 0, 0, 0]:
            if first in self.raises:
                raise self.raises[int(first)]()
        return self.rewrite(answer(pixels, outputs))


async def no_check(_: object) -> None:
    """Golden answers have tests of their own."""


@asynccontextmanager
async def running_lane(teacher: Teacher, **options: Any) -> AsyncIterator[Lane]:
    lane = Lane(CARD, metrics=Metrics().lane(CARD.name), **options)
    await lane.start(teacher, no_check)
    try:
        yield lane
    finally:
        teacher.let_go()
        await lane.close()


def keyed(most_sessions: int = 0, **allowances: Allowance) -> Projects:
    """Projects by name, each with the key "key of NAME"."""
    return Projects(entries(**allowances), most_sessions=most_sessions)


def entries(**allowances: Allowance) -> list[ProjectEntry]:
    """The same as entries of a projects file."""
    return [
        ProjectEntry(name=name, allowance=allowance, keys=(digest_of(f"key of {name}"),))
        for name, allowance in allowances.items()
    ]


def golden_bytes(*, probabilities: np.ndarray | None = None, probes: np.ndarray | None = None) -> bytes:
    probes = crops(1, 2, 3) if probes is None else probes
    right = np.exp(log_softmax(answer(probes, ("logits",))["logits"])) if len(probes) else np.zeros((0, NUM_CLASSES))
    file = io.BytesIO()
    np.savez(file, crops=probes, probabilities=right if probabilities is None else probabilities)
    return file.getvalue()


def exported(folder: Path, card: TeacherCard = CARD) -> ExportedTeacher:
    """A teacher on disk of which a scripted backend needs the golden answers only."""
    (folder / card.name).mkdir()
    (folder / card.name / GOLDEN_FILE).write_bytes(golden_bytes())
    return ExportedTeacher(name=card.name, folder=folder / card.name, card=card)


class ScriptedFarm:
    """A gateway over scripted teachers, without any wire."""

    def __init__(
        self,
        folder: Path,
        *cards: TeacherCard,
        budget_crops: int = 10**6,
        window: int = 64,
        projects: Projects | None = None,
        kept: LabelStore | None = None,
        **batches: Any,
    ):
        self.metrics = Metrics()
        self.teachers: dict[str, Teacher] = {}
        self.farm = Farm(
            [exported(folder, card) for card in cards or (CARD,)],
            self._make_backend,
            metrics=self.metrics,
            batches=BatchSettings(**batches),
        )
        crop_bytes = CARD.crop_format.crop_bytes + 2 * NUM_CLASSES
        self.credit = CreditPool(budget_bytes=budget_crops * crop_bytes, most_crops=window)
        self.gateway = Gateway(self.farm, credit=self.credit, metrics=self.metrics, projects=projects, kept=kept)

    @property
    def teacher(self) -> Teacher:
        [teacher] = self.teachers.values()
        return teacher

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"teacherfarm_{name}", labels) or 0.0

    def _make_backend(self, exported_teacher: ExportedTeacher, card: TeacherCard) -> Teacher:
        teacher = self.teachers[exported_teacher.name] = Teacher(card, largest_batch=8)
        return teacher

    async def __aenter__(self) -> Self:
        await self.farm.start()
        for teacher in self.teachers.values():
            teacher.seen.clear()
        return self

    async def __aexit__(self, *_: object) -> None:
        for teacher in self.teachers.values():
            teacher.let_go()
        await self.farm.close()
