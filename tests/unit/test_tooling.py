"""The promises of the project's own files: light imports, links, extras, commands."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import teacherfarm
from tools.check_extras import (
    EXTRAS,
    Extra,
    check_late_imports,
    check_refused,
    closure,
    hidden_beside,
    libraries_of,
    modules_of,
)

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SERVER_PACKAGES = ("protos", "crops", "teacher_server")
BELOW_TORCH = ("blocking", "client", "retry", "settings", "transports")

IMPORT_BLOCKED = """
import importlib, sys
blocked, modules = sys.argv[1].split(","), sys.argv[2:]
sys.modules.update(dict.fromkeys(blocked))  # None in sys.modules makes the import fail
for module in modules:
    importlib.import_module(module)
"""


def import_with_blocked(blocked: str, *modules: str) -> subprocess.CompletedProcess[str]:
    assert modules, "no module was found to import"
    command = [sys.executable, "-c", IMPORT_BLOCKED, blocked, *modules]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def assert_imports(blocked: str, *modules: str) -> None:
    done = import_with_blocked(blocked, *modules)
    assert done.returncode == 0, f"with {blocked} blocked:\n{done.stderr}"


def test_a_blocked_library_is_blocked():
    assert "numpy" in import_with_blocked("numpy", "numpy").stderr


def test_the_base_imports_with_every_heavy_library_blocked():
    heavy = "torch,torchvision,onnxruntime,onnx,grpc,zmq,PIL,cv2,simplejpeg,xxhash,prometheus_client,tqdm"
    assert_imports(heavy, "teacherfarm", "teacherfarm.cli", *modules_of("protos"))


def test_import_teacherfarm_alone_loads_nothing_of_ours_and_no_numpy():
    program = "import sys, teacherfarm; print(*(m for m in sys.modules if m.startswith(('teacherfarm.', 'numpy'))))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_server_imports_with_torch_blocked():
    assert_imports("torch,torchvision,timm", *(m for package in SERVER_PACKAGES for m in modules_of(package)))


def test_everything_from_the_client_downward_imports_with_torch_blocked():
    modules = [m for m in modules_of("student") if m.split(".")[2:3] and m.split(".")[2] in BELOW_TORCH]
    assert "teacherfarm.student.client" in modules
    assert_imports("torch,torchvision,timm,onnxruntime", "teacherfarm.student", *modules)


def test_every_package_folder_is_linked_and_nothing_else_is():
    links = {link.name: os.readlink(link) for link in (ROOT / "teacherfarm").iterdir() if link.is_symlink()}
    assert links == {name: f"../{name}" for name in links}
    assert {"protos", "crops", "teacher_server", "student", "export"} <= links.keys()
    assert all((ROOT / name / "__init__.py").is_file() for name in links)


def test_versions_agree():
    assert teacherfarm.__version__ == PROJECT["project"]["version"]
    assert re.search(
        rf'__version__ = "{re.escape(teacherfarm.__version__)}"',
        (ROOT / "teacherfarm/__init__.py").read_text(),
    )


def test_extras_have_the_names_of_the_design():
    assert {"server", "gpu", "student", "export", "redis", "ray", "dev"} <= PROJECT["project"][
        "optional-dependencies"
    ].keys()


def test_no_extra_pulls_in_what_it_must_not():
    check_refused()


def test_a_refused_library_fails_the_check(monkeypatch):
    wrong = Extra(name="student", packages=("student",), refused=frozenset({"torch"}))
    monkeypatch.setattr("tools.check_extras.EXTRAS", (*EXTRAS, wrong))
    with pytest.raises(SystemExit, match=r"\[student\] pulls in torch"):
        check_refused()


def test_a_closure_holds_what_is_needed_indirectly_and_hides_the_rest():
    assert {"teacherfarm", "numpy", "protobuf", "torch", "sympy"} <= closure("student")  # sympy: by torch alone
    assert "torch" not in closure("server")
    hidden = hidden_beside("server")
    assert {"torch", "torchvision", "pytest"} <= hidden
    assert not {"numpy", "google", "grpc", "zmq", "teacherfarm"} & hidden


def test_late_imports_are_found_and_those_for_types_are_not(tmp_path):
    source = tmp_path / "module.py"
    source.write_text(
        "import os\nfrom typing import TYPE_CHECKING\nfrom teacherfarm.protos import crop\n"
        "if TYPE_CHECKING:\n    import torch\nelse:\n    import numpy.linalg\n"
        "def late():\n    from grpc import aio\n"
    )
    assert libraries_of(source) == {"numpy", "grpc"}


@pytest.mark.parametrize("extra", EXTRAS, ids=lambda extra: extra.name or "base")
def test_an_extra_brings_what_its_packages_import_late(extra):
    check_late_imports(extra)


def test_a_missing_library_fails_the_check():
    wrong = Extra(name="", packages=("student",), refused=frozenset())
    with pytest.raises(SystemExit, match=r"\[base\] does not bring .*student/losses.py imports torch"):
        check_late_imports(wrong)


def test_every_requirement_is_pinned_by_the_constraints():
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    assert closure("dev") - pinned - {"teacherfarm"} == set()


def test_a_machine_without_python_gets_a_sentence():
    script = ROOT / "tools" / "find_python.sh"
    environment = {**os.environ, "PYTHON": "no-such-python"}
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "No Python 3.11 or newer" in done.stderr
    assert "make install PYTHON=" in done.stderr


def test_every_target_of_the_makefile_is_described():
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)
    described = re.findall(r"^([a-z-]+):.*## \S", makefile, flags=re.MULTILINE)
    assert sorted(phony.split()) == sorted(described)
