import numpy as np
import pytest
import torch
from torch import nn

from teacherfarm.student.evaluation import evaluate
from teacherfarm.student.labelled_loader import LabelledLoader
from teacherfarm.student.losses import NO_TARGET
from teacherfarm.student.tally import Tally
from tests.unit.student.fake_teacher import FakeTeacher, make_labels

torch.set_num_threads(1)
CLASSES, CROPS = 5, 60
GENERATOR = np.random.default_rng(4)
STUDENT = GENERATOR.normal(size=(CROPS, CLASSES)) * 2
TEACHER = GENERATOR.normal(size=(CROPS, CLASSES)) * 3
TARGETS = np.where(GENERATOR.random(CROPS) < 0.5, STUDENT.argmax(1), TEACHER.argmax(1))
TARGETS[::7] = GENERATOR.integers(CLASSES, size=len(TARGETS[::7]))


def counted(targets=TARGETS, labels=None):
    tally = Tally(CLASSES)
    for rows in (slice(0, 23), slice(23, None)):
        part = labels.take(rows) if labels is not None else None
        tally.count(torch.tensor(STUDENT[rows]), torch.tensor(targets[rows]), part)
    return tally


def test_confusion_and_recall_crop_by_crop():
    student = counted().student
    by_hand = np.zeros((CLASSES, CLASSES), int)
    for target, answer in zip(TARGETS, STUDENT.argmax(1), strict=True):
        by_hand[target, answer] += 1
    assert student.confusion.tolist() == by_hand.tolist()
    assert student.top1 == pytest.approx((STUDENT.argmax(1) == TARGETS).mean())
    for number, share in enumerate(student.recall()):
        assert share == pytest.approx((STUDENT.argmax(1) == TARGETS)[number == TARGETS].mean())


def test_the_calibration_error_is_the_evaluations():
    tally = Tally(CLASSES)
    batches = [(torch.tensor(STUDENT, dtype=torch.float32), torch.tensor(TARGETS))]
    result = evaluate(nn.Identity(), batches, "cpu", tally=tally)
    assert tally.student.calibration_error == pytest.approx(result.calibration_error, rel=1e-6)
    assert tally.student.bins[0].sum() == CROPS
    assert tally.teacher is None


def test_who_was_right():
    weight = np.ones(CROPS, np.float32)
    weight[[3, 17, 44]] = 0
    targets = TARGETS.copy()
    targets[[5, 17]] = NO_TARGET
    tally = counted(targets, make_labels(TEACHER, weight=weight))
    expected = dict.fromkeys(tally.outcomes, 0)
    for target, one, other, counts in zip(targets, STUDENT.argmax(1), TEACHER.argmax(1), weight, strict=True):
        if not counts or target == NO_TARGET:
            continue
        right = (int(one == target), int(other == target))
        name = {(1, 1): "both right", (1, 0): "only the student", (0, 1): "only the teacher"}.get(right)
        expected[name or ("both wrong alike" if one == other else "both wrong, differently")] += 1
    assert tally.outcomes == expected
    assert sum(expected.values()) == CROPS - 4
    assert tally.teacher.crops == CROPS - 4
    assert tally.student.crops == CROPS - 2
    p = np.exp(TEACHER) / np.exp(TEACHER).sum(1, keepdims=True)
    counts = (weight > 0) & (targets >= 0)
    assert tally.teacher.bins[1].sum() == pytest.approx(p.max(1)[counts].sum(), rel=1e-3)


def test_labels_come_along_with_a_labelled_loader():
    teacher = FakeTeacher()
    generator = np.random.default_rng(2)
    pixels = torch.from_numpy(generator.integers(0, 256, (20, 8, 8, 3), np.uint8))
    data = [{"crops": pixels, "targets": torch.zeros(20, dtype=torch.int64)}]
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    tally = Tally(10)
    split = lambda batch: (batch["crops"].float(), batch["targets"])  # noqa: E731
    loader = LabelledLoader(data, teacher, lambda batch: batch["crops"], on_mismatch="ignore")
    result = evaluate(model, loader, "cpu", split=split, tally=tally)
    assert tally.teacher.top1 == pytest.approx(result.teacher_top1)
    assert tally.student.top1 == pytest.approx(result.top1)


def test_more_classes_than_a_confusion_can_hold():
    with pytest.raises(ValueError, match="at most 4096 classes, got 21841"):
        Tally(21841)
