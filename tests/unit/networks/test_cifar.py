"""The networks for 32 x 32 images: shapes and sizes that distillation papers give, and what tells each family apart."""

import pytest
import torch
from torch import nn

from teacherfarm.networks.cifar import CIFAR_NETWORKS, make_cifar_network
from teacherfarm.networks.cifar_others import deal_out
from teacherfarm.networks.cifar_resnets import resnet, wide_resnet

RESNET_X4 = {"stem": (32, 32, 32), "layer1": (64, 32, 32), "layer2": (128, 16, 16), "layer3": (256, 8, 8)}
RESNET = {"stem": (16, 32, 32), "layer1": (16, 32, 32), "layer2": (32, 16, 16), "layer3": (64, 8, 8)}
DOUBLE = {"stem": (16, 32, 32), "layer1": (32, 32, 32), "layer2": (64, 16, 16), "layer3": (128, 8, 8)}
VGG = {
    "stem": (64, 32, 32),
    "layer1": (128, 16, 16),
    "layer2": (256, 8, 8),
    "layer3": (512, 4, 4),
    "layer4": (512, 4, 4),
}
# name, maps, numbers before the classifier
SHAPES = [
    ("resnet32x4", RESNET_X4, 256),
    ("resnet8x4", RESNET_X4, 256),
    ("resnet20", RESNET, 64),
    ("resnet110", RESNET, 64),
    ("resnet38x2", DOUBLE, 128),
    ("wrn_40_2", DOUBLE, 128),
    ("wrn_16_2", DOUBLE, 128),
    ("wrn_40_1", RESNET, 64),
    ("vgg13", VGG, 512),
    ("vgg8", VGG, 512),
    (
        "shufflenet_v2_x1_5",
        {"stem": (24, 32, 32), "layer1": (176, 16, 16), "layer2": (352, 8, 8), "layer3": (704, 4, 4)},
        1024,
    ),
    ("shufflenet_v2_x1_0", {"layer1": (116, 16, 16), "layer2": (232, 8, 8), "layer3": (464, 4, 4)}, 1024),
    (
        "mobilenet_v2_x0_5",
        {
            "stem": (16, 16, 16),
            "layer1": (12, 16, 16),
            "layer2": (16, 8, 8),
            "layer3": (48, 4, 4),
            "layer4": (160, 2, 2),
        },
        1280,
    ),
]


def maps_of(network, pixels):
    found = {}
    for name in ("stem", *network.stages):
        network.get_submodule(name).register_forward_hook(
            lambda _module, _taken, given, name=name: found.update({name: given})
        )
    with torch.no_grad():
        found["logits"] = network.eval()(pixels)
    return found


@pytest.mark.parametrize(("name", "shapes", "width"), SHAPES, ids=[row[0] for row in SHAPES])
def test_maps_have_the_papers_shapes(name, shapes, width):
    network = make_cifar_network(name, 100)
    found = maps_of(network, torch.randn(2, 3, 32, 32))
    assert {stage: tuple(found[stage].shape[1:]) for stage in shapes} == shapes
    assert network.classifier.in_features == width
    assert found["logits"].shape == (2, 100)
    if not name.startswith("mobilenet"):
        # Only MobileNetV2 ends its stages without an activation.
        assert all(found[stage].min() >= 0 for stage in network.stages)


@pytest.mark.parametrize(("depth", "widths"), [(20, (16, 16, 32, 64)), (8, (32, 64, 128, 256))])
def test_a_residual_network_has_as_many_layers_as_it_says(depth, widths):
    network = resnet(depth, widths, 10)
    outside_shortcuts = [
        module
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and "shortcut" not in name
    ]
    assert len(outside_shortcuts) == depth


def preactivated_by_the_paper(network, pixels):
    """A wide residual network from its formula: each block activates what it takes; one that changes the number of
    channels adds a convolution of the activated map, any other the map itself.
    """
    modules = [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear))]
    turn = iter(modules)

    def layer(kind, maps):
        module = next(turn)
        assert isinstance(module, kind)
        return module(maps)

    maps = layer(nn.Conv2d, pixels)
    blocks = [block for name in network.stages for block in network.get_submodule(name)[:-2]]
    for block in blocks:
        activated = layer(nn.BatchNorm2d, maps).relu()
        added = layer(nn.Conv2d, layer(nn.BatchNorm2d, layer(nn.Conv2d, activated)).relu())
        maps = added + (layer(nn.Conv2d, activated) if len(block.shortcut) else maps)
    return layer(nn.Linear, layer(nn.BatchNorm2d, maps).relu().mean((2, 3)))


@pytest.mark.parametrize("factor", [1, 2])
def test_a_wide_residual_network_is_the_papers_though_its_stages_end_activated(factor):
    torch.manual_seed(0)
    network = wide_resnet(16, factor, 10).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(pixels), preactivated_by_the_paper(network, pixels))


def test_channels_are_dealt_out_in_turn():
    first, second = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1), torch.tensor([10.0, 20.0]).view(1, 2, 1, 1)
    assert deal_out(first, second).flatten().tolist() == [1, 10, 2, 20]


def test_an_unknown_name_is_told_the_near_ones():
    with pytest.raises(ValueError, match=r"cifar:resnet8x5; .*resnet8x4"):
        make_cifar_network("resnet8x5", 10)


@pytest.mark.parametrize("make", [lambda: resnet(21, (16, 16, 32, 64), 10), lambda: wide_resnet(20, 2, 10)])
def test_a_depth_that_no_such_network_has_is_refused(make):
    with pytest.raises(ValueError, match=r"6 n \+ \d layers"):
        make()


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "wrn_16_2", "vgg8", "shufflenet_v2_x1_0", "mobilenet_v2_x0_5"])
def test_every_weight_learns(name):
    network = CIFAR_NETWORKS[name](3)
    network(torch.randn(2, 3, 32, 32)).logsumexp(1).sum().backward()
    assert [key for key, value in network.named_parameters() if value.grad is None] == []
