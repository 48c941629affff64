"""Options from files: presets, --config, and the config.yaml that a run leaves behind."""

import argparse
import dataclasses

import pytest
import yaml

from teacherfarm import cli
from teacherfarm.student.methods.registry import METHODS, find_method
from teacherfarm.student.recipes.distill_command import add_arguments
from teacherfarm.student.recipes.method_options import PREFIX, given_settings, make_settings
from teacherfarm.student.recipes.passes import LearningRate
from teacherfarm.student.recipes.phase_training import learning_rate
from teacherfarm.student.recipes.run_config import (
    PRESETS,
    look_ahead,
    preset_names,
    read_config,
    read_preset,
    write_config,
)

NEEDED = ["DATA", "--out", "OUT", "--student", "torchvision:resnet18"]


def parsed(*arguments):
    given = list(map(str, arguments))
    parser = argparse.ArgumentParser(prog="teacherfarm distill")
    add_arguments(parser, given)
    return parser.parse_args(given)


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_a_whole_recipe(name):
    options = parsed(*NEEDED, "--preset", name)
    assert options.method == read_preset(name).method
    settings = make_settings(find_method(options.method), given_settings(options))
    for key, value in read_preset(name).settings.items():
        assert getattr(settings, key) == value
    rate = learning_rate(options, options.epochs)
    assert rate.at(options.epochs - 0.01) < rate.at(options.warmup_epochs)
    assert read_preset(name).options.keys() >= {"epochs", "batch-size", "optimizer", "lr", "weight-decay"}
    text = (PRESETS / f"{name}.yaml").read_text()
    assert "arXiv " in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_the_papers_schedules_are_what_they_say():
    simkd = parsed(*NEEDED, "--preset", "simkd-cifar100")
    assert (simkd.epochs, simkd.batch_size, simkd.weight_decay, simkd.lr) == (240, 64, 5e-4, 0.05)
    assert learning_rate(simkd, 240) == LearningRate(
        peak=0.05, epochs=240, schedule="steps", steps=(150, 180, 210), factor=0.1
    )
    fkd = parsed(*NEEDED, "--preset", "fkd-imagenet")
    assert (fkd.crops_per_image, fkd.epochs, fkd.lr_schedule, fkd.lr_per) == (4, 300, "cosine", "pass")


def test_what_is_typed_counts_more_than_a_file_and_a_file_more_than_a_preset(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "lr: 0.02\nepochs: 7\nsettings: {factor: 8}\nema: 1e-3\nteacher-taps: [layer3]\nhard-fallback: true\n"
    )
    options = parsed(*NEEDED, "--preset", "simkd-cifar100", "--config", file, "--epochs", 9)
    assert (options.epochs, options.lr, options.batch_size, options.ema) == (9, 0.02, 64, 0.001)
    assert (options.teacher_taps, options.hard_fallback) == (["layer3"], True)
    assert given_settings(options) == {"factor": 8}
    other = parsed(*NEEDED, "--preset", "simkd-cifar100", "--method", "kd", "--temperature", 2)
    # Another method's settings are none of this one's; the schedule stays.
    assert (other.method, given_settings(other), other.epochs) == ("kd", {"temperature": 2.0}, 240)


def test_a_run_is_described_whole_but_for_secrets(tmp_path):
    options = parsed(*NEEDED, "--method", "simkd", "--factor", 4, "--lr", 3e-5, "--api-key", "tf_secret", "--resume",
                     "--lr-schedule", "steps", "--lr-steps", 2, 3.5, "--student-taps", "a.b", "c")  # fmt: skip
    settings = make_settings(find_method("simkd"), given_settings(options))
    path = tmp_path / "config.yaml"
    text = write_config(path, options, "simkd", dataclasses.asdict(settings), PREFIX)
    assert text == path.read_text()
    assert "secret" not in text
    assert yaml.safe_load(text)["settings"]["factor"] == 4
    again = parsed("--config", path)
    for name, value in vars(options).items():
        if name not in ("api_key", "resume", "config"):
            assert getattr(again, name) == value, name
    assert not again.resume
    assert make_settings(find_method("simkd"), given_settings(again)) == settings


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch: 3", "unknown option 'epoch'; did you mean 'epochs'"),
        ("epochs: many", "epochs must be int, got 'many'"),
        ("epochs: true", "epochs is one value, got True"),
        ("amp: fp8", "amp is one of off, bf16, fp16, got 'fp8'"),
        ("mean: [1, 2]", r"mean takes 3 values, got \[1, 2\]"),
        ("hard-fallback: 1", "hard_fallback is true or false, got 1"),
        ("settings: {factors: 2}", "unknown option 'factors'; did you mean 'factor'"),
        ("settings: [2]", "must map options to values"),
        ("- 1", "must map options to values"),
        ("api-key: x", "unknown option 'api-key'"),
        ("{", "cannot be read as YAML"),
        ("[" * 5000, "cannot be read as YAML"),
    ],
)
def test_mistakes_in_a_file_are_named_with_the_file(tmp_path, text, words):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"mine.yaml.*{words}"):
        parsed(*NEEDED, "--method", "simkd", "--config", file)


def test_unknown_names_have_near_ones():
    with pytest.raises(ValueError, match="no preset 'simkd-cifar10'; did you mean 'simkd-cifar100'"):
        parsed(*NEEDED, "--preset", "simkd-cifar10")
    with pytest.raises(ValueError, match="no method 'simdk'; did you mean 'simkd'"):
        parsed(*NEEDED, "--method", "simdk")
    with pytest.raises(ValueError, match="cannot be read"):
        read_config(PRESETS / "absent.yaml")
    assert look_ahead(["--method"]).method == ""


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_can_be_typed_and_is_explained(name, capsys):
    method = find_method(name)
    typed = []
    for setting in dataclasses.fields(method.Settings):
        assert setting.metadata["help"].strip(), setting.name
    with pytest.raises(SystemExit):
        parsed("--method", name, "--help")
    said = " ".join(capsys.readouterr().out.split())
    for setting in dataclasses.fields(method.Settings):
        option = "--" + setting.name.replace("_", "-")
        assert option in said or f"--{name}{option[1:]}" in said, setting.name
        default = setting.default
        if isinstance(default, (int, float, str)) and not isinstance(default, bool) and default != "":
            typed += [f"{option if f'--{name}{option[1:]} ' not in said else f'--{name}{option[1:]}'}={default}"]
    assert make_settings(method, given_settings(parsed(*NEEDED, "--method", name, *typed))) == method.Settings()


def test_help_without_a_method_does_not_wait_for_torch():
    import subprocess
    import sys

    program = (
        "import sys\nfrom teacherfarm import cli\n"
        "try: cli.main(['distill', '--help'])\nexcept SystemExit: pass\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "False"
    assert "teacherfarm methods" in done.stdout


def test_what_a_setting_may_be_is_checked(capsys):
    with pytest.raises(SystemExit):
        parsed(*NEEDED, "--form", "sharp")
    assert "invalid choice: 'sharp'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="method fkd has no setting 'factor'; it has form"):
        make_settings(find_method("fkd"), {"factor": 2})
    with pytest.raises(ValueError, match=r"form of method fkd is one of full, .* got 'sharp'"):
        make_settings(find_method("fkd"), {"form": "sharp"})


def test_the_command_line_knows_the_method_that_is_named():
    parser = cli.make_parser("distill", ["distill", *NEEDED, "--method", "simkd", "--factor", "8"])
    options = parser.parse_args(["distill", *NEEDED, "--method", "simkd", "--factor", "8"])
    assert given_settings(options) == {"factor": 8}
