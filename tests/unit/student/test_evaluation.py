import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing, nn

from teacherfarm.student.evaluation import evaluate
from teacherfarm.student.labelled_loader import LabelledLoader
from teacherfarm.student.losses import NO_TARGET
from teacherfarm.student.tally import Tally
from tests.unit.student.fake_teacher import FakeTeacher

torch.set_num_threads(1)
GENERATOR = np.random.default_rng(1)
LOGITS = torch.tensor(GENERATOR.normal(size=(50, 8)) * 2, dtype=torch.float32)
TARGETS = torch.tensor(np.where(GENERATOR.random(50) < 0.6, LOGITS.argmax(1), GENERATOR.integers(8, size=50)))


def batches(rows=slice(None), size=16):
    return [
        (LOGITS[rows][start : start + size], TARGETS[rows][start : start + size])
        for start in range(0, len(LOGITS[rows]), size)
    ]


def test_the_figures_are_their_definitions():
    result = evaluate(nn.Identity(), batches(), "cpu")
    p = torch.softmax(LOGITS.double(), dim=1)
    confidence, predicted = p.max(dim=1)
    right = predicted == TARGETS
    order = p.argsort(dim=1, descending=True)
    assert result.crops == 50
    assert result.top1 == pytest.approx(right.double().mean().item())
    top5 = np.mean([TARGETS[i] in order[i, :5] for i in range(50)])
    assert result.top5 == pytest.approx(top5)
    assert result.loss == pytest.approx(-p[range(50), TARGETS].log().mean().item(), rel=1e-5)
    error = 0.0
    for b in range(15):
        inside = (confidence >= b / 15) & (confidence < (b + 1) / 15)
        if inside.any():
            error += inside.sum() / 50 * (confidence[inside].mean() - right[inside].double().mean()).abs()
    assert result.calibration_error == pytest.approx(float(error), rel=1e-4)
    assert np.isnan(result.agreement)
    assert "top-1" in str(result)
    assert "agrees" not in str(result)


def test_crops_without_target_do_not_count():
    targets = TARGETS.clone()
    targets[10:] = NO_TARGET
    result = evaluate(nn.Identity(), [(LOGITS, targets)], "cpu")
    assert str(result) == str(evaluate(nn.Identity(), [(LOGITS[:10], TARGETS[:10])], "cpu"))
    empty = evaluate(nn.Identity(), [(LOGITS, torch.full_like(TARGETS, NO_TARGET))], "cpu")
    assert empty.crops == 0
    assert np.isnan(empty.top1)


def test_the_model_keeps_its_mode():
    model = nn.Sequential(nn.Dropout(0.5))
    first, again = (evaluate(model, batches(), "cpu") for _ in range(2))
    assert str(first) == str(again)
    assert model.training


def test_agreement_with_the_teacher_counts_answered_crops_alone():
    teacher = FakeTeacher()
    crops = GENERATOR.integers(256, size=(40, 8, 8, 3), dtype=np.uint8)
    teacher.starve = {int(crops[0, 0, 0, 0])}
    logits = torch.tensor(teacher.logits(crops), dtype=torch.float32)
    logits[20:] *= -1
    targets = torch.zeros(40, dtype=torch.long)
    targets[30:] = NO_TARGET
    loader = [{"crops": crops, "logits": logits, "targets": targets}]
    labelled = LabelledLoader(loader, teacher, lambda batch: batch["crops"])
    result = evaluate(nn.Identity(), labelled, "cpu", split=lambda batch: (batch["logits"], batch["targets"]))
    answered = [i for i in range(40) if int(crops[i, 0, 0, 0]) not in teacher.starve]
    assert result.agreement == pytest.approx(sum(i < 20 for i in answered) / len(answered))
    best = teacher.logits(crops).argmax(axis=1)
    counted = [i for i in answered if i < 30]
    assert result.teacher_top1 == pytest.approx(sum(best[i] == 0 for i in counted) / len(counted))
    assert "agrees with the teacher" in str(result)


def one_rank(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        rows = slice(0, 33) if rank == 0 else slice(33, 50)  # 3 batches against 2
        tally = Tally(8)
        result = vars(evaluate(nn.Identity(), batches(rows), "cpu", tally=tally))
        torch.save((result, torch.from_numpy(tally.student.confusion)), f"{folder}/{rank}.pt")
    finally:
        distributed.destroy_process_group()


def test_ranks_with_unequal_shares_get_the_same_result(tmp_path):
    multiprocessing.spawn(one_rank, args=(str(tmp_path),), nprocs=2)
    tally = Tally(8)
    alone = vars(evaluate(nn.Identity(), batches(), "cpu", tally=tally))
    for rank in range(2):
        result, confusion = torch.load(tmp_path / f"{rank}.pt")
        assert result == pytest.approx(alone, nan_ok=True)
        assert confusion.tolist() == tally.student.confusion.tolist()


def test_a_student_that_diverged_is_said_to_have():
    logits = LOGITS.clone()
    logits[3, 2] = torch.nan
    with pytest.raises(ValueError, match=r"NaN.*its training diverged"):
        evaluate(nn.Identity(), [(logits, TARGETS)], "cpu")
