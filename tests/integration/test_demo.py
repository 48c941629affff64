"""The demo's digits in small, for real; and its server never outlives it."""

import signal
import subprocess
import sys

import psutil
import pytest

import teacherfarm.demo.command as demo
from teacherfarm import cli
from teacherfarm.demo import distilling, pictures

PNG_START = b"\x89PNG"

HOLD_A_FARM = """
import sys, time
from pathlib import Path
from teacherfarm.demo.farm import serving
with serving(Path(sys.argv[1]), Path(sys.argv[2]), "serve") as farm:
    print(farm._process.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    scale = distilling.Scale(seeds=1, teacher_passes=5, student_passes=5)
    return distilling.run(tmp_path_factory.mktemp("demo"), scale)


def test_soft_labels_help(found):
    assert found.teacher_accuracy > 0.95
    for runs in found.over.values():
        assert runs.last.mean() > found.alone.last.mean() + 0.05
        assert runs.labels == 5 * found.num_training


def test_both_wires_make_the_same_student(found):
    assert list(found.over) == ["ZeroMQ", "gRPC"]
    assert distilling.wires_agree(found)


def test_the_table_names_teacher_and_students(found):
    names = [line[:28].strip() for line in distilling.table(found).splitlines()]
    assert names == ["", "teacher", "student alone", "distilled over ZeroMQ", "distilled over gRPC"]


def test_the_picture_is_drawn(found, tmp_path):
    pictures.draw_digits(found, tmp_path / "digits.png")
    assert (tmp_path / "digits.png").read_bytes().startswith(PNG_START)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_the_server_ends_with_the_demo(tiny_models, tmp_path, end):
    command = [sys.executable, "-c", HOLD_A_FARM, str(tiny_models), str(tmp_path / "serve.log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as holder:
        assert holder.stdout is not None
        lines = iter(holder.stdout)
        pid = next(int(line) for line in lines if line.strip().isdigit())
        server = psutil.Process(pid)
        holder.send_signal(end)
        holder.wait(30)
    server.wait(30)
    assert not psutil.pid_exists(pid)


def test_a_server_that_cannot_start_is_an_error_with_its_log(tmp_path):
    with pytest.raises(RuntimeError, match="EmptyModelDirectory"):
        with distilling.serving(tmp_path, tmp_path / "serve.log", "serve"):
            pass


def test_wrong_numbers_are_refused_before_anything_starts(tmp_path, capsys):
    assert cli.main(["demo", "--seeds", "0", "--out", str(tmp_path / "out")]) == 2
    assert "--seeds must be at least 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_to_run_next_parses(tmp_path):
    for line in demo.next_steps(tmp_path, "digits").replace("\\\n", " ").splitlines():
        words = line.partition("(")[0].split()
        if "teacherfarm" in line and words[1:2] and words[1] in {command.name for command in cli.COMMANDS}:
            options = cli.make_parser(words[1]).parse_args(words[1:])
            assert options.command == words[1]
