"""One export from end to end, with tiny teachers."""

import dataclasses
import hashlib
import os
import re
import signal
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from teacherfarm.export import Teacher, export_teacher, graph
from teacherfarm.export.triton_repository import config_pbtxt
from teacherfarm.protos.faults import GoldenMismatch
from teacherfarm.protos.teacher_card import TeacherCard
from tests import tiny_teacher

TINY = "tests.tiny_teacher:make"


def run_entry(entry, crops):
    session = onnxruntime.InferenceSession(entry / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"crops": crops}), strict=True))


def golden_of(entry):
    with np.load(entry / "golden.npz") as arrays:
        return dict(arrays)


def test_the_entry_is_whole_and_answers_as_pytorch(tiny_models):
    entry = tiny_models / "tiny"
    files = sorted(str(path.relative_to(entry)) for path in entry.rglob("*") if path.is_file())
    assert files == ["1/model.onnx", "card.json", "config.pbtxt", "golden.npz", "head.safetensors"]
    card = TeacherCard.from_json((entry / "card.json").read_bytes())
    golden = golden_of(entry)
    assert len(golden["crops"]) >= 12
    for size in (1, 2, 5, 8):
        answers = run_entry(entry, golden["crops"][:size])
        assert tuple(answers) == card.graph_outputs == ("log_probabilities", "logits", "embedding")
        assert [values.dtype for values in answers.values()] == [np.float16, np.float32, np.float32]
        assert (
            np.abs(np.exp(answers["log_probabilities"].astype(np.float32)) - golden["probabilities"][:size]).max()
            < 1e-3
        )
        assert np.abs(answers["embedding"] - golden["embedding"][:size]).max() < 1e-4
    head = load_file(entry / "head.safetensors")
    assert np.allclose(golden["embedding"] @ head["weight"].T + head["bias"], golden["logits"], atol=1e-4)


def test_the_card_says_what_was_exported(tiny_models):
    entry = tiny_models / "tiny"
    card = TeacherCard.from_json((entry / "card.json").read_bytes())
    assert card.artifact_digest == hashlib.sha256((entry / card.model_file).read_bytes()).hexdigest()
    assert card.teacher_digest == card.artifact_digest  # fp32 is served
    assert (card.num_classes, card.classes, card.activation, card.has_head) == (
        10,
        tiny_teacher.CLASSES,
        "softmax",
        True,
    )
    assert card.verification["num_photographs"] >= 8
    assert card.verification["fp32_max_dp_t1"] <= 1e-3
    assert card.verification["fp32_top1_agreement"] == 1.0
    assert (entry / "config.pbtxt").read_text() == config_pbtxt(card, "onnxruntime", 64)


def test_answers_do_not_depend_on_the_batch(tiny_models):
    golden = golden_of(tiny_models / "tiny")
    together = run_entry(tiny_models / "tiny", golden["crops"])["logits"]
    alone = [run_entry(tiny_models / "tiny", crop[None])["logits"][0] for crop in golden["crops"]]
    assert np.array_equal(together, np.stack(alone))


def test_the_same_teacher_has_the_same_digest_in_any_process(tiny_models, tmp_path):
    card = TeacherCard.from_json((tiny_models / "tiny" / "card.json").read_bytes())
    again = export_teacher(TINY, tmp_path)
    assert again.teacher_digest == card.teacher_digest
    code = (
        f"from pathlib import Path; from teacherfarm.export import export_teacher;print(export_teacher({TINY!r}, "
        f"Path({str(tmp_path)!r}), name='third').teacher_digest)"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == card.teacher_digest


def test_the_file_tells_nothing_of_the_machine_that_made_it(tiny_models):
    model = (tiny_models / "tiny" / "1" / "model.onnx").read_bytes()
    assert b"stack_trace" not in model
    assert b".py" not in model


def test_other_weights_or_statistics_have_another_digest(tiny_models, tmp_path):
    digest = TeacherCard.from_json((tiny_models / "tiny" / "card.json").read_bytes()).teacher_digest
    assert export_teacher("tests.tiny_teacher:make_other", tmp_path, name="weights").teacher_digest != digest
    assert export_teacher(TINY, tmp_path, name="mean", mean=(0.4, 0.4, 0.4)).teacher_digest != digest


def test_fp16_keeps_the_teacher_digest_and_the_output_types(tiny_models, tmp_path):
    fp32 = TeacherCard.from_json((tiny_models / "tiny" / "card.json").read_bytes())
    card = export_teacher(TINY, tmp_path, precision="fp16")
    assert card.teacher_digest == fp32.teacher_digest
    assert card.artifact_digest != fp32.artifact_digest
    assert card.precision == "fp16"
    assert card.verification["fp16_max_dp_t1"] <= 2e-2
    golden = golden_of(tmp_path / "tiny")
    answers = run_entry(tmp_path / "tiny", golden["crops"])
    assert [values.dtype for values in answers.values()] == [np.float16, np.float32, np.float32]
    assert not np.array_equal(answers["logits"], run_entry(tiny_models / "tiny", golden["crops"])["logits"])


@pytest.mark.parametrize("with_published_transform", [False, True])
def test_a_swapped_normalisation_in_the_graph_fails_the_export(tmp_path, monkeypatch, with_published_transform):
    teacher = tiny_teacher.make()
    if with_published_transform:

        def published(crops):
            fractions = torch.from_numpy(crops).permute(0, 3, 1, 2) / 255
            return (fractions - torch.tensor(teacher.mean)[:, None, None]) / torch.tensor(teacher.std)[:, None, None]

        teacher = dataclasses.replace(teacher, published_transform=published)
    assert export_teacher(teacher, tmp_path).name == "tiny"

    class Swapped(graph.TeacherGraph):
        def __init__(self, body, teacher, number_type):
            super().__init__(
                body, dataclasses.replace(teacher, mean=teacher.mean[::-1], std=teacher.std[::-1]), number_type
            )

    monkeypatch.setattr("teacherfarm.export.to_onnx.TeacherGraph", Swapped)
    out = tmp_path / "swapped"
    with pytest.raises(GoldenMismatch, match=r"(?s)DIFFERENT.*normalisation"):
        export_teacher(teacher, out)
    assert not out.exists()


def test_an_unsure_teacher_hides_nothing(tmp_path, monkeypatch):
    """With all probabilities alike, a wrong normalisation shows in the logits alone."""
    teacher = tiny_teacher.make()
    with torch.no_grad():
        teacher.module.head.weight.mul_(1e-4)
        teacher.module.head.bias.zero_()
    monkeypatch.setitem(graph.FULL_SCALE, "uint8", 254.0)
    with pytest.raises(GoldenMismatch, match="max value diff"):
        export_teacher(teacher, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_sigmoid_has_logits_only(tmp_path):
    card = export_teacher(TINY, tmp_path, activation="sigmoid")
    assert card.graph_outputs == ("logits", "embedding")
    golden = golden_of(tmp_path / "tiny")
    logits = run_entry(tmp_path / "tiny", golden["crops"])["logits"]
    assert np.abs(1 / (1 + np.exp(-logits)) - golden["probabilities"]).max() < 1e-3


def test_grey_digits_of_8_x_8(tmp_path):
    teacher = Teacher(
        module=tiny_teacher.tiny_net(channels=1),
        height=8,
        width=8,
        mean=(0.3,),
        std=(0.38,),
        channel_order="GRAY",
        interpolation="area",
        name="digits",
    )
    card = export_teacher(teacher, tmp_path)
    assert card.crop_format.shape == (8, 8, 1)
    assert card.channel_order == "GRAY"
    answers = run_entry(tmp_path / "digits", np.zeros((3, 8, 8, 1), np.uint8))
    with torch.no_grad():
        expected = teacher.module(torch.full((1, 1, 8, 8), -0.3 / 0.38)).numpy()
    assert np.abs(answers["logits"] - expected).max() < 1e-4


@pytest.mark.parametrize(("number_type", "top"), [("uint16", 65535), ("float32", 1.0)])
def test_other_number_types_mean_the_same_pixels(tiny_models, tmp_path, number_type, top):
    export_teacher(TINY, tmp_path, input_type=number_type)
    assert golden_of(tmp_path / "tiny")["crops"].dtype == number_type
    bright = run_entry(tmp_path / "tiny", np.full((2, 32, 32, 3), top, number_type))["logits"]
    same = run_entry(tiny_models / "tiny", np.full((2, 32, 32, 3), 255, np.uint8))["logits"]
    assert np.abs(bright - same).max() < 1e-3


def test_taps_are_outputs_named_by_their_module(tmp_path):
    card = export_teacher(TINY, tmp_path, taps=["norm", "block.0"])
    assert card.graph_outputs == ("log_probabilities", "logits", "embedding", "norm", "block.0")
    assert [(tap.layout, tap.shape, tap.module) for tap in card.features[1:]] == [
        ("map", (8, 16, 16), "act"),
        ("map", (16, 8, 8), "block.1"),
    ]
    assert run_entry(tmp_path / "tiny", np.zeros((2, 32, 32, 3), np.uint8))["norm"].min() >= 0


def test_tokens_of_a_vision_transformer(tmp_path):
    card = export_teacher(
        "timm:test_vit", tmp_path, random_weights=True, size=(32, 32), taps=["blocks.0", "patch_embed"]
    )
    tokens, patches = card.feature("blocks.0"), card.feature("patch_embed")
    assert (tokens.layout, tokens.shape, tokens.num_prefix_tokens, tokens.grid) == ("tokens", (5, 64), 1, (2, 2))
    assert (patches.layout, patches.shape) == ("map", (64, 2, 2))
    answers = run_entry(tmp_path / card.name, np.zeros((3, 32, 32, 3), np.uint8))
    assert answers["blocks.0"].shape == (3, 5, 64)
    assert answers["patch_embed"].shape == (3, 64, 2, 2)


def test_a_teacher_without_classes_returns_its_embedding(tmp_path):
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.maps = nn.Conv2d(3, 6, 4, stride=4)

        def forward(self, pixels):
            return self.maps(pixels)

    torch.manual_seed(0)
    statistics = {"height": 16, "width": 16, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    card = export_teacher(Teacher(module=Encoder(), activation="none", name="encoder", **statistics), tmp_path)
    assert (card.num_classes, card.graph_outputs, card.has_head) == (0, ("embedding",), False)
    assert (card.features[0].layout, card.features[0].shape) == ("map", (6, 4, 4))
    golden = golden_of(tmp_path / "encoder")
    assert sorted(golden) == ["crops", "embedding"]
    assert np.abs(run_entry(tmp_path / "encoder", golden["crops"])["embedding"] - golden["embedding"]).max() < 1e-4


@pytest.mark.parametrize("size_of", [len, lambda pixels: int(pixels.shape[0])])
def test_a_module_whose_batch_size_was_fixed_in_silence_is_refused_with_advice(tmp_path, size_of):
    class Fixed(nn.Module):
        def forward(self, pixels):
            return pixels.reshape(size_of(pixels), 3, -1).mean(dim=2)

    statistics = {"height": 8, "width": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    with pytest.raises(ValueError, match=r"forward\(\) fixes the batch size.*write x.shape\[0\] or -1 instead"):
        export_teacher(Teacher(module=Fixed(), name="fixed", **statistics), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_module_that_fixes_its_batch_size_is_refused(tmp_path):
    class Fixed(nn.Module):
        def forward(self, pixels):
            return pixels.mean(dim=(2, 3)).repeat(1, 4) * len(pixels[:2].tolist())

    statistics = {"height": 8, "width": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    with pytest.raises(ValueError, match="free batch size"):
        export_teacher(Teacher(module=Fixed(), name="fixed", **statistics), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_that_ends_in_softmax_is_refused(tmp_path):
    teacher = dataclasses.replace(
        tiny_teacher.make(), module=nn.Sequential(tiny_teacher.tiny_net(), nn.Softmax(dim=1)).eval()
    )
    with pytest.raises(ValueError, match="already ends in softmax"):
        export_teacher(teacher, tmp_path)


def test_an_existing_entry_stays_unless_forced(tmp_path):
    first = export_teacher(TINY, tmp_path)
    with pytest.raises(FileExistsError, match="--force"):
        export_teacher("tests.tiny_teacher:make_other", tmp_path, name="tiny")
    assert TeacherCard.from_json((tmp_path / "tiny" / "card.json").read_bytes()) == first
    second = export_teacher("tests.tiny_teacher:make_other", tmp_path, name="tiny", force=True)
    assert second.teacher_digest != first.teacher_digest
    assert TeacherCard.from_json((tmp_path / "tiny" / "card.json").read_bytes()) == second
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_killed_export_leaves_nothing_that_looks_whole(tmp_path):
    """Killed with -9 when every file is written and only the rename is left."""
    code = (
        "import os, signal; from pathlib import Path; from teacherfarm.export import export_teacher, "
        "triton_repository;triton_repository._sync = lambda path: os.kill(os.getpid(), "
        f"signal.SIGKILL);export_teacher({TINY!r}, Path({str(tmp_path)!r}))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert re.fullmatch(r"\.tiny\.partial-\d+", left.name)
    assert (left / "card.json").exists()
    export_teacher(TINY, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_own_photographs_verify_it(tmp_path):
    from PIL import Image

    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (50, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photographs / f"{number}.png")
    printed = []
    export_teacher(TINY, tmp_path / "models", images=photographs, progress=printed.append)
    assert f"crops of 3 photographs ({photographs})" in "".join(printed)


def test_without_photographs_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("teacherfarm.export.probes.installed_photographs", list)
    printed = []
    card = export_teacher(TINY, tmp_path, progress=printed.append)
    assert "12 synthetic patterns (no photographs)" in "".join(printed)
    assert card.verification["num_photographs"] == 0
    assert len(golden_of(tmp_path / "tiny")["crops"]) == 16


def test_a_classifier_is_exported_only_where_it_makes_the_logits(tmp_path):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tiny_teacher.tiny_net()

        def forward(self, pixels):
            return self.net(pixels) * 2

    teacher = tiny_teacher.make()
    card = export_teacher(dataclasses.replace(teacher, module=Scaled().eval()), tmp_path, name="scaled")
    assert (card.has_head, card.head_digest) == (False, "")
    assert card.headless.startswith("its logits are not what a linear layer gives")
    assert not (tmp_path / "scaled" / "head.safetensors").exists()
    # The map before pooling is an embedding of its own choosing: its classifier takes another.
    card = export_teacher(dataclasses.replace(teacher, embedding="block"), tmp_path, name="inner")
    assert card.headless == "its last layer 'head' does not make the logits of its embedding"
    card = export_teacher(dataclasses.replace(teacher, activation="none"), tmp_path, name="none")
    assert card.headless == "it has no classes"


def test_the_card_has_the_digest_of_the_classifier(tiny_models):
    card = TeacherCard.from_json((tiny_models / "tiny" / "card.json").read_bytes())
    digest = hashlib.sha256((tiny_models / "tiny" / "head.safetensors").read_bytes()).hexdigest()
    assert (card.head_digest, card.headless) == (digest, "")


def test_a_feature_beyond_float16_is_told(tmp_path):
    teacher = tiny_teacher.make()
    with torch.no_grad():
        teacher.module.stem.weight.mul_(1e6)
    printed = []
    export_teacher(teacher, tmp_path, taps=["act"], progress=printed.append)
    assert re.search(r"note: .*act \(up to .*feature_type='int8'", "".join(printed))
