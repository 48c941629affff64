"""Each contract of who may import whom is broken once, in a copy, and must be caught."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")

# the contract's number, the module that breaks it, the import that does
VIOLATIONS = [
    ("1.", "protos/crop.py", "import teacherfarm.crops"),
    ("1.", "crops/crop_plan.py", "import teacherfarm.teacher_server"),
    ("1.", "student/losses.py", "import teacherfarm.cli"),
    ("1.", "student/client.py", "import teacherfarm.doctor"),
    ("1.", "demo/farm.py", "import teacherfarm.doctor"),
    ("1.", "stray/__init__.py", "import numpy"),
    ("2.", "student/losses.py", "import teacherfarm.teacher_server.gateway"),
    ("2.", "export/teachers.py", "import teacherfarm.student.losses"),
    ("2.", "student/transports/zmq_transport.py", "import teacherfarm.teacher_server.backends.onnx_backend"),
    ("3a.", "teacher_server/gateway.py", "import teacherfarm.teacher_server.frontends.grpc_frontend"),
    ("3a.", "teacher_server/backends/backend.py", "import teacherfarm.teacher_server.farm"),
    ("3a.", "teacher_server/projects/project.py", "import teacherfarm.teacher_server.backends.backend"),
    ("3b.", "teacher_server/farm/lane.py", "import teacherfarm.teacher_server.backends.onnx_backend"),
    ("3c.", "teacher_server/gateway.py", "import grpc"),
    ("3c.", "student/client.py", "import zmq"),
    ("3d.", "teacher_server/farm/lane.py", "import onnxruntime"),
    ("3e.", "teacher_server/server.py", "def late():\n    import torch"),
    ("3e.", "crops/crop_plan.py", "import torch"),
    ("3f.", "label_store/memory_store.py", "import lmdb"),
    ("3f.", "teacher_server/server.py", "def late():\n    import redis.asyncio"),
    ("3g.", "teacher_server/gateway.py", "import teacherfarm.label_store.memory_store"),
    ("3h.", "networks/cifar.py", "import teacherfarm.protos.crop"),
    ("3e.", "teacher_server/server.py", "def late():\n    import teacherfarm.networks.cifar"),
    ("4a.", "student/client.py", "import teacherfarm.student.blocking"),
    ("4a.", "student/transports/zmq_transport.py", "import teacherfarm.student.client"),
    ("4b.", "student/client.py", "import torch"),
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the source with real folders in place of the links."""
    copy = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "teacherfarm", copy / "teacherfarm", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def lint(checkout):
    command = [LINT_IMPORTS, "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)


def test_the_source_as_it_is_keeps_every_contract(checkout):
    done = lint(checkout)
    assert done.returncode == 0, done.stdout
    assert " 0 broken" in done.stdout


@pytest.mark.parametrize(("contract", "path", "line"), VIOLATIONS)
def test_a_violation_is_caught(checkout, contract, path, line):
    module = checkout / "teacherfarm" / path
    before = module.read_text() if module.exists() else None
    module.parent.mkdir(exist_ok=True)
    module.write_text(f"{before or ''}\n{line}\n")
    try:
        done = lint(checkout)
    finally:
        if before is None:
            shutil.rmtree(module.parent)
        else:
            module.write_text(before)
    assert done.returncode == 1
    broken = done.stdout.partition("Broken contracts")[2]
    assert any(text.startswith(contract) for text in broken.splitlines()), done.stdout
