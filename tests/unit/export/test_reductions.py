"""What is made of a feature map inside the graph, against the formulas written out."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional

from teacherfarm.export import Teacher, export_teacher
from teacherfarm.export.graph import plan_graph
from teacherfarm.export.reductions import Reduce, parse_tap
from teacherfarm.protos.teacher_card import OutputCard
from tests import tiny_teacher

TAPS = ("block.0", "block.0@4x4", "block.0@3x5", "block.0@attention", "block.0@attention4x4")


def averaged(maps, height, width):
    """Adaptive average pooling, cell by cell."""
    num, channels, full_height, full_width = maps.shape
    out = np.zeros((num, channels, height, width))
    for row in range(height):
        for column in range(width):
            top, bottom = row * full_height // height, -(-(row + 1) * full_height // height)
            left, right = column * full_width // width, -(-(column + 1) * full_width // width)
            out[:, :, row, column] = maps[:, :, top:bottom, left:right].mean(axis=(2, 3))
    return out


def attention(maps):
    """The mean of squares over channels, flattened, of length 1."""
    rows = []
    for crop in maps:
        squares = (crop.astype(np.float64) ** 2).mean(axis=0).reshape(-1)
        rows.append(squares / np.sqrt((squares**2).sum()))
    return np.stack(rows)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    out = tmp_path_factory.mktemp("reduced")
    card = export_teacher(tiny_teacher.make(), out, taps=TAPS)
    session = onnxruntime.InferenceSession(out / "tiny" / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    crops = np.random.default_rng(2).integers(0, 256, (5, 32, 32, 3), np.uint8)
    return card, dict(zip(TAPS, session.run(list(TAPS), {"crops": crops}), strict=True))


def test_the_card_describes_them(exported):
    card, _ = exported
    described = [(o.name, o.layout, o.shape, o.reduction, o.of) for o in card.features[1:]]
    assert described == [
        ("block.0", "map", (16, 8, 8), "", ""),
        ("block.0@4x4", "map", (16, 4, 4), "pool", "block.0"),
        ("block.0@3x5", "map", (16, 3, 5), "pool", "block.0"),
        ("block.0@attention", "vector", (64,), "attention", "block.0"),
        ("block.0@attention4x4", "vector", (16,), "attention", "block.0"),
    ]
    assert card.taps == TAPS


def test_the_graph_computes_them(exported):
    _, answers = exported
    maps = answers["block.0"]
    assert maps.min() >= 0 < maps.max()
    for name, expected in {
        "block.0@4x4": averaged(maps, 4, 4),
        "block.0@3x5": averaged(maps, 3, 5),
        "block.0@attention": attention(maps),
        "block.0@attention4x4": attention(averaged(maps, 4, 4)),
    }.items():
        assert answers[name].dtype == np.float32
        assert np.allclose(answers[name], expected, atol=1e-5), name


def test_a_reduction_needs_no_whole_map_beside_it(tmp_path):
    card = export_teacher(tiny_teacher.make(), tmp_path, taps=["block.0@2x2"])
    assert card.graph_outputs == ("log_probabilities", "logits", "embedding", "block.0@2x2")


def test_the_map_of_a_teacher_without_classes_is_reduced_too():
    statistics = {"height": 16, "width": 16, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    module = nn.Conv2d(3, 6, 4, stride=4).eval()
    plan = plan_graph(Teacher(module=module, activation="none", **statistics), ["embedding@2x2"])
    assert [(o.name, o.shape, o.of) for o in plan.features] == [
        ("embedding", (6, 4, 4), ""),
        ("embedding@2x2", (6, 2, 2), "embedding"),
    ]


def test_maps_with_channels_last_are_turned_first():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 4, stride=4)
            self.turned = nn.Identity()

        def forward(self, pixels):
            return self.turned(self.stem(pixels).permute(0, 2, 3, 1)).mean(dim=(1, 2))

    statistics = {"height": 16, "width": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    teacher = Teacher(module=Last().eval(), map_layout="NHWC", **statistics)
    plan = plan_graph(teacher, ["turned@2x1"])
    assert plan.features[-1].shape == (6, 2, 1)


def test_zeros_have_an_attention_map_of_zeros():
    whole = OutputCard(name="m", shape=(3, 2, 2), layout="map")
    assert not Reduce(parse_tap("m@attention"), whole)(torch.zeros(1, 3, 2, 2)).any()


def test_averages_equal_pytorchs_pooling():
    maps = torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(1))
    whole = OutputCard(name="m", shape=(3, 7, 9), layout="map")
    assert torch.allclose(
        Reduce(parse_tap("m@7x2"), whole)(maps), functional.adaptive_avg_pool2d(maps, (7, 2)), atol=1e-6
    )


@pytest.mark.parametrize(
    ("tap", "words"),
    [
        ("block.0@", "no such reduction"),
        ("block.0@mean", "no such reduction.*MODULE@HxW"),
        ("block.0@0x4", "no such reduction"),
        ("@4x4", "no such reduction"),
        ("block.0@16x16", "is 8x8, a reduction is no larger"),
        ("block.0@attention9x8", "is 8x8"),
        ("head@4x4", r"'head' gives a vector \[10\]; only maps"),
        ("nowhere@4x4", "cannot tap 'nowhere'"),
    ],
)
def test_what_cannot_be_reduced_is_refused(tap, words):
    with pytest.raises(ValueError, match=words):
        plan_graph(tiny_teacher.make(), [tap])


def test_the_same_reduction_twice_is_refused():
    with pytest.raises(ValueError, match="name each tap once"):
        plan_graph(tiny_teacher.make(), ["block.0@4x4", "block.0@4x4"])


def test_the_card_says_which_maps_average_to_the_embedding():
    taps = ("act", "block", "block@4x4", "block@attention")
    features = {output.name: output for output in plan_graph(tiny_teacher.make(), taps).features}
    assert {name: output.averages_to_embedding for name, output in features.items()} == {
        "embedding": None,
        "act": False,
        "block": True,
        "block@4x4": True,
        "block@attention": None,
    }
