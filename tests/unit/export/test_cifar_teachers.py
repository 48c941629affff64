"""Networks for 32 x 32 images as teachers: their weights are a file's, their classes as many as it has."""

import pytest
import torch

from teacherfarm.export.teachers import WeightsChoice, load_teacher
from teacherfarm.networks.cifar import make_cifar_network


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(1)
    network = make_cifar_network("resnet8", 7).eval()
    torch.save(network.state_dict(), tmp_path / "student.pt")
    return network, tmp_path / "student.pt"


def test_a_finished_student_becomes_a_teacher(weights):
    network, file = weights
    teacher = load_teacher("cifar:resnet8", weights=WeightsChoice(file=file))
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(teacher.module(pixels), network(pixels))
    assert (teacher.height, teacher.width, teacher.name, teacher.head) == (32, 32, "resnet8", "classifier")
    assert teacher.weights_source == "student.pt"


def test_an_architecture_without_weights_is_refused():
    with pytest.raises(ValueError, match="names an architecture, not its weights"):
        load_teacher("cifar:resnet8", weights=WeightsChoice())
    with pytest.raises(ValueError, match="nobody publishes weights of cifar:resnet8"):
        load_teacher("cifar:resnet8", weights=WeightsChoice(pretrained=True))


def test_weights_of_another_network_are_refused(weights):
    with pytest.raises(ValueError, match="do not fit"):
        load_teacher("cifar:resnet14", weights=WeightsChoice(file=weights[1]))
