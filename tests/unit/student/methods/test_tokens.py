from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from teacherfarm.student.methods.distiller import Distiller
from teacherfarm.student.methods.method import MethodMismatch, Setup, StudentShape
from teacherfarm.student.methods.student_taps import TappedStudent
from teacherfarm.student.methods.token_vectors import Layout, token_vector
from teacherfarm.student.methods.tokens import Tokens, TokensSettings
from tests.methods import (
    STUDENT_TAPS,
    make_card,
    make_output_card,
    make_outputs,
    make_setup,
    make_step,
    tiny_student,
)
from tests.tiny_tokens import TinyTokens, tiny_tokens
from tests.unit.student.methods.by_gradient import gradient_is_right


def setup_of(student: tuple[int, ...], teacher: tuple[int, ...], **card: Any) -> Setup:
    output = make_output_card("blocks.3", teacher, **card)
    shape = StudentShape(num_classes=10, embedding=5, features={"blocks.1": student})
    return make_setup(make_card(activation="none", features=(output,)), shape)


def away(kind: str, own: NDArray[Any], other: NDArray[Any]) -> float:
    if kind == "mse":
        return float(sum((a - b) ** 2 for a, b in zip(own, other, strict=True)) / len(own))
    return float(1 - (own * other).sum() / math.sqrt((own**2).sum() * (other**2).sum()))


def patches_by_hand(
    tokens: NDArray[Any], prefix: int, grid: tuple[int, int], to: tuple[int, int]
) -> list[NDArray[Any]]:
    """Averaged to a coarser grid, row by row."""
    high, wide = grid[0] // to[0], grid[1] // to[1]
    return [
        np.mean(
            [tokens[prefix + grid[1] * (high * row + y) + wide * column + x] for y in range(high) for x in range(wide)],
            axis=0,
        )
        for row, column in np.ndindex(*to)
    ]


@pytest.mark.parametrize("kind", ["cosine", "mse"])
@pytest.mark.parametrize(
    ("student_grid", "teacher_grid", "both"),
    [((2, 2), (4, 4), (2, 2)), ((4, 4), (2, 2), (2, 2)), ((2, 4), (4, 2), (2, 2)), ((2, 3), (2, 3), (2, 3))],
)
def test_is_the_distance_of_patches_on_the_coarser_grid_and_of_the_class_tokens(
    kind: Any, student_grid: Any, teacher_grid: Any, both: Any
) -> None:
    """The student has 2 tokens before its patches, the teacher 3."""
    shapes = (2 + math.prod(student_grid), 3), (3 + math.prod(teacher_grid), 4)
    setup = setup_of(*shapes, num_prefix_tokens=3, grid=teacher_grid)
    settings = TokensSettings(distance=kind, student_grid=student_grid, hard_weight=1.0)
    method = Tokens(settings, setup).double()
    outputs, spec = make_outputs(setup, 2, dtype=torch.float64), Tokens.asks(settings, setup).spec
    assert spec is not None
    assert spec.outputs == ("blocks.3",)
    step = make_step(2, setup.card, spec)
    weight, bias = (values.detach().numpy() for values in method.adapters.parameters())
    patches = prefix = 0.0
    for own, other in zip(
        outputs.features["blocks.1"].detach().numpy(),
        step.labels.output("blocks.3").astype(np.float64),  # type: ignore[union-attr]
        strict=True,
    ):
        guesses = patches_by_hand(own, 2, student_grid, both)
        truths = patches_by_hand(other, 3, teacher_grid, both)
        for guess, truth in zip(guesses, truths, strict=True):
            patches += away(kind, weight @ guess + bias, truth) / len(truths)
        prefix += away(kind, weight @ own[0] + bias, other[0])
    parts = method.loss(outputs, step)
    assert parts["patches"].item() == pytest.approx(patches / 2, rel=1e-8)
    assert parts["prefix"].item() == pytest.approx(prefix / 2, rel=1e-8)
    assert list(parts) == ["patches", "prefix", "ce"]


@pytest.mark.parametrize(
    ("student", "teacher", "card", "parts"),
    [
        ((16, 4), (17, 4), {"num_prefix_tokens": 1, "grid": (4, 4)}, ["patches"]),
        ((6, 3, 3), (4, 8), {}, ["patches"]),
        ((6, 4), (8, 7, 7), {}, ["patches"]),
        ((6, 4), (9, 8), {"num_prefix_tokens": 3, "grid": (2, 3)}, ["patches", "prefix"]),
        ((6, 8, 8), (8, 4, 4), {}, ["patches"]),
    ],
)
def test_grids_of_any_size_tokens_and_maps_go_together(
    student: tuple[int, ...], teacher: tuple[int, ...], card: Any, parts: list[str]
) -> None:
    setup, settings = setup_of(student, teacher, **card), TokensSettings(hard_weight=0.0, prefix_tokens=2)
    found = Tokens(settings, setup).loss(
        make_outputs(setup, 2), make_step(2, setup.card, Tokens.asks(settings, setup).spec)
    )
    assert list(found) == parts
    assert all(part.isfinite() for part in found.values())


def test_nothing_is_lost_where_the_student_is_the_teacher_on_a_finer_grid() -> None:
    setup = setup_of((4, 4, 4), (5, 4), num_prefix_tokens=1, grid=(2, 2))
    settings = TokensSettings(distance="mse")
    step = make_step(2, setup.card, Tokens.asks(settings, setup).spec)
    outputs = make_outputs(setup, 2)
    patches = torch.from_numpy(step.labels.output("blocks.3")[:, 1:]).float()  # type: ignore[union-attr]
    grid = patches.transpose(1, 2).reshape(2, 4, 2, 2)
    outputs.features["blocks.1"].data = grid.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert Tokens(settings, setup).loss(outputs, step)["patches"].item() == pytest.approx(0, abs=1e-10)


def test_grids_that_are_not_square() -> None:
    setup = setup_of((13, 4), (4, 4))
    with pytest.raises(MethodMismatch, match=r"'blocks.1' of the student has 13 tokens, .* 2 x 3 .* set student_grid"):
        Tokens.asks(TokensSettings(student_grid=(2, 3)), setup)
    method = Tokens(TokensSettings(student_grid=(2, 6)), setup)
    assert (method.pairs[0].student.prefix, method.pairs[0].student.width) == (1, 6)
    with pytest.raises(MethodMismatch, match=r"23 tokens, which are not 4 x 4"):
        Tokens.asks(TokensSettings(), setup_of((23, 4), (4, 4)))
    with pytest.raises(ValueError, match="rows and columns"):
        Tokens.asks(TokensSettings(student_grid=(2,)), setup)


@pytest.mark.parametrize(("student", "part"), [((5, 3), "patches"), ((5, 3), "prefix"), ((3, 3, 3), "patches")])
def test_gradient(student: tuple[int, ...], part: str) -> None:
    setup, settings = setup_of(student, (10, 4), num_prefix_tokens=1, grid=(3, 3)), TokensSettings()
    step = make_step(3, setup.card, Tokens.asks(settings, setup).spec, weight=[1, 0, 1])
    method, outputs = Tokens(settings, setup).double(), make_outputs(setup, 3, dtype=torch.float64)
    assert gradient_is_right(method, outputs, step, part, "blocks.1")


def test_crops_without_a_label_do_not_count() -> None:
    setup = setup_of((5, 3), (10, 4), num_prefix_tokens=1, grid=(3, 3))
    method, outputs = Tokens(TokensSettings(), setup).double(), make_outputs(setup, 4, dtype=torch.float64)
    spec = Tokens.asks(TokensSettings(), setup).spec
    for part in ("patches", "prefix"):
        losses = [
            method.loss(outputs, make_step(4, setup.card, spec, weight=weight))[part].item()
            for weight in ([1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1])
        ]
        assert losses[0] == pytest.approx((losses[1] + losses[2]) / 2, rel=1e-9)


def test_whole_tokens_are_taken_before_maps_unless_stages_are_named() -> None:
    features = {"embedding": (6,), "stem": (4, 8, 8), "stem@2x2": (4, 2, 2), "blocks.0": (17, 6), "blocks.1": (17, 6)}
    student = StudentShape(num_classes=10, embedding=5, features={"a": (5, 3), "b": (3, 4, 4), "c": (7,)})
    setup = make_setup(make_card(features=features), student)
    assert [(pair.tap, pair.output) for pair in Tokens(TokensSettings(), setup).pairs] == [
        ("a", "blocks.0"),
        ("b", "blocks.1"),
    ]
    named = make_setup(setup.card, student, teacher_taps=("stem@2x2",), student_taps=("b",))
    assert [(pair.tap, pair.output) for pair in Tokens(TokensSettings(), named).pairs] == [("b", "stem@2x2")]


@pytest.mark.parametrize("hard_weight", [0.0, 1.0])
def test_every_trainable_parameter_gets_a_gradient(hard_weight: float) -> None:
    student, settings = TappedStudent(tiny_student(), STUDENT_TAPS[:1]), TokensSettings(hard_weight=hard_weight)
    card = make_card(activation="none", features={"blocks.3": (5, 4)})
    setup = make_setup(card, student.measure(32, 32))
    distiller = Distiller(student, Tokens(settings, setup))
    parts = distiller(torch.rand(2, 3, 32, 32), make_step(2, card, Tokens.asks(settings, setup).spec))
    torch.stack(list(parts.values())).sum().backward()
    assert all(parameter.grad is not None for parameter in distiller.parameters() if parameter.requires_grad)
    assert student.model.head.weight.requires_grad is bool(hard_weight)


def test_the_datas_own_labels_count_by_default_where_the_teacher_has_classes() -> None:
    faces = setup_of((5, 3), (5, 3))
    assert not Tokens.asks(TokensSettings(), faces).targets
    assert Tokens.asks(TokensSettings(), make_setup(make_card(features={"x": (5, 3)}), faces.student)).targets


@pytest.mark.parametrize("make", [lambda: tiny_tokens(3, 8, 10), lambda: tiny_student(classes=10)])
def test_a_student_that_learns_no_classes_is_finished_after_its_adapter(make: Any) -> None:
    tap = "norm" if isinstance(make(), TinyTokens) else "stage2"
    student = TappedStudent(make(), (tap,))
    card = make_card(activation="none", features=(make_output_card("norm", (6, 4), num_prefix_tokens=2, grid=(2, 2)),))
    method = Tokens(TokensSettings(), make_setup(card, student.measure(32, 32)))
    distiller, crops = Distiller(student, method).eval(), torch.rand(3, 3, 32, 32)
    values = student(crops).features[tap]
    expected = method.adapters[0](values[:, 0] if values.ndim == 3 else values.mean(dim=(2, 3)))
    finished = distiller.inference()
    torch.testing.assert_close(finished(crops), expected)
    torch.testing.assert_close(distiller.predict(crops), expected)
    again = Tokens.rebuild(make(), json.loads(json.dumps(method.inference_plan())))
    again.load_state_dict(finished.state_dict())
    torch.testing.assert_close(again(crops), expected)


def test_an_image_is_its_first_token_or_the_mean_of_its_patches() -> None:
    layout = Layout(size=1, prefix=2, height=1, width=2)
    values = torch.tensor([[[1.0], [2.0], [4.0], [8.0]]])
    assert token_vector(values, layout, first=True).tolist() == [[1.0]]
    assert token_vector(values, layout, first=False).tolist() == [[6.0]]


def test_one_that_learns_classes_is_finished_as_it_is() -> None:
    student = TappedStudent(tiny_tokens(3, 8, 10), ("norm",))
    method = Tokens(TokensSettings(), make_setup(make_card(features={"norm": (5, 4)}), student.measure(32, 32)))
    crops = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(Distiller(student, method).inference()(crops), student.model(crops))
    assert Tokens.rebuild(student, method.inference_plan()) is student


def test_refusals() -> None:
    setup = setup_of((5, 3), (5, 3))
    with pytest.raises(MethodMismatch, match="--tap MODULE"):
        Tokens.asks(TokensSettings(), make_setup(make_card(features={"embedding": (5,)}), setup.student))
    with pytest.raises(MethodMismatch, match=r"no tokens or map 'x', it has blocks.3.*--tap x"):
        Tokens.asks(TokensSettings(), make_setup(setup.card, setup.student, teacher_taps=("x",)))
    with pytest.raises(MethodMismatch, match="--student-taps"):
        Tokens.asks(TokensSettings(), make_setup(setup.card, StudentShape(num_classes=10, embedding=5)))
    with pytest.raises(MethodMismatch, match="hard_weight=0"):
        Tokens.asks(
            TokensSettings(hard_weight=1.0),
            make_setup(setup.card, StudentShape(num_classes=10, features=setup.student.features)),
        )
    with pytest.raises(MethodMismatch, match="3 values and the teacher's 4"):
        Tokens.asks(TokensSettings(adapter="none"), setup_of((5, 3), (5, 4)))
    assert isinstance(Tokens(TokensSettings(), setup).adapters[0], nn.Identity)
