"""Golden answers: before a teacher is ready, its backend must give what PyTorch gave for the probe crops at export."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacherfarm.protos.faults import DamagedArtifact, GoldenMismatch
from teacherfarm.protos.soft_label import log_softmax
from teacherfarm.protos.teacher_card import EMBEDDING, GOLDEN_TOLERANCE, LOGITS, TeacherCard
from teacherfarm.teacher_server.backends.backend import Backend


async def check_golden_answers(card: TeacherCard, golden_file: Path, backend: Backend) -> float:
    """The largest difference from the golden answers; raises GoldenMismatch beyond the precision's tolerance."""
    try:
        # From memory: numpy leaves a damaged file open.
        with np.load(io.BytesIO(golden_file.read_bytes()), allow_pickle=False) as golden:
            crops = golden["crops"]
            expected = golden[EMBEDDING] if card.activation == "none" else golden["probabilities"]
    except Exception as error:
        # zipfile, zlib and numpy each have errors of their own for a file cut short.
        raise DamagedArtifact(f"{golden_file} cannot be read ({error}): export {card.name!r} again") from error
    if not len(crops):
        raise DamagedArtifact(f"{golden_file} holds no probe crops: export {card.name!r} again")
    output = EMBEDDING if card.activation == "none" else card.label_output
    answers = []
    for first in range(0, len(crops), backend.largest_batch):
        # A copy in its own memory, as crops from the wire are.
        outputs = await backend.run(np.ascontiguousarray(crops[first : first + backend.largest_batch]), (output,))
        answers.append(np.asarray(outputs[output], dtype=np.float32))
    got: NDArray[np.floating[Any]] = np.concatenate(answers)
    if got.shape != expected.shape:
        raise GoldenMismatch(
            f"teacher {card.name!r} answers {list(got.shape)}, its golden answers are {list(expected.shape)}"
        )
    if output == LOGITS:
        got = 1.0 / (1.0 + np.exp(-got))
    elif output != EMBEDDING:
        got = np.exp(log_softmax(got))
    scale = max(float(np.abs(expected).max()), 1e-12) if output == EMBEDDING else 1.0
    difference = float(np.abs(got - expected).max()) / scale
    tolerance = GOLDEN_TOLERANCE[card.precision]
    if not difference <= tolerance:
        raise GoldenMismatch(
            f"teacher {card.name!r} ({card.precision}, {backend.provider_class}) differs from its golden answers by "
            f"{difference:.2g}, at most {tolerance:g} is allowed: this is not the teacher that was exported, or this "
            "ONNX Runtime computes it wrongly. Export it again on this machine, or pin the version it was exported with"
        )
    return difference
