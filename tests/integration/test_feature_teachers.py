"""What other than class labels comes through a server equals PyTorch's own: maps and their reductions, embeddings,
tokens, independent classes, ensembles, and the classifier.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from teacherfarm.export import Teacher, export_teacher
from teacherfarm.protos.faults import NoHead, TemperatureMismatch, UnknownOutput
from teacherfarm.student import LabelSpec, TeacherClient
from tests import tiny_teacher
from tests.farm_process import FarmProcess
from tests.methods import REDUCTIONS, TAPS

pytestmark = pytest.mark.timeout(240)

FEATURES = (*TAPS, *REDUCTIONS, "embedding")
TOLERANCE = {"float16": 2e-3, "int8": 1e-2}
"""Of a value, relative to the largest of its crop and channel."""


class Face(nn.Module):
    """An embedding of length 1, as networks for faces end in."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = tiny_teacher.tiny_net(9)
        self.backbone.head = nn.Linear(16, 24)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return functional.normalize(self.backbone(pixels))


def face() -> Teacher:
    torch.manual_seed(2)
    statistics = {"height": 32, "width": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return Teacher(module=Face().eval(), activation="none", name="face", **statistics)


@pytest.fixture(scope="module")
def models(tapped_models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("feature_teachers")
    shutil.copytree(tapped_models / "tiny", folder / "tiny")
    export_teacher(face(), folder)
    sources = ("tests.tiny_teacher:make", "tests.tiny_teacher:make_other")
    export_teacher(sources, folder, name="both", ensemble_temperature=4.0)
    export_teacher("tests.tiny_teacher:make_other", folder, name="independent", activation="sigmoid")
    backbone = {"random_weights": True, "size": (32, 32), "activation": "none", "name": "backbone"}
    export_teacher("timm:test_vit", folder, taps=["blocks.1"], **backbone)
    return folder


@pytest.fixture(scope="module")
def farm(models, tmp_path_factory):
    with FarmProcess(tmp_path_factory.mktemp("feature_farm"), models) as farm:
        yield farm


@pytest.fixture(params=["zmq", "grpc", "local"])
def address(request, farm, models):
    return f"local://{models}" if request.param == "local" else getattr(farm, request.param)


@pytest.fixture(scope="module")
def crops():
    return np.random.default_rng(6).integers(0, 256, (7, 32, 32, 3), np.uint8)


def pixels_of(crops, mean, std) -> torch.Tensor:
    fractions = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
    return (fractions - torch.tensor(mean).reshape(3, 1, 1)) / torch.tensor(std).reshape(3, 1, 1)


def features_of(net, crops) -> dict[str, torch.Tensor]:
    """What the tiny net shows, and its reductions by PyTorch's own operators."""
    with torch.no_grad():
        stem = net.act(net.norm(net.stem(pixels_of(crops, tiny_teacher.MEAN, tiny_teacher.STD))))
        block = net.block(stem)
    pooled = functional.adaptive_avg_pool2d(block, 4)
    return {
        "act": stem,
        "block": block,
        "block@4x4": pooled,
        "act@attention": functional.normalize(stem.pow(2).mean(1).flatten(1)),
        "block@attention4x4": functional.normalize(pooled.pow(2).mean(1).flatten(1)),
        "embedding": block.mean(dim=(2, 3)),
    }


@pytest.mark.parametrize("feature_type", ["float16", "int8"])
def test_maps_and_reductions(address, crops, feature_type):
    spec = LabelSpec(outputs=("labels", *FEATURES), feature_type=feature_type)
    with TeacherClient(address, "tiny", spec=spec) as teacher:
        labels = teacher.label(crops)
        card = teacher.card
    expected = features_of(tiny_teacher.tiny_net(), crops)
    assert set(expected) == set(FEATURES)
    for name in FEATURES:
        got, true = labels.output(name), expected[name].numpy()
        assert got.shape == (7, *card.feature(name).shape) == true.shape
        others = (2, 3) if true.ndim == 4 else (1,)
        largest = np.abs(true).max(axis=others, keepdims=True)
        assert (np.abs(got - true) <= TOLERANCE[feature_type] * largest + 1e-6).all(), name
    assert labels.probabilities().shape == (7, 10)


def test_the_classifier_makes_the_labels_of_the_embedding(address, crops):
    with TeacherClient(address, "tiny", spec=LabelSpec(outputs=("labels", "embedding"))) as teacher:
        head = teacher.head()
        labels = teacher.label(crops)
        assert teacher.stats.sessions == 1
    net = tiny_teacher.tiny_net()
    assert np.array_equal(head.weight, net.head.weight.detach().numpy())
    assert np.array_equal(head.bias, net.head.bias.detach().numpy())
    logits = labels.output("embedding").astype(np.float32) @ head.weight.T + head.bias
    probabilities = torch.softmax(torch.from_numpy(logits), dim=1).numpy()
    assert np.abs(probabilities - labels.probabilities()).max() < 2e-2


@pytest.mark.parametrize(("name", "why"), [("both", "an ensemble averages several"), ("face", "it has no classes")])
def test_a_teacher_without_a_classifier_says_why(address, name, why):
    with TeacherClient(address, name) as teacher, pytest.raises(NoHead, match=why):
        teacher.head()


def test_an_ensemble_costs_what_one_teacher_costs(address, crops):
    with TeacherClient(address, "both", spec=LabelSpec(outputs=("labels", "mean_logits"))) as teacher:
        labels = teacher.label(crops)
        with pytest.raises(TemperatureMismatch, match="averaged at temperature 4"):
            labels.probabilities(1.0)
    nets = [tiny_teacher.tiny_net(seed) for seed in (5, 6)]
    with torch.no_grad():
        logits = [net(pixels_of(crops, tiny_teacher.MEAN, tiny_teacher.STD)) for net in nets]
    mean = sum(torch.softmax(z / 4, dim=1) for z in logits) / 2
    assert np.abs(labels.probabilities(4.0) - mean.numpy()).max() < 1e-3
    mean_logits = (sum(logits) / 2).numpy()
    assert np.abs(labels.output("mean_logits") - mean_logits).max() < 2e-3 * np.abs(mean_logits).max()
    assert labels.records.dtype.itemsize == 2 * 10 + 2 * 10


def test_an_ensembles_top_k_is_taken_at_its_temperature(address, crops):
    with TeacherClient(address, "both", spec=LabelSpec(top_k=3, temperature=4.0)) as teacher:
        kept = teacher.label(crops)
    with TeacherClient(address, "both") as teacher:
        whole = teacher.label(crops).probabilities()
    assert np.allclose(np.exp(kept.log_probabilities.astype(np.float32)), np.sort(whole)[:, :-4:-1], atol=1e-3)
    with pytest.raises(TemperatureMismatch, match="--ensemble-temperature 1"):
        TeacherClient(address, "both", spec=LabelSpec(top_k=3)).connect()


@pytest.mark.parametrize("feature_type", ["float16", "int8"])
def test_a_face_teachers_embedding(address, crops, feature_type):
    with TeacherClient(address, "face", spec=LabelSpec(feature_type=feature_type)) as teacher:
        assert (teacher.card.num_classes, teacher.spec.outputs) == (0, ("embedding",))
        embedding = teacher.label(crops).output("embedding")
    with torch.no_grad():
        expected = face().module(pixels_of(crops, (0.5,) * 3, (0.5,) * 3)).numpy()
    assert np.abs(embedding - expected).max() < TOLERANCE[feature_type]
    assert np.allclose(np.linalg.norm(embedding.astype(np.float32), axis=1), 1, atol=1e-2)


@pytest.mark.parametrize("feature_type", ["float16", "int8"])
def test_a_self_supervised_backbones_tokens(address, crops, feature_type):
    spec = LabelSpec(outputs=("embedding", "blocks.1"), feature_type=feature_type)
    with TeacherClient(address, "backbone", spec=spec) as teacher:
        card = teacher.card
        labels = teacher.label(crops)
        again = teacher.label(crops[:1])
    tokens = card.feature("blocks.1")
    assert (tokens.layout, tokens.shape, tokens.num_prefix_tokens, tokens.grid) == ("tokens", (5, 64), 1, (2, 2))
    assert labels.output("blocks.1").shape == (7, 5, 64)
    assert labels.output("embedding").shape == (7, 64)
    assert np.allclose(again.output("blocks.1")[0], labels.output("blocks.1")[0], atol=2e-2)
    assert len(np.unique(labels.output("embedding")[:, 0])) == 7


def test_independent_classes(address, crops):
    with TeacherClient(address, "independent") as teacher:
        labels = teacher.label(crops)
        assert np.array_equal(teacher.head().weight, tiny_teacher.tiny_net(6).head.weight.detach().numpy())
    with torch.no_grad():
        logits = tiny_teacher.tiny_net(6)(pixels_of(crops, tiny_teacher.MEAN, tiny_teacher.STD))
    for temperature in (1.0, 3.0):
        expected = torch.sigmoid(logits / temperature).numpy()
        assert np.abs(labels.probabilities(temperature) - expected).max() < 2e-3


@pytest.mark.parametrize(
    ("name", "output", "words"),
    [
        ("tiny", "stem@4x4", r"it has labels, embedding, act, block, .*--tap act --tap block .*--tap stem@4x4 --force"),
        ("tiny", "block@2x2", r"or ask 'block' and reduce it on the student"),
        ("backbone", "labels", "It has no classes"),
        ("backbone", "blocks.0", "teacherfarm export timm:test_vit --name backbone --tap blocks.1 --tap blocks.0"),
        ("both", "block", "an ensemble has no taps: export one of its members by itself"),
    ],
)
def test_what_a_teacher_was_not_exported_with_is_named(address, name, output, words):
    with pytest.raises(UnknownOutput, match=words):
        TeacherClient(address, name, spec=LabelSpec(outputs=(output,))).connect()
