"""Which modules end a network's stages."""

import torch
import torchvision
from torch import nn

from teacherfarm.networks.cifar import make_cifar_network
from teacherfarm.networks.stages import find_stages


def test_a_residual_networks_layers_are_its_stages():
    model = torchvision.models.resnet18(weights=None, num_classes=5).train()
    assert find_stages(model, 64, 64) == ("layer1", "layer2", "layer3", "layer4")
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_the_last_block_of_each_size_ends_a_stage_and_the_stem_is_none():
    model = torchvision.models.mobilenet_v2(weights=None)
    assert find_stages(model, 64, 64) == ("features.3", "features.6", "features.13", "features")


def test_a_network_for_small_images_says_its_stages_itself():
    assert find_stages(make_cifar_network("vgg8", 10), 32, 32) == ("layer1", "layer2", "layer3", "layer4")


def test_tokens_are_no_stages():
    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, 8, 8, 8)
            self.blocks = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
            self.head = nn.Linear(8, 2)

        def forward(self, pixels):
            return self.head(self.blocks(self.patches(pixels).flatten(2).mT).mean(1))

    model = Patches()
    assert find_stages(model, 32, 32) == ()
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 2)


def test_a_map_inside_a_block_that_shrinks_it_ends_no_stage():
    class Down(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.halved = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 2, 2)

        def forward(self, maps):
            return self.halved(self.wide(maps))

    model = nn.Sequential(nn.Conv2d(3, 4, 4, 4), Down(), Down(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert find_stages(model, 32, 32) == ("0", "1", "2")
