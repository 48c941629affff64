"""A server whose teacher is scripted, as a process: ``python -m tests.scripted_farm FOLDER [its and serve's options]``.

The class that it answers is the sum of a crop's bytes. A crop's first byte can ask for worse: see :data:`RAISES`,
:data:`KILLS` and :data:`HANGS`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacherfarm.protos.allocator import keep_large_buffers
from teacherfarm.protos.crop import CropFormat, Rendering
from teacherfarm.protos.faults import BackendDied
from teacherfarm.protos.soft_label import log_softmax
from teacherfarm.protos.teacher_card import GOLDEN_FILE, HEAD_FILE, LOG_PROBABILITIES, TeacherCard
from teacherfarm.teacher_server.__main__ import set_up_logging
from teacherfarm.teacher_server.backends.backend import GraphOutputs
from teacherfarm.teacher_server.backends.scripted_backend import ScriptedBackend, marked_outputs
from teacherfarm.teacher_server.farm.model_directory import ExportedTeacher
from teacherfarm.teacher_server.settings import add_arguments, load_settings

RAISES, KILLS, HANGS = 255, 254, 253
"""First byte of a crop at which the teacher raises, takes its backend along, or never answers."""
WELL_BEHAVED = 250

POLL_S = 0.01


def make_crops(num_crops: int, seed: int, size: int = 32) -> NDArray[np.uint8]:
    """Crops that behave, different for every seed."""
    crops = np.random.default_rng(seed).integers(0, 256, (num_crops, size, size, 3), np.uint8)
    crops[:, 0, 0, 0] %= WELL_BEHAVED
    return crops


def asking_for(what: int, num_crops: int, seed: int, size: int = 32) -> NDArray[np.uint8]:
    """Crops that ask for RAISES, KILLS or HANGS."""
    crops = make_crops(num_crops, seed, size)
    crops[:, 0, 0, 0] = what
    return crops


def right_classes(crops: NDArray[np.uint8], num_classes: int) -> NDArray[np.int64]:
    """What the scripted teacher says is the best class."""
    return (crops.reshape(len(crops), -1).astype(np.int64).sum(axis=1) % num_classes).astype(np.int64)


class ByFirstByte(ScriptedBackend):
    """Marks crops by the sum of their bytes; ``gate``: a file without which it never gets ready. ``held_by``: a file
    that makes every call wait while it is there. ``deaf``: whatever the first byte asks for, it does not do.
    """

    def __init__(
        self, card: TeacherCard, *, gate: Path | None, held_by: Path | None, deaf: bool, **options: Any
    ) -> None:
        super().__init__(card, script=lambda pixels, outputs: marked_outputs(card, pixels, outputs), **options)
        self._gate = gate
        self._held_by = held_by
        self._deaf = deaf

    async def start(self) -> None:
        while self._gate is not None and not self._gate.exists():
            await asyncio.sleep(POLL_S)
        await super().start()

    async def run(self, pixels: NDArray[Any], outputs: Sequence[str]) -> GraphOutputs:
        while self._held_by is not None and self._held_by.exists():
            await asyncio.sleep(POLL_S)
        if self._deaf:
            return await super().run(pixels, outputs)
        firsts = pixels[:, 0, 0, 0]
        if (firsts == HANGS).any():
            await asyncio.Event().wait()
        answers = await super().run(pixels, outputs)
        if (firsts == RAISES).any():
            raise ValueError("this teacher cannot look at such a crop")
        if (firsts == KILLS).any():
            raise BackendDied("this crop took the backend along")
        return answers


def scripted_teacher(folder: Path, *, size: int, num_classes: int, head_bytes: int = 0) -> ExportedTeacher:
    """A card and golden answers in ``folder``, as export would leave them; so many zeros for a classifier's file."""
    (folder / HEAD_FILE).write_bytes(bytes(head_bytes))
    card = TeacherCard(
        name="scripted",
        teacher_digest="5c" * 32,
        artifact_digest="ab" * 32,
        model_file="1/model.onnx",
        crop_format=CropFormat(height=size, width=size),
        rendering=Rendering(height=size, width=size),
        num_classes=num_classes,
        activation="softmax",
        features=(),
        has_head=head_bytes > 0,
        head_digest="4d" * 32,
    )
    crops = make_crops(4, 0, size)
    answers = marked_outputs(card, crops, (LOG_PROBABILITIES,))[LOG_PROBABILITIES]
    np.savez(folder / GOLDEN_FILE, crops=crops, probabilities=np.exp(log_softmax(answers)))
    return ExportedTeacher(name=card.name, folder=folder, card=card)


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--num-classes", type=int, default=10)
    parser.add_argument("--head-mb", type=int, default=0, help="of a classifier to give away")
    parser.add_argument("--seconds-per-batch", type=float, default=0.0)
    parser.add_argument("--seconds-per-crop", type=float, default=0.0)
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--largest-batch", type=int, default=32)
    parser.add_argument("--gate", type=Path)
    parser.add_argument("--held-by", type=Path)
    parser.add_argument("--deaf", action="store_true", help="first bytes ask for nothing: any crops may come")
    options = parser.parse_args()
    settings = load_settings(options)
    set_up_logging(settings)
    keep_large_buffers()
    from teacherfarm.teacher_server.server import Server

    teacher = scripted_teacher(
        Path(options.models),
        size=options.size,
        num_classes=options.num_classes,
        head_bytes=options.head_mb << 20,
    )
    server = Server(
        settings,
        teachers=[teacher],
        make_backend=lambda _, card: ByFirstByte(
            card,
            gate=options.gate,
            held_by=options.held_by,
            deaf=options.deaf,
            seconds_per_batch=options.seconds_per_batch,
            seconds_per_crop=options.seconds_per_crop,
            slots=options.slots,
            largest_batch=options.largest_batch,
        ),
    )
    asyncio.run(server.run_until_signalled(lambda s: print(f"ready after 0 s: {' '.join(s.addresses())}", flush=True)))


if __name__ == "__main__":
    sys.exit(main())
