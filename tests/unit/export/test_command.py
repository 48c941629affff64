"""``teacherfarm export`` as a user types it."""

import argparse
import subprocess
import sys

import pytest

from teacherfarm.export.command import add_arguments, main, read_classes
from teacherfarm.protos.teacher_card import TeacherCard


def parse(*words):
    parser = argparse.ArgumentParser(prog="teacherfarm export")
    add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def test_every_choice_reaches_the_card(tmp_path, capsys):
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(f"class {number}" for number in range(10)) + "\n")
    given = (
        *("tests.tiny_teacher:make_bare", "--out", tmp_path, "--name", "mine", "--size", 40, 48, "--tap", "block"),
        *("--mean", 0.4, 0.5, 0.6, "--std", 0.2, 0.2, 0.3, "--channel-order", "BGR", "--input-type", "uint16"),
        *("--interpolation", "area", "--crop-scale", 0.3, 0.9, "--activation", "sigmoid", "--classes", classes),
        *("--licence", "MIT", "--opset", 19, "--max-batch", 16, "--triton-backend", "python"),
    )
    assert main(parse(*given)) == 0
    card = TeacherCard.from_json((tmp_path / "mine" / "card.json").read_bytes())
    assert card.crop_format.describe() == "uint16 [N, 40, 48, 3]"
    assert (card.mean, card.std, card.channel_order) == ((0.4, 0.5, 0.6), (0.2, 0.2, 0.3), "BGR")
    assert (card.rendering.interpolation, card.crop_scale, card.activation) == ("area", (0.3, 0.9), "sigmoid")
    assert (card.classes[9], card.licence, card.opset) == ("class 9", "MIT", 19)
    assert [feature.name for feature in card.features] == ["embedding", "block"]
    assert "max_batch_size: 16" in (tmp_path / "mine" / "config.pbtxt").read_text()
    assert (tmp_path / "mine" / "1" / "model.py").exists()
    printed = capsys.readouterr().out
    assert "equal (within 0.001, 0.001)" in printed
    assert f"next: teacherfarm serve {tmp_path}" in printed.splitlines()[-1]


def test_a_mismatch_exits_with_1_and_prints_the_comparison(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules["teacherfarm.export.graph"].FULL_SCALE, "uint8", 200.0)
    assert main(parse("tests.tiny_teacher:make", "--out", tmp_path / "models")) == 1
    assert "DIFFERENT" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


def test_a_wrong_argument_exits_with_2_and_says_what_to_do(tmp_path, capsys):
    assert main(parse("torchvision:resnet18", "--out", tmp_path)) == 2
    assert "--weights FILE" in capsys.readouterr().err


def test_an_entry_that_is_there_is_refused_or_left_as_it_is(tmp_path, capsys):
    source = ("tests.tiny_teacher:make", "--out", tmp_path)
    assert main(parse(*source, "--if-missing")) == 0
    written = (tmp_path / "tiny" / "card.json").stat().st_mtime_ns
    assert main(parse(*source)) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(parse(*source, "--if-missing")) == 0
    assert "stays as it is" in capsys.readouterr().out
    assert (tmp_path / "tiny" / "card.json").stat().st_mtime_ns == written


def test_a_library_that_is_not_installed_is_named_with_its_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(parse("tests.tiny_teacher:make", "--out", tmp_path / "models")) == 2
    assert 'onnxruntime is not installed; pip install "teacherfarm[export]"' in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


def test_an_unreadable_photograph_is_named(tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert main(parse("tests.tiny_teacher:make", "--out", tmp_path / "models", "--images", tmp_path)) == 2
    assert f"{tmp_path / 'broken.png'} cannot be read as an image" in capsys.readouterr().err


def test_the_help_shows_examples(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    shown = capsys.readouterr().out
    assert "teacherfarm export efficientnet-lite0 --out models/" in shown
    assert "package.module:function" in shown


def test_the_command_line_loads_no_heavy_library():
    code = (
        "import sys, teacherfarm.export.command as c, argparse; c.add_arguments(argparse.ArgumentParser());"
        "print([name for name in ('torch', 'onnxruntime', 'timm', 'torchvision', 'PIL') if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


@pytest.mark.parametrize(("content", "complaint"), [("\n \n", "no names in it"), (None, "cannot be read")])
def test_class_files_that_name_nothing(tmp_path, content, complaint):
    file = tmp_path / "classes.txt"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=complaint):
        read_classes(file)


ENSEMBLE = ("tests.tiny_teacher:make", "tests.tiny_teacher:make_other", "--ensemble")


def test_several_sources_become_one_ensemble(tmp_path):
    given = (*ENSEMBLE, "--ensemble-temperature", 2, "--name", "both", "--weights", "-", "--weights", "-")
    assert main(parse(*given, "--out", tmp_path)) == 0
    card = TeacherCard.from_json((tmp_path / "both" / "card.json").read_bytes())
    assert [member.source for member in card.members] == ["tests.tiny_teacher:make", "tests.tiny_teacher:make_other"]
    assert card.fixed_temperature == 2.0


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (ENSEMBLE[:2], "2 sources: one teacher has one; several become one by --ensemble"),
        (ENSEMBLE[1:], "two teachers or more, got 1"),
        (ENSEMBLE, "give --name"),
        ((*ENSEMBLE, "--name", "e", "--weights", "-"), "1 --weights for 2 teachers: give one for each"),
        (("torchvision:resnet18", "timm:resnet18", "--ensemble", "--name", "e"), "--weights FILE"),
        ((ENSEMBLE[0], "--ensemble-temperature", 2), "can be used at any temperature"),
        ((ENSEMBLE[0], "--weights", "a", "--weights", "b"), "2 --weights for one teacher"),
    ],
)
def test_an_ensemble_that_is_not_one_is_refused(tmp_path, capsys, words, complaint):
    assert main(parse(*words, "--out", tmp_path / "models")) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "models").exists()
