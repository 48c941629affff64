"""The command's own promises: light, one line per error, a status that says whose fault it was."""

import subprocess
import sys
import types
import warnings

import pytest

from teacherfarm import cli
from teacherfarm.protos.faults import DigestMismatch, WrongCropSize


@pytest.fixture
def raising(monkeypatch):
    """Makes the sub-command ``serve`` raise what it is given."""

    def install(error, *, when="main"):
        def fail(_):
            raise error

        module = types.SimpleNamespace(add_arguments=lambda _: None, main=lambda _: 0)
        setattr(module, when, fail)
        monkeypatch.setattr(cli, "load", lambda _: module)

    monkeypatch.delenv("TEACHERFARM_DEBUG", raising=False)
    return install


def one_line(captured):
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


def test_help_loads_no_library_and_no_sub_command():
    program = (
        "import sys\nfrom teacherfarm import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)\n"
        "print(*(name for name in sys.modules if name.startswith('teacherfarm.')), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    libraries, ours = done.stderr.splitlines()
    assert not {"numpy", "google", "torch", "onnx", "grpc", "zmq", "PIL"} & set(libraries.split())
    assert set(ours.split()) == {"teacherfarm.cli", "teacherfarm.protos", "teacherfarm.protos.faults"}


def test_help_names_every_command_and_says_what_to_do_first(capsys):
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    assert all(f"\n    {command.name} " in text for command in cli.COMMANDS)
    assert "teacherfarm export efficientnet-lite0 --out models/" in text
    assert "teacherfarm demo" in text


def test_the_examples_of_the_help_are_right():
    lines = [line.split() for line in cli.EPILOG.splitlines() if line.startswith("  teacherfarm ")]
    assert [words[1] for words in lines] == ["export", "serve", "distill"]
    for words in lines:
        assert cli.make_parser(words[1]).parse_args(words[1:]).command == words[1]


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: command.name)
def test_every_command_has_help_of_its_own(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([command.name, "--help"])
    assert f"usage: teacherfarm {command.name} " in capsys.readouterr().out


def test_a_fault_is_one_line_with_its_class(raising, capsys):
    raising(DigestMismatch("another teacher is served"))
    assert cli.main(["serve"]) == 1
    assert one_line(capsys.readouterr()) == "teacherfarm serve: DigestMismatch: another teacher is served"


def test_a_fault_that_is_also_a_value_error_keeps_its_class(raising, capsys):
    raising(WrongCropSize("8 x 8"))
    assert cli.main(["serve"]) == 1
    assert one_line(capsys.readouterr()) == "teacherfarm serve: WrongCropSize: 8 x 8"


def test_wrong_arguments_are_status_2(raising, capsys):
    raising(ValueError("--window must be at least 1, got 0"))
    assert cli.main(["serve"]) == 2
    assert one_line(capsys.readouterr()) == "teacherfarm serve: --window must be at least 1, got 0"


@pytest.mark.parametrize("when", ["add_arguments", "main"])
def test_an_absent_extra_gets_the_command_that_installs_it(raising, capsys, when):
    raising(ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime"), when=when)
    assert cli.main(["serve"]) == 1
    line = one_line(capsys.readouterr())
    assert "'onnxruntime'" in line
    assert "pip install 'teacherfarm[server]'" in line


def test_our_own_missing_module_is_not_blamed_on_the_user(raising):
    raising(ModuleNotFoundError("No module named 'teacherfarm.student.lost'", name="teacherfarm.student.lost"))
    with pytest.raises(ModuleNotFoundError):
        cli.main(["serve"])


def test_a_warning_is_one_line(monkeypatch, capsys):
    def main(_):
        print(warnings.formatwarning("few views", UserWarning, "ours.py", 7, "dataset = ..."), end="")
        return 0

    former = warnings.formatwarning
    module = types.SimpleNamespace(add_arguments=lambda _: None, main=main)
    monkeypatch.setattr(cli, "load", lambda _: module)
    monkeypatch.delenv("TEACHERFARM_DEBUG", raising=False)
    assert cli.main(["serve"]) == 0
    assert capsys.readouterr().out == "warning: few views\n"
    assert warnings.formatwarning is former
    assert cli.main(["serve", "--debug"]) == 0
    assert "ours.py:7: UserWarning: few views" in capsys.readouterr().out


def test_what_is_not_foreseen_keeps_its_traceback(raising):
    raising(ZeroDivisionError("a mistake of ours"))
    with pytest.raises(ZeroDivisionError):
        cli.main(["serve"])


@pytest.mark.parametrize("arguments", [["--debug", "serve"], ["serve", "--debug"]])
def test_debug_shows_the_traceback(raising, arguments):
    raising(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        cli.main(arguments)


def test_debug_by_the_environment(raising, monkeypatch):
    raising(ValueError("no"))
    monkeypatch.setenv("TEACHERFARM_DEBUG", "1")
    with pytest.raises(ValueError, match="no"):
        cli.main(["serve"])


def test_an_interrupt_is_no_traceback(raising, capsys):
    raising(KeyboardInterrupt())
    assert cli.main(["serve"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_every_command_names_an_extra_that_there_is():
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]
    assert {command.extra for command in cli.COMMANDS} <= project["optional-dependencies"].keys()
