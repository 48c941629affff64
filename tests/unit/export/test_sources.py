"""Where teachers come from, and their weights."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from teacherfarm.export.teachers import Teacher, WeightsChoice, load_teacher
from teacherfarm.export.verify import reference_pixels
from teacherfarm.export.weights import load_weights
from tests import tiny_teacher

NONE = WeightsChoice()
RANDOM = WeightsChoice(random=True)


def test_unknown_source_names_what_is_known():
    with pytest.raises(ValueError, match=r"unknown source 'resnet'.*efficientnet-lite0.*torchvision:NAME.*timm:NAME"):
        load_teacher("resnet", weights=NONE)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("torchvision:resnet999", r"torchvision has no classifier 'resnet999'. Known: alexnet"),
        ("timm:vit_nowhere", r"timm has no model 'vit_nowhere'. Some that it has: vit_"),
        ("nowhere.module:make", r"no module 'nowhere'"),
        ("tests.nowhere:make", r"no module 'tests.nowhere'"),
        ("tests.tiny_teacher:absent", r"'tests.tiny_teacher' has no 'absent'"),
        ("os:getcwd", r"returned str, not a torch.nn.Module or a Teacher"),
    ],
)
def test_a_source_that_is_not_there(source, complaint):
    with pytest.raises(ValueError, match=complaint):
        load_teacher(source, weights=RANDOM)


@pytest.mark.parametrize("source", ["torchvision:resnet18", "timm:resnet18"])
def test_an_architecture_without_weights_is_refused(source):
    with pytest.raises(ValueError, match=r"--weights FILE.*--pretrained.*--random-weights"):
        load_teacher(source, weights=NONE)


def test_two_kinds_of_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match="choose one"):
        WeightsChoice(file=tmp_path / "weights.pth", pretrained=True)


def test_ready_by_name_brings_its_weights():
    with pytest.raises(ValueError, match="brings its own weights"):
        load_teacher("efficientnet-lite0", weights=RANDOM)


def test_efficientnet_lite_is_fed_as_published():
    teacher = load_teacher("efficientnet-lite0", weights=NONE)
    assert (teacher.height, teacher.width, teacher.licence) == (224, 224, "Apache-2.0")
    assert teacher.classes[207] == "golden retriever"
    crops = np.arange(224 * 224 * 3, dtype=np.int64).astype(np.uint8).reshape(1, 224, 224, 3)
    pixels = reference_pixels(teacher, crops, "uint8")
    assert torch.equal(pixels, torch.from_numpy((crops.transpose(0, 3, 1, 2).astype(np.float32) - 127) / 128))
    assert not teacher.module.training


def test_torchvision_is_fed_as_published():
    teacher = load_teacher("torchvision:resnet18", weights=RANDOM)
    assert (teacher.mean, teacher.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (teacher.interpolation, teacher.center_crop_fraction, len(teacher.classes)) == ("bilinear", 0.875, 1000)
    crops = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    by_publisher = teacher.published_transform(crops)
    by_hand = (crops / 255 - np.array(teacher.mean)) / np.array(teacher.std)
    assert np.abs(by_publisher.numpy() - by_hand.transpose(0, 3, 1, 2)).max() < 1e-5


def test_timm_is_fed_as_its_pretrained_tag_says():
    teacher = load_teacher("timm:test_vit", weights=RANDOM)
    assert (teacher.mean, teacher.interpolation, teacher.height) == ((0.5, 0.5, 0.5), "bicubic", 160)
    assert (teacher.num_prefix_tokens, teacher.grid) == (1, (10, 10))
    crops = np.random.default_rng(0).integers(0, 256, (2, 160, 160, 3), dtype=np.uint8)
    by_publisher = teacher.published_transform(crops)
    assert np.abs(by_publisher.numpy() - (crops.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.5).max() < 1e-5


def test_a_bare_module_needs_to_be_told_how_it_is_fed():
    with pytest.raises(ValueError, match=r"--size H W.*absent: height, width, mean, std"):
        load_teacher("tests.tiny_teacher:make_bare", weights=NONE)
    fed = {"height": 32, "width": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    assert (
        load_teacher("tests.tiny_teacher:make_bare", weights=NONE, missing=fed).source == "tests.tiny_teacher:make_bare"
    )


def test_classes_size_the_head_of_a_published_architecture():
    teacher = load_teacher("torchvision:resnet18", weights=RANDOM, num_classes=7)
    assert teacher.module.fc.out_features == 7
    assert teacher.classes == ()


@pytest.mark.parametrize("values", [(0.5, 0.5), (127.0, 127.0, 127.0)])
def test_statistics_that_cannot_be_meant(values):
    with pytest.raises(ValueError, match="mean"):
        Teacher(module=tiny_teacher.tiny_net(), height=8, width=8, mean=values, std=(0.5,) * 3)


@pytest.mark.parametrize("kind", ["safetensors", "pth", "wrapped"])
def test_weights_from_a_file(tmp_path, kind):
    wanted = tiny_teacher.tiny_net(seed=9).state_dict()
    file = tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        save_file(wanted, file)
    else:
        torch.save(
            {"state_dict": {f"module.{name}": v for name, v in wanted.items()}} if kind == "wrapped" else wanted, file
        )
    teacher = load_teacher("tests.tiny_teacher:make", weights=WeightsChoice(file=file))
    assert teacher.weights_source == file.name
    for name, value in teacher.module.state_dict().items():
        assert torch.equal(value, wanted[name])


def test_weights_that_do_not_fit_are_listed(tmp_path):
    tensors = tiny_teacher.tiny_net().state_dict()
    del tensors["head.bias"]
    tensors["extra.weight"] = torch.zeros(1)
    tensors["head.weight"] = torch.zeros(7, 16)
    save_file(tensors, tmp_path / "weights.safetensors")
    with pytest.raises(
        ValueError, match=r"missing: head.bias; 1 unexpected: extra.weight; 1 of another shape: head.weight \[7"
    ):
        load_weights(tiny_teacher.tiny_net(), tmp_path / "weights.safetensors")


@pytest.mark.parametrize(("taken", "added"), [("head.bias", None), (None, "extra.weight")])
def test_one_key_too_few_or_too_many_is_enough(tmp_path, taken, added):
    tensors = tiny_teacher.tiny_net().state_dict()
    tensors.pop(taken, None)
    save_file(tensors if added is None else tensors | {added: torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=str(taken or added)):
        load_weights(tiny_teacher.tiny_net(), tmp_path / "weights.safetensors")


def test_weights_with_code_inside_are_not_run(tmp_path):
    torch.save(tiny_teacher.tiny_net(), tmp_path / "whole.pth")
    with pytest.raises(ValueError, match="pickled modules are not loaded because they run code"):
        load_weights(tiny_teacher.tiny_net(), tmp_path / "whole.pth")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("absent.pth", "there is no weight file"), ("cut.safetensors", "not a whole"), ("bad.pth", "plain state dict")],
)
def test_weight_files_that_cannot_be_read(tmp_path, name, complaint):
    (tmp_path / "cut.safetensors").write_bytes(b"\x20\0\0\0\0\0\0\0{")
    (tmp_path / "bad.pth").write_bytes(b"")  # what torch.load raises for this has no words
    with pytest.raises(ValueError, match=complaint):
        load_weights(tiny_teacher.tiny_net(), tmp_path / name)


@pytest.mark.parametrize("source", ["torchvision:resnet18", "timm:test_vit"])
def test_published_weights_that_do_not_come(source, monkeypatch):
    def refuse(*_arguments, **_keywords):
        raise OSError("the network is down")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(ValueError, match=r"the network is down.*--weights FILE"):
        load_teacher(source, weights=WeightsChoice(pretrained=True))


def test_the_callers_module_stays_trainable():
    mine = tiny_teacher.make()
    mine.module.train()
    taken = load_teacher(mine, weights=NONE)
    assert mine.module.training
    assert all(parameter.requires_grad for parameter in mine.module.parameters())
    assert not any(parameter.requires_grad for parameter in taken.module.parameters())
