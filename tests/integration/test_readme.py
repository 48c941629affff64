"""What the README shows is run: its Python against a tiny served teacher, its command lines through the parser."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from teacherfarm import cli

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [line for line in README.splitlines() if line.startswith(("teacherfarm ", "make "))]


def adapted(block, farm):
    """A block as it stands, but for the address and the teacher's name."""
    for shown, real in (("zmq://127.0.0.1:7001", farm), ("efficientnet-lite0", "tiny")):
        assert shown in block
        block = block.replace(shown, real)
    return compile(block, "README.md", "exec")


@pytest.fixture
def data(tmp_path, monkeypatch):
    """DATA/train with 2 classes of 40 pictures, in a folder that is the working directory."""
    draw = np.random.default_rng(1)
    for number in range(80):
        file = tmp_path / "DATA" / "train" / ("cat", "dog")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (40, 48, 3), np.uint8)).save(file)
    monkeypatch.chdir(tmp_path)


def test_the_loop_at_the_top_trains(tiny_farm, wire, data):
    block = PYTHON[0].replace("num_workers=4", "num_workers=2")
    names = {"__name__": "readme"}
    torch.manual_seed(0)
    exec(adapted(block, getattr(tiny_farm, wire)), names)
    assert names["labels"].num_classes == 10
    assert (names["labels"].weight == 1).all()
    assert torch.isfinite(names["loss"])
    assert names["teacher"].stats.crops_answered == 80
    # Only the student's view is augmented: the teacher got the very crops that the data set cut.
    assert names["views"]["crops"].dtype == torch.uint8
    assert names["views"]["images"].dtype == torch.float32


def test_the_lines_without_a_loop_answer(tiny_farm, wire, tiny_crops):
    names = {"crops": tiny_crops[:7]}
    exec(adapted(PYTHON[1], getattr(tiny_farm, wire)), names)
    assert names["probabilities"].shape == (7, 10)
    assert np.allclose(names["probabilities"].sum(axis=1), 1, atol=1e-3)


def test_every_python_block_is_run_here():
    assert len(PYTHON) == 2


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("teacherfarm ")])
def test_command_lines_are_right(line):
    words = shlex.split(line, comments=True)
    options = cli.make_parser(words[1], words[2:]).parse_args(words[1:])
    assert options.command == words[1]


def test_demo_and_test_come_first_and_exist():
    assert [line.split()[1] for line in COMMANDS if line.startswith("make ")][:2] == ["demo", "test"]
    assert {"demo", "test"} <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def test_links_and_folders_are_there():
    links = re.findall(r"\]\(([^)]+)\)", README) + re.findall(r"^([a-z_]+/) ", README, flags=re.MULTILINE)
    links += re.findall(r"`(docs/[^`]+)`", README)
    assert {"LICENSE", "CHANGELOG.md", "demo/", "docs/USING.md"} <= set(links)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_folder_of_the_project_is_named():
    folders = {path.name + "/" for path in ROOT.iterdir() if (path / "__init__.py").is_file()} - {"tools/"}
    assert [folder for folder in sorted(folders) if f"\n{folder}" not in README] == []
