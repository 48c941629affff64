"""What is found inside a module."""

import pytest
import torch
from torch import nn

from teacherfarm.export.graph import plan_graph
from teacherfarm.export.taps import Capture, Survey
from tests import tiny_teacher


class Residual(nn.Module):
    """One activation used twice, in place, and a sum between."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(3, 4)

    def forward(self, pixels):
        maps = self.second(self.relu(self.first(pixels)))
        maps += pixels
        return self.head(self.relu(maps).mean(dim=(2, 3)))


def survey_of(module):
    return Survey(module, torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(1)))


def test_the_head_is_the_layer_that_makes_the_result():
    head = survey_of(Residual()).find_head()
    assert (head.module, head.side) == ("head", "input")


def test_no_head_when_the_result_is_worked_on_after_it():
    class Scaled(Residual):
        def forward(self, pixels):
            return super().forward(pixels) * 2

    assert survey_of(Scaled()).find_head() is None
    with pytest.raises(ValueError, match="'head' is not the linear layer"):
        survey_of(Scaled()).find_head("head")


def test_a_convolution_of_one_pixel_can_be_the_head():
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 4, 1), nn.Flatten())
    assert survey_of(module).find_head().module == "1"


def test_a_tap_is_taken_after_the_activation_that_follows():
    point = survey_of(Residual()).find_tap("first")
    assert (point.module, point.call) == ("relu", 0)


def test_a_tap_whose_result_is_changed_before_the_activation_is_taken_itself():
    module = Residual()
    assert survey_of(module).find_tap("second").module == "second"
    capture = Capture(module, {"second": survey_of(module).find_tap("second")})
    pixels = torch.randn(2, 3, 5, 5)
    with torch.no_grad():
        module(pixels)
        kept = capture.take()["second"]
        expected = module.second(torch.relu(module.first(pixels)))
    capture.close()
    assert torch.equal(kept, expected)


def test_a_submodule_called_twice_is_tapped_at_its_last_call():
    assert survey_of(Residual()).find_tap("relu").call == 1


def test_a_tap_that_does_not_exist_names_near_ones():
    with pytest.raises(ValueError, match=r"cannot tap 'frist': this submodule does not exist. Near names: .*first"):
        survey_of(Residual()).find_tap("frist")


def test_a_tap_that_forward_never_calls():
    module = Residual()
    module.unused = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="is never called"):
        survey_of(module).find_tap("unused")


def test_a_tap_named_twice_is_refused():
    with pytest.raises(ValueError, match="--tap block"):
        plan_graph(tiny_teacher.make(), ["block", "block"])


def test_hooks_do_not_stay():
    teacher = tiny_teacher.make()
    plan_graph(teacher, ["block"])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in teacher.module.modules())
