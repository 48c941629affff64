from __future__ import annotations

import numpy as np
import pytest
import torch

from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.methods.method import MethodMismatch, StudentShape
from teacherfarm.student.methods.teacher_maps import paired_stages, pooled_map, teacher_stages, whole_map
from tests.methods import make_card, make_setup, make_step

FEATURES = {"embedding": (4,), "layer1": (3, 8, 8), "layer1@4x4": (3, 4, 4), "layer2@attention": (16,)}


def test_stages_are_named_once_in_the_cards_order_and_the_embedding_is_none() -> None:
    assert teacher_stages(make_setup(make_card(features=FEATURES))) == ("layer1", "layer2")
    assert teacher_stages(make_setup(make_card(features={**FEATURES, "embedding": (4, 2, 2)}))) == ("layer1", "layer2")
    named = ("layer2", "layer1")
    assert teacher_stages(make_setup(make_card(features=FEATURES), teacher_taps=named)) == named
    with pytest.raises(MethodMismatch, match=r"without feature maps, it has embedding.*--tap MODULE"):
        teacher_stages(make_setup(make_card(features={"embedding": (4,)})))


def test_stages_pair_from_the_first_on() -> None:
    student = StudentShape(num_classes=10, features={"a": (2, 8, 8), "tokens": (5, 3), "b": (2, 4, 4), "c": (2, 2, 2)})
    setup = make_setup(make_card(features=FEATURES), student)
    assert paired_stages(setup) == (("a", (2, 8, 8), "layer1"), ("b", (2, 4, 4), "layer2"))


@pytest.mark.parametrize(
    ("size", "output", "shape"),
    [
        (8, "layer1", (3, 8, 8)),
        (9, "layer1", (3, 8, 8)),
        (4, "layer1@4x4", (3, 4, 4)),
        (2, "layer1", (3, 2, 2)),
    ],
)
def test_a_map_no_larger_than_the_students(size: int, output: str, shape: tuple[int, ...]) -> None:
    found = pooled_map(make_setup(make_card(features=FEATURES)), "layer1", size, size)
    assert (found.output, found.shape) == (output, shape)


def test_a_map_is_averaged_here_as_the_graph_would_have() -> None:
    setup = make_setup(make_card(features=FEATURES))
    step = make_step(2, setup.card, LabelSpec(outputs=("layer1",)))
    values = step.labels.output("layer1").astype(np.float64)  # type: ignore[union-attr]
    by_hand = values.reshape(2, 3, 2, 4, 2, 4).mean(axis=(3, 5))
    taken = pooled_map(setup, "layer1", 2, 2).take(step, torch.zeros(1, dtype=torch.float64))
    np.testing.assert_allclose(taken.numpy(), by_hand)


@pytest.mark.parametrize(
    ("taps", "why"),
    [
        (("layer1", "embedding"), "'embedding' of teacher 'teacher' is no feature map but a vector: name others"),
        (("norm",), "'norm' of teacher 'teacher' is no feature map but tokens: use --method tokens"),
        (("layer1", "layer2"), "gives no output 'layer2'"),
        (("layer",), "gives no output 'layer'"),
    ],
)
def test_stages_that_are_named_must_be_maps(taps, why) -> None:
    card = make_card(features={"embedding": (9,), "layer1@4x4": (3, 4, 4), "norm": (17, 8)})
    assert teacher_stages(make_setup(card, teacher_taps=("layer1",))) == ("layer1",)
    with pytest.raises(MethodMismatch, match=why):
        teacher_stages(make_setup(card, teacher_taps=taps))


def test_what_was_not_exported_is_named_with_the_command_that_adds_it() -> None:
    setup = make_setup(make_card(features={"layer1@4x4": (3, 4, 4)}))
    assert pooled_map(setup, "layer1", 4, 4).output == "layer1@4x4"
    with pytest.raises(MethodMismatch, match=r"it has layer1@4x4: .* --tap layer1@2x2 --force$"):
        pooled_map(setup, "layer1", 2, 2)
    with pytest.raises(MethodMismatch, match=r"--tap layer1@4x4 --tap layer1 --force$"):
        whole_map(setup, "layer1")
