from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from teacherfarm.student.methods.distiller import Distiller
from teacherfarm.student.methods.embedding import Embedding, EmbeddingSettings
from teacherfarm.student.methods.method import MethodMismatch, Setup, StudentShape
from teacherfarm.student.methods.student_taps import TappedStudent
from tests.methods import make_card, make_outputs, make_setup, make_step, tiny_student
from tests.unit.student.methods.by_gradient import gradient_is_right


def face_teacher(size: int = 6) -> Any:
    return make_card(activation="none", features={"embedding": (size,)})


def setup_of(embedding: int = 5, output: int = 10, teacher: int = 6) -> Setup:
    return make_setup(face_teacher(teacher), StudentShape(num_classes=output, embedding=embedding))


@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_is_the_distance_of_the_adapted_vectors(distance: Any) -> None:
    setup, settings = setup_of(), EmbeddingSettings(distance=distance, embedding_weight=2.0, hard_weight=1.0)
    method = Embedding(settings, setup).double()
    outputs, asks = make_outputs(setup, 3, dtype=torch.float64), Embedding.asks(settings, setup)
    assert asks.spec is not None
    assert asks.spec.outputs == ("embedding",)
    assert asks.targets
    step = make_step(3, setup.card, asks.spec)
    step.labels.records["embedding"] += 0.5  # type: ignore[union-attr] (a vector of zeros has no cosine)
    assert outputs.embedding is not None
    expected = 0.0
    weight, bias = (values.detach().numpy() for values in method.adapter.parameters())
    for own, other in zip(outputs.embedding.detach().numpy(), step.labels.output("embedding"), strict=True):  # type: ignore[union-attr]
        guess, truth = weight @ own + bias, other.astype(np.float64)
        if distance == "mse":
            expected += sum((g - t) ** 2 for g, t in zip(guess, truth, strict=True)) / 6
        else:
            expected += 1 - (guess * truth).sum() / math.sqrt((guess**2).sum() * (truth**2).sum())
    parts = method.loss(outputs, step)
    assert parts["embedding"].item() == pytest.approx(2 * expected / 3, rel=1e-8)
    assert parts["ce"].item() == pytest.approx(nn.functional.cross_entropy(outputs.logits, step.targets).item())


@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_gradient_and_crops_without_a_label(distance: Any) -> None:
    setup, settings = setup_of(), EmbeddingSettings(distance=distance)
    method, outputs = Embedding(settings, setup).double(), make_outputs(setup, 4, dtype=torch.float64)
    spec = Embedding.asks(settings, setup).spec
    steps = [make_step(4, setup.card, spec, weight=weight) for weight in ([1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1])]
    losses = [method.loss(outputs, step)["embedding"].item() for step in steps]
    assert losses[0] == pytest.approx((losses[1] + losses[2]) / 2, rel=1e-9)
    assert gradient_is_right(method, outputs, steps[1], "embedding", "embedding")


@pytest.mark.parametrize(
    ("vector", "embedding", "output", "hard_weight", "of_output"),
    [
        ("auto", 5, 10, 1.0, False),
        ("auto", 0, 5, 1.0, True),
        ("auto", 5, 10, None, True),
        ("embedding", 5, 6, None, False),
        ("output", 5, 10, 1.0, True),
    ],
)
def test_which_of_the_students_vectors(
    vector: Any, embedding: int, output: int, hard_weight: float | None, of_output: bool
) -> None:
    setup, settings = setup_of(embedding, output), EmbeddingSettings(vector=vector, hard_weight=hard_weight)
    asks, method = Embedding.asks(settings, setup), Embedding(settings, setup)
    assert method.of_output is of_output
    assert asks.targets is (hard_weight == 1.0 and not of_output)
    outputs = make_outputs(setup, 2)
    assert method.gives_classes is bool(asks.targets)
    parts = method.loss(outputs, make_step(2, setup.card, asks.spec))
    parts["embedding"].backward()
    assert (outputs.logits.grad is not None) is of_output
    assert ("ce" in parts) is asks.targets


def test_a_student_with_as_many_classes_as_the_vector_has_values_keeps_its_classes() -> None:
    card = make_card(num_classes=6, features={"embedding": (6,)})
    setup = make_setup(card, StudentShape(num_classes=6, embedding=5))
    assert not Embedding(EmbeddingSettings(), setup).of_output


def test_the_datas_own_labels_count_by_default_where_the_teacher_has_classes() -> None:
    student = StudentShape(num_classes=10, embedding=5)
    for card, targets in ((make_card(features={"embedding": (6,)}), True), (face_teacher(), False)):
        assert Embedding.asks(EmbeddingSettings(), make_setup(card, student)).targets is targets


def test_adapters() -> None:
    def adapter(kind: Any, taken: int) -> nn.Module:
        return Embedding(EmbeddingSettings(adapter=kind, vector="embedding"), setup_of(taken)).adapter

    assert isinstance(adapter("auto", 6), nn.Identity)
    assert isinstance(adapter("auto", 5), nn.Linear)
    assert isinstance(adapter("linear", 6), nn.Linear)
    assert isinstance(adapter("none", 6), nn.Identity)
    assert adapter("mlp", 5)(torch.zeros(2, 5)).shape == (2, 6)
    with pytest.raises(MethodMismatch, match="5 values and the teacher's 6"):
        Embedding.asks(EmbeddingSettings(adapter="none", vector="embedding"), setup_of(5))


def test_a_student_without_classes_is_finished_with_its_adapter() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    student = TappedStudent(backbone)
    setup = make_setup(face_teacher(), student.measure(16, 16))
    method = Embedding(EmbeddingSettings(), setup)
    distiller, crops = Distiller(student, method).eval(), torch.rand(2, 3, 16, 16)
    finished = distiller.inference()
    vectors: Tensor = finished(crops)
    assert vectors.shape == (2, 6)
    torch.testing.assert_close(vectors, distiller.predict(crops))
    fresh = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    again = Embedding.rebuild(fresh, method.inference_plan())
    again.load_state_dict(finished.state_dict())
    torch.testing.assert_close(again(crops), vectors)


def test_a_student_with_classes_is_finished_as_it_is() -> None:
    student = TappedStudent(tiny_student())
    settings = EmbeddingSettings(hard_weight=1.0)
    method = Embedding(settings, make_setup(face_teacher(), student.measure(32, 32)))
    crops = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(Distiller(student, method).inference()(crops), student.model(crops))
    assert Embedding.rebuild(student, method.inference_plan()) is student


@pytest.mark.parametrize("hard_weight", [0.0, 1.0])
def test_every_trainable_parameter_gets_a_gradient(hard_weight: float) -> None:
    student, settings = TappedStudent(tiny_student()), EmbeddingSettings(hard_weight=hard_weight, vector="embedding")
    setup = make_setup(face_teacher(), student.measure(32, 32))
    distiller = Distiller(student, Embedding(settings, setup))
    parts = distiller(torch.rand(2, 3, 32, 32), make_step(2, setup.card, Embedding.asks(settings, setup).spec))
    torch.stack(list(parts.values())).sum().backward()
    assert all(parameter.grad is not None for parameter in distiller.parameters() if parameter.requires_grad)
    assert student.model.head.weight.requires_grad is bool(hard_weight)


def test_refusals() -> None:
    def asks(card: Any, **settings: Any) -> None:
        Embedding.asks(EmbeddingSettings(**settings), make_setup(card, StudentShape(num_classes=10)))

    with pytest.raises(MethodMismatch, match=r"no output 'embedding', it has layer1.*Teacher\(embedding=MODULE"):
        asks(make_card(features={"layer1": (3, 4, 4)}))
    with pytest.raises(MethodMismatch, match="--method tokens"):
        asks(make_card(activation="none", features={"embedding": (5, 7)}))
    with pytest.raises(MethodMismatch, match="set vector=output"):
        asks(face_teacher(), vector="embedding")
