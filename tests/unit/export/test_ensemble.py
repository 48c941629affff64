"""Several teachers in one graph: what it answers, against the members' own answers averaged by hand."""

import dataclasses

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional

from teacherfarm.export import Teacher, ensemble, export_teacher
from teacherfarm.export.ensemble import Member, make_ensemble, resizing
from teacherfarm.export.loading import member_weights
from teacherfarm.protos.faults import GoldenMismatch
from teacherfarm.protos.teacher_card import EnsembleMember
from tests import tiny_teacher

TEMPERATURE = 0.25


def small(seed: int, **changes) -> Teacher:
    return dataclasses.replace(tiny_teacher.make(seed), name=f"seed{seed}", source=f"seed {seed}", **changes)


class Broken(nn.Module):
    def forward(self, pixels):
        raise AssertionError("it takes 7 crops")


def members() -> list[Teacher]:
    """Of other sizes, normalisation and channel order."""
    return [
        small(5),
        small(6, height=20, width=24, mean=(0.5, 0.4, 0.3), std=(0.5, 0.6, 0.7), interpolation="bicubic"),
        small(7, channel_order="BGR", mean=(0.1, 0.2, 0.3)),
    ]


def by_hand(crops, temperature):
    """The mean of softmax(z / T) and of z, member by member."""
    fractions = torch.from_numpy(crops).permute(0, 3, 1, 2).double() / 255
    logits = []
    for member in members():
        pixels = fractions.flip(1) if member.channel_order == "BGR" else fractions
        if member.height != 32:
            size = (member.height, member.width)
            pixels = functional.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (member.mean, member.std))
        with torch.no_grad():
            logits.append(member.module(((pixels - mean) / std).float()).double())
    probabilities = sum(torch.softmax(z / temperature, dim=1) for z in logits) / 3
    return probabilities.numpy(), (sum(logits) / 3).numpy()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    out = tmp_path_factory.mktemp("ensemble")
    card = export_teacher(members(), out, name="three", ensemble_temperature=TEMPERATURE)
    return card, out / "three"


def test_the_graph_answers_the_mean_of_the_members(exported):
    card, entry = exported
    session = onnxruntime.InferenceSession(entry / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    crops = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), np.uint8)
    answers = dict(zip(card.graph_outputs, session.run(list(card.graph_outputs), {"crops": crops}), strict=True))
    probabilities, mean_logits = by_hand(crops, TEMPERATURE)
    assert np.abs(np.exp(answers["log_probabilities"].astype(np.float64)) - probabilities).max() < 1e-3
    assert np.abs(np.exp(answers["logits"].astype(np.float64)) - probabilities).max() < 1e-5
    assert np.abs(answers["mean_logits"] - mean_logits).max() < 1e-3 * np.abs(mean_logits).max()
    # Neither one member nor the softmax of the mean logits would do.
    wrong = torch.softmax(torch.from_numpy(mean_logits) / TEMPERATURE, dim=1).numpy()
    assert np.abs(wrong - probabilities).max() > 0.05


def test_the_card_names_the_members_and_the_temperature(exported):
    card, entry = exported
    assert card.graph_outputs == ("log_probabilities", "logits", "mean_logits")
    assert card.members[1] == EnsembleMember(
        name="seed6", source="seed 6", height=20, width=24, weights_source="seed 6", licence="Apache-2.0"
    )
    assert [member.name for member in card.members] == ["seed5", "seed6", "seed7"]
    assert (card.fixed_temperature, card.crop_format.shape, card.classes) == (
        TEMPERATURE,
        (32, 32, 3),
        tiny_teacher.CLASSES,
    )
    assert (card.has_head, card.taps, card.mean) == (False, (), ())
    assert "ensemble averages several" in card.headless
    assert card.licence == "Apache-2.0"
    with np.load(entry / "golden.npz") as golden:
        assert np.allclose(golden["probabilities"].sum(axis=1), 1, atol=1e-4)


def test_a_swapped_normalisation_of_one_member_fails_the_export(tmp_path, monkeypatch):
    class Swapped(Member):
        def __init__(self, teacher, *others):
            super().__init__(dataclasses.replace(teacher, mean=teacher.mean[::-1], std=teacher.std[::-1]), *others)

    monkeypatch.setattr(ensemble, "Member", Swapped)
    with pytest.raises(GoldenMismatch, match="normalisation"):
        export_teacher(members(), tmp_path, name="swapped")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "area"])
@pytest.mark.parametrize(("size", "resized"), [(32, 20), (17, 23)])
def test_resizing_is_pytorchs(interpolation, size, resized):
    teacher = small(5, interpolation=interpolation)
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    matrix = resizing(size, resized, teacher).double()
    mode = {"nearest": "nearest-exact"}.get(interpolation, interpolation)
    smooth = interpolation in ("bilinear", "bicubic")
    expected = functional.interpolate(images, (resized, resized), mode=mode, antialias=smooth)
    assert torch.allclose(matrix @ images @ matrix.T, expected, atol=1e-6)
    assert torch.allclose(matrix.sum(dim=1), torch.ones(resized).double(), atol=1e-6)


@pytest.mark.parametrize(
    ("others", "options", "words"),
    [
        ([], {}, "two teachers or more, got 1"),
        ([small(6, activation="sigmoid")], {}, "softmax teachers, 'seed6' has activation 'sigmoid'"),
        ([small(6, classes=tiny_teacher.CLASSES[::-1])], {}, "class 0 is 'plane' and 'truck'"),
        ([small(6, classes=("a", "b"))], {}, "other classes: 10 and 2"),
        ([small(6, channel_order="GRAY", mean=(0.5,), std=(0.5,))], {}, "'seed6' takes GRAY crops"),
        ([small(6)], {"temperature": 0.0}, "--ensemble-temperature must be positive"),
        ([small(6, module=Broken())], {}, "'seed6': the teacher does not run on .* pixels: it takes 7 crops"),
        ([small(6, module=nn.Softmax(dim=1))], {}, r"'seed6': a softmax teacher returns logits \[N, classes\]"),
        ([make_ensemble([small(6), small(7)], name="both")], {}, "'both' is an ensemble itself"),
    ],
)
def test_teachers_that_do_not_go_together_are_refused(others, options, words):
    with pytest.raises(ValueError, match=words):
        make_ensemble([small(5), *others], **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give --name"),
        ({"name": "e", "taps": ["block.0"]}, "an ensemble gives its mean alone"),
        ({"name": "e", "mean": (0.5,) * 3}, "bring their own mean: drop --mean"),
        ({"name": "e", "weights": [None]}, "1 --weights for 2 teachers"),
    ],
)
def test_what_an_ensemble_cannot_be_told_is_refused(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        export_teacher(["tests.tiny_teacher:make", "tests.tiny_teacher:make_other"], tmp_path, **options)


def test_members_of_another_number_of_classes_are_refused():
    other = small(6, classes=(), module=tiny_teacher.tiny_net(6, classes=7))
    with pytest.raises(ValueError, match=r"answer \[10, 7\] classes"):
        make_ensemble([small(5), other])


def test_the_size_of_crops_can_be_chosen():
    chosen = make_ensemble(members(), size=(48, 40))
    assert (chosen.height, chosen.width) == (48, 40)
    assert chosen.module(torch.rand(2, 3, 48, 40)).shape == (2, 10)


@pytest.mark.parametrize("source", ["torchvision:resnet18", "timm:resnet18", "cifar:resnet20"])
def test_members_by_name_take_what_the_command_says_of_weights(source):
    drawn, own = member_weights([source, small(5)], None, pretrained=False, random=True)
    assert drawn.random
    assert not own.random, "a teacher that is built by a function brings its own"
