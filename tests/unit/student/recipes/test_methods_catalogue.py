"""``teacherfarm methods``: bytes a crop as METHODS' cheat-sheet has them, and words about each."""

import pytest

from teacherfarm import cli
from teacherfarm.student.methods.registry import METHODS, find_method
from teacherfarm.student.recipes.methods_catalogue import describe, table, typical_pairs

# Float16: logits of 1000 and 100 classes, pooled embeddings, maps; a top-5 label is 5 classes and 5 probabilities.
BYTES = {
    "kd": (2000, 200),
    "fkd": (20, 20),
    "ferkd": (20, 20),
    "dkd": (2000, 200),
    "dist": (2000, 200),
    "funmatch": (2000, 200),
    "sigmoid-kd": (2000, 200),
    "meal-v2": (4000, 400),
    "fitnet": (1_605_632 + 2000, 131_072 + 200),
    "at": (8330 + 2000, 2688 + 200),
    "sp": (200_704 + 2000, 32_768 + 200),
    "vid": (3_010_560 + 2000, 229_376 + 200),
    "semckd": (3_010_560 + 2000, 229_376 + 200),
    "crd": (4096 + 2000, 512 + 200),
    "srrl": (4096 + 2000, 512 + 200),
    "simkd": (200_704, 32_768),
    "embedding": (4096, 512),
}


@pytest.mark.parametrize("name", BYTES)
def test_bytes_are_the_papers_shapes(name):
    for pair, due in zip(typical_pairs(), BYTES[name], strict=True):
        phases = pair.asks(find_method(name))
        assert [pair.bytes_per_crop(phase) for phase in phases] == [due], pair.title


def test_stages_are_listed_one_by_one():
    imagenet, cifar = typical_pairs()
    of = lambda pair: [pair.bytes_per_crop(phase) for phase in pair.asks(find_method("sskd"))]  # noqa: E731
    assert of(imagenet) == [1_605_632, 802_816, 401_408, 200_704, 0]
    assert of(cifar) == [131_072, 65_536, 32_768, 0]


def test_every_method_has_a_line_and_a_page():
    pairs = typical_pairs()
    lines = table([find_method(name) for name in METHODS], pairs).splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(METHODS)]] == list(METHODS)
    assert all(len(line) <= 130 for line in lines)
    assert "(ImageNet: ResNet-50 for ResNet-18; CIFAR-100: ResNet-32x4 for ResNet-8x4)" in lines[-2]
    for name in METHODS:
        page = describe(find_method(name), pairs)
        assert page.startswith(f"{name}: ")
        assert all(len(line) <= 120 for line in page.splitlines()), name


def test_a_page_says_what_there_is_to_know(capsys):
    assert cli.main(["methods", "simkd"]) == 0
    said = capsys.readouterr().out
    assert "ImageNet: 200704 bytes a crop (layer4); besides: the teacher's classifier, once" in said
    assert "--factor" in said
    assert "presets: simkd-cifar100, simkd-imagenet" in said
    assert cli.main(["methods", "crd"]) == 0
    said = capsys.readouterr().out
    assert "  --crd-seed " in said, "--seed is distill's own"
    assert "  --seed " not in said
    assert cli.main(["methods", "simdk"]) == 2
    assert "did you mean 'simkd'" in capsys.readouterr().err
