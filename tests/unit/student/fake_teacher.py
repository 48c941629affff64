"""A teacher in this process with a client's face: its answers depend on the pixels alone."""

from __future__ import annotations

import numpy as np

from teacherfarm.protos.crop import CropFormat, Rendering
from teacherfarm.protos.soft_label import LabelSpec, SoftLabels
from teacherfarm.protos.teacher_card import TeacherCard


def make_card(
    num_classes: int = 10,
    size: int = 8,
    activation: str = "softmax",
    name: str = "fake",
    classes: tuple[str, ...] = (),
) -> TeacherCard:
    return TeacherCard(
        name=name,
        teacher_digest=f"digest-of-{name}",
        artifact_digest="artifact",
        model_file="1/model.onnx",
        crop_format=CropFormat(height=size, width=size),
        rendering=Rendering(height=size, width=size),
        num_classes=num_classes,
        activation=activation,
        features=(),
        classes=classes,
    )


def make_labels(
    logits: np.ndarray,
    spec: LabelSpec | None = None,
    activation: str = "softmax",
    weight: np.ndarray | None = None,
) -> SoftLabels:
    """The soft labels that a teacher with these logits [N, C] would send."""
    card = make_card(num_classes=logits.shape[1], activation=activation)
    resolved = (spec or LabelSpec()).resolve(card)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    records = resolved.pack({"log_probabilities": log_p, "logits": logits}, card)
    if weight is not None:
        records[weight == 0] = np.zeros((), records.dtype)
    return SoftLabels.from_records(records, resolved, card, weight)


class FakeFuture:
    def __init__(self, teacher: FakeTeacher, crops: np.ndarray) -> None:
        self.teacher, self.crops, self.open = teacher, crops, True

    def done(self) -> bool:
        return self.teacher.ready

    def result(self, timeout: float | None = None) -> SoftLabels:
        if self.teacher.fault is not None:
            raise self.teacher.fault
        self._take()
        return self.teacher.answer(self.crops)

    def cancel(self) -> None:
        self._take()

    def _take(self) -> None:
        if self.open:
            self.open = False
            self.teacher.untaken -= len(self.crops)


class FakeTeacher:
    """``starve``: first pixels of the crops that get no answer. ``asked``: the first pixel of each crop."""

    def __init__(self, card: TeacherCard | None = None, *, spec: LabelSpec | None = None, window: int = 64) -> None:
        self.card = card or make_card()
        self.spec = (spec or LabelSpec()).resolve(self.card)
        self.window, self.untaken, self.most_untaken = window, 0, 0
        self.asked: list[int] = []
        self.keys: list[bytes] = []
        self.starve: set[int] = set()
        self.fault: Exception | None = None
        self.ready = True
        generator = np.random.default_rng(5)
        inputs = int(np.prod(self.card.crop_format.shape))
        self.matrix = generator.normal(size=(inputs, self.card.num_classes)) * 2 / np.sqrt(inputs)

    def room(self) -> int:
        return max(self.window - self.untaken, 0)

    def close(self) -> None:
        """Nothing is open."""

    def submit(self, crops: np.ndarray, *, keys: bytes = b"", priority: int = 0) -> FakeFuture:
        crops = np.asarray(crops)
        self.card.crop_format.check(crops)
        if self.untaken and len(crops) > self.room():
            raise AssertionError("submit would wait for room while nobody takes answers")
        self.untaken += len(crops)
        self.most_untaken = max(self.most_untaken, self.untaken)
        self.asked += [int(value) for value in crops[:, 0, 0, 0]]
        self.keys.append(keys)
        return FakeFuture(self, crops)

    def label(self, crops: np.ndarray, *, keys: bytes = b"") -> SoftLabels:
        return self.submit(crops, keys=keys).result()

    def logits(self, crops: np.ndarray) -> np.ndarray:
        return (crops.reshape(len(crops), -1) / 64.0 - 2) @ self.matrix

    def answer(self, crops: np.ndarray) -> SoftLabels:
        weight = np.array([0.0 if int(crop[0, 0, 0]) in self.starve else 1.0 for crop in crops], np.float32)
        logits = self.logits(crops)
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        records = self.spec.pack({"log_probabilities": log_p, "logits": logits}, self.card)
        records[weight == 0] = np.zeros((), records.dtype)
        return SoftLabels.from_records(records, self.spec, self.card, weight)
