"""What a tapped student shows, what its copies show, and which parameters stand behind a tap."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models.swin_transformer import SwinTransformer

from teacherfarm.student.methods.frozen import eval_where_still, train_only
from teacherfarm.student.methods.student_taps import TappedStudent
from tests.methods import STUDENT_TAPS, tiny_student


def pixels():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_shapes_and_parameters_of_each_tap():
    shape = TappedStudent(tiny_student(), STUDENT_TAPS).measure(32, 32)
    assert shape.features == {"stage1": (6, 16, 16), "stage2": (12, 4, 4)}
    assert shape.parameters["stage1"] == {"stage1.0.weight", "stage1.0.bias"}
    assert shape.parameters["stage2"] == shape.parameters["stage1"] | {"stage2.0.weight", "stage2.0.bias"}
    assert shape.parameters["embedding"] == shape.parameters["stage2"]
    assert shape.parameters[""] == shape.parameters["stage2"] | {"head.weight", "head.bias"}


def test_a_copy_shows_its_own_features():
    tapped = TappedStudent(tiny_student(), STUDENT_TAPS)
    other = copy.deepcopy(tapped)
    with torch.no_grad():
        other.model.stage1[0].weight.mul_(2)
        other.model.stage1[0].bias.mul_(2)
    torch.testing.assert_close(other(pixels()).features["stage1"], 2 * tapped(pixels()).features["stage1"])


def test_a_bare_model_has_no_taps_and_other_weights():
    tapped = TappedStudent(tiny_student(), STUDENT_TAPS)
    bare = tapped.bare()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in bare.modules())
    assert tapped(pixels()).features  # its own are still there
    torch.testing.assert_close(bare(pixels()), tapped(pixels()).logits)
    assert bare.head.weight is not tapped.model.head.weight


@pytest.mark.parametrize("frozen", [True, False])
def test_what_is_not_trained_stands_in_eval(frozen):
    model = nn.Sequential(nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()), nn.Linear(3, 2), nn.Dropout())
    train_only(model, {"1.weight"} if frozen else {"0.0.weight", "1.weight"})
    model.train()
    eval_where_still(model)
    assert model[0].training is not frozen
    assert model[0][1].training is not frozen
    assert model[1].training
    assert model[2].training


@pytest.mark.parametrize(
    ("last", "embedding"),
    [
        (nn.Linear(5, 4), 5),
        (nn.Sequential(nn.Linear(5, 4), nn.Identity()), 5),
        (nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)), 0),
        (nn.Identity(), 0),
    ],
)
def test_the_embedding_is_what_a_linear_layer_took_whose_result_the_logits_are(last, embedding):
    body = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU())
    tapped = TappedStudent(nn.Sequential(body, last))
    assert tapped.measure(2, 2).embedding == embedding
    crops = torch.rand(3, 3, 2, 2)
    outputs = tapped(crops)
    if embedding:
        torch.testing.assert_close(outputs.embedding, body(crops))
    else:
        assert outputs.embedding is None


class ChannelsLast(nn.Module):
    """As timm's Swin does: a convolution, then stages on [N, H, W, C]."""

    output_fmt = "NHWC"

    def __init__(self):
        super().__init__()
        self.proj = nn.Conv2d(3, 5, 2, stride=2)
        self.stage = nn.Linear(5, 7)

    def forward(self, pixels):
        return self.stage(self.proj(pixels).permute(0, 2, 3, 1)).mean(dim=(1, 2))


def test_maps_are_shown_channels_first_whatever_the_model_works_on():
    model = ChannelsLast()
    tapped = TappedStudent(model, ("proj", "stage"))
    assert tapped.measure(8, 6).features == {"proj": (5, 4, 3), "stage": (7, 4, 3)}
    outputs = tapped(torch.rand(2, 3, 8, 6))
    torch.testing.assert_close(outputs.features["stage"].mean(dim=(2, 3)), outputs.logits)
    model.output_fmt = "NCHW"
    assert TappedStudent(model, ("stage",)).measure(8, 6).features == {"stage": (4, 3, 7)}


def test_the_stages_of_torchvisions_swin():
    model = SwinTransformer([4, 4], 12, [1, 1], [1, 1], [2, 2], num_classes=10)
    shape = TappedStudent(model, ("features.0.0", "features.1", "features.3", "permute")).measure(16, 16)
    assert list(shape.features.values()) == [(12, 4, 4), (12, 4, 4), (24, 2, 2), (24, 2, 2)]
