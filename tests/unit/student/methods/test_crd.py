"""CRD against its formula, over steps; its memory through a checkpoint."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from teacherfarm.student.losses import NO_TARGET
from teacherfarm.student.methods.crd import CRD, CRDSettings
from teacherfarm.student.methods.distiller import Distiller
from teacherfarm.student.methods.method import MethodMismatch, StudentShape
from teacherfarm.student.methods.student_taps import TappedStudent
from tests.methods import make_card, make_outputs, make_setup, make_step, tiny_student
from tests.unit.student.methods.by_gradient import gradient_is_right
from tests.unit.student.methods.by_hand import unit, values

N, IMAGES, K = 4, 30, 12
SETTINGS = CRDSettings(negatives=K, dimensions=6, contrast_temperature=0.5, contrast_weight=0.5)


def method_of():
    torch.manual_seed(0)
    return CRD(SETTINGS, make_setup(num_samples=IMAGES)).double()


def step_of(method, seed=0, samples=(3, 7, 29, 11), **fields):
    spec = CRD.asks(SETTINGS, method.setup).spec
    return make_step(N, method.setup.card, spec, seed, samples=torch.tensor(samples), **fields)


def outputs_of(method, seed=3):
    return make_outputs(method.setup, N, dtype=torch.float64, seed=seed)


def embeddings_by_hand(method, outputs, step):
    """Of student and teacher: unit vectors in the common space."""
    given = outputs.embedding.detach().numpy(), step.labels.output("embedding").astype(np.float64)
    heads = method.student_head, method.teacher_head
    return [
        np.array([unit(values(head) @ row + values(head, "bias")) for row in rows])
        for head, rows in zip(heads, given, strict=True)
    ]


def loss_by_hand(vector, rows, image, drawn, normaliser):
    """Of one crop in one direction."""
    noise = K * (1 / IMAGES)
    own = math.exp(float(rows[image] @ vector) / 0.5) / normaliser
    loss = -math.log(own / (own + noise + 1e-7))
    for other in drawn:
        likely = math.exp(float(rows[other] @ vector) / 0.5) / normaliser
        loss -= math.log(noise / (likely + noise + 1e-7))
    return loss


def mean_exponential(vectors, rows, images, drawn, answered):
    found = [
        math.exp(float(rows[j] @ vectors[n]) / 0.5) for n in range(N) if answered[n] for j in (images[n], *drawn[n])
    ]
    return sum(found) / len(found)


@pytest.mark.parametrize("answered", [[1, 1, 1, 1], [1, 0, 1, 1]])
def test_is_noise_contrastive_estimation_against_memories_that_move(answered, monkeypatch):
    method, draws = method_of(), []
    draw = CRD._others
    monkeypatch.setattr(CRD, "_others", lambda *given: draws.append(draw(*given)) or draws[-1])
    student_rows, teacher_rows = method.of_student.rows.numpy().copy(), method.of_teacher.rows.numpy().copy()
    normalisers = None
    for number in range(3):
        images = [3, 7 + number, 29, 11]
        step, outputs = step_of(method, number, images, weight=answered), outputs_of(method, number)
        loss = method.loss(outputs, step)["contrast"].item()

        student, teacher = embeddings_by_hand(method, outputs, step)
        directions = (student, teacher_rows), (teacher, student_rows)
        drawn = draws[-1].tolist()
        if normalisers is None:  # the first batch fixes them
            normalisers = [IMAGES * mean_exponential(v, rows, images, drawn, answered) for v, rows in directions]
        expected = [
            sum(
                loss_by_hand(v[n], rows, images[n], drawn[n], normaliser)
                for (v, rows), normaliser in zip(directions, normalisers, strict=True)
            )
            for n in range(N)
            if answered[n]
        ]
        assert loss == pytest.approx(0.5 * np.mean(expected), rel=1e-6)

        for rows, vectors, memory in (
            (student_rows, student, method.of_student),
            (teacher_rows, teacher, method.of_teacher),
        ):
            for n, image in enumerate(images):
                if answered[n]:
                    rows[image] = unit(0.5 * rows[image] + 0.5 * vectors[n])
            np.testing.assert_allclose(memory.rows.numpy(), rows, atol=1e-6)


def test_classes_are_learned_as_they_come_by_and_excluded(monkeypatch):
    method = method_of()
    targets = torch.tensor([2, 5, 2, NO_TARGET])
    method.loss(outputs_of(method), step_of(method, targets=targets))
    assert method.classes[[3, 7, 29, 11]].tolist() == [2, 5, 2, -1]
    assert (method.classes >= 0).sum() == 3
    images = torch.tensor([3, 7])
    first = method._others(images, torch.tensor([2, 5]))
    assert not torch.isin(first[0], torch.tensor([3, 29])).any()
    method.loss(outputs_of(method), step_of(method, targets=targets))
    assert not torch.equal(method._others(images, torch.tensor([2, 5])), first)  # each step has its own


def test_gradient():
    method = method_of()
    method.loss(outputs_of(method), step_of(method))
    assert gradient_is_right(method.eval(), outputs_of(method), step_of(method), "contrast", "embedding")


def test_both_heads_learn_and_memories_take_no_gradient():
    method = method_of()
    method.loss(outputs_of(method), step_of(method))["contrast"].backward()
    assert method.student_head.weight.grad.any()
    assert method.teacher_head.weight.grad.any()
    assert not method.of_student.rows.requires_grad


def test_evaluating_changes_nothing():
    method = method_of().eval()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.loss(outputs_of(method), step_of(method))
    torch.testing.assert_close(dict(method.state_dict()), before, rtol=0, atol=0)


def test_nobody_answered_is_a_loss_of_zero_and_leaves_the_normaliser_to_the_next_batch():
    method = method_of()
    outputs = outputs_of(method)
    loss = method.loss(outputs, step_of(method, weight=[0] * N))["contrast"]
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(outputs.embedding.grad).all()
    assert method.of_student.normaliser == 0
    method.loss(outputs_of(method), step_of(method))
    assert method.of_student.normaliser > 0


def test_goes_on_to_the_bit_from_its_state():
    def steps(method, numbers):
        return [
            method.loss(outputs_of(method, number), step_of(method, number))["contrast"].item() for number in numbers
        ]

    method, other = method_of(), method_of()
    steps(method, range(2))
    other.load_state_dict(method.state_dict())
    assert steps(other, range(2, 4)) == steps(method, range(2, 4))
    assert all(
        torch.equal(a, b) for a, b in zip(other.state_dict().values(), method.state_dict().values(), strict=True)
    )


def test_ddp_sends_no_memory_around(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        tapped = TappedStudent(tiny_student())
        distiller = Distiller(tapped, CRD(SETTINGS, make_setup(student=tapped.measure(32, 32))))
        assert list(distiller.buffers())
        assert not DistributedDataParallel(distiller).modules_buffers
    finally:
        distributed.destroy_process_group()


def test_refuses_what_it_cannot_use():
    with pytest.raises(MethodMismatch, match="memory of every image"):
        CRD.asks(SETTINGS, make_setup(num_samples=0))
    with pytest.raises(MethodMismatch, match="needs the teacher's embedding"):
        CRD.asks(SETTINGS, make_setup(make_card(features={"layer3": (8, 4, 4)})))
    with pytest.raises(MethodMismatch, match="ends in no linear layer"):
        CRD.asks(SETTINGS, make_setup(student=StudentShape(num_classes=10)))
    with pytest.raises(ValueError, match="negatives and dimensions"):
        CRD.asks(CRDSettings(negatives=0), make_setup())
    with pytest.raises(ValueError, match="momentum is a share"):
        CRD.asks(CRDSettings(momentum=1.5), make_setup())
