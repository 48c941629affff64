"""A teacher's linear classifier as it travels: the safetensors file that export wrote, checked by the card's digest.

Reads the two arrays that such a file has, and no others; knows numpy only.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teacherfarm.protos.faults import DamagedArtifact, DigestMismatch, NoHead
from teacherfarm.protos.teacher_card import EMBEDDING, TeacherCard

MOST_HEAD_BYTES = 1 << 30
_LENGTH_BYTES = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassifierHead:
    """logits = embedding @ weight.T + bias: float32 ``weight`` [C, D], ``bias`` [C] (zeros where it has none)."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


def require_head(card: TeacherCard) -> None:
    """Raise NoHead, saying why, where the teacher's linear classifier cannot be had."""
    if not card.has_head:
        raise NoHead(f"teacher {card.name!r} has no linear classifier to reuse: {card.headless or 'its card says so'}")
    if not card.head_digest:
        raise NoHead(f"teacher {card.name!r} was exported before classifiers were served: {card.export_command()}")


def read_head(content: bytes, card: TeacherCard) -> ClassifierHead:
    """The classifier of a card's teacher from its file's bytes. Raises DigestMismatch, DamagedArtifact."""
    digest = hashlib.sha256(content).hexdigest()
    if digest != card.head_digest:
        raise DigestMismatch(f"the classifier of {card.name!r} has digest {digest}, its card says {card.head_digest}")
    try:
        arrays = _arrays(content)
        weight = arrays["weight"]
        bias = arrays.get("bias", np.zeros(len(weight), np.float32))
        if weight.ndim != 2 or len(weight) != card.num_classes or bias.shape != (card.num_classes,):
            raise ValueError(f"weight {list(weight.shape)} and bias {list(bias.shape)} for {card.num_classes} classes")
        taken = {output.name: output.shape for output in card.features}.get(EMBEDDING, weight.shape[1:])
        if weight.shape[1:] != taken:
            raise ValueError(f"weight {list(weight.shape)} for an embedding {list(taken)}")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedArtifact(f"the classifier of {card.name!r} cannot be read ({error}): export it again") from error
    return ClassifierHead(weight=weight, bias=bias)


def _arrays(content: bytes) -> dict[str, NDArray[np.float32]]:
    """The float32 arrays of a safetensors file: eight bytes of length, a JSON header, the numbers."""
    start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    header = json.loads(content[_LENGTH_BYTES:start])
    arrays = {}
    for name in ("weight", "bias"):
        if name in header:
            entry = header[name]
            if entry["dtype"] != "F32":
                raise ValueError(f"{name} is {entry['dtype']}, not F32")
            first, last = (start + int(offset) for offset in entry["data_offsets"])
            arrays[name] = np.frombuffer(content[first:last], "<f4").astype(np.float32).reshape(entry["shape"])
    return arrays
