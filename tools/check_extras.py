"""Does each extra bring what its packages import, and nothing it must not? ``python -m tools.check_extras``.

The base and ``server`` are installed from a freshly built wheel into a throw-away environment. The others take
gigabytes: their packages are imported here, every distribution hidden that the extra does not pull in.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, PackageNotFoundError, distribution, packages_distributions
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
NAME = "teacherfarm"
TORCH = frozenset({"torch", "torchvision", "timm"})
# What runs in somebody else's interpreter: beside the model it serves, inside Triton.
ELSEWHERE = frozenset({f"{NAME}.export.triton_python_model"})
# What is imported only by those who ask for the extra ``redis``.
WITH_REDIS = frozenset({f"{NAME}.label_store.redis_store", f"{NAME}.label_store.redis_upkeep"})
TRAINERS = ("accelerate", "lightning", "timm", "transformers")
# What is imported only by those who ask for the extra of the same name.
WITH_TRAINERS = {trainer: f"{NAME}.student.integrations.{trainer}" for trainer in TRAINERS}
OPTIONAL = frozenset({"pyarrow", "ray", "redis", *TRAINERS})
"""What the extras ``parquet``, ``ray``, ``redis`` and those of trainers bring to those who ask for it."""
SERVER_ONLY = frozenset({"prometheus-client", "onnxruntime", "onnxruntime-gpu"})


@dataclass(frozen=True, kw_only=True)
class Extra:
    """An extra, the packages that must import with nothing else installed, and what it must not pull in."""

    name: str  # "" is the base
    packages: tuple[str, ...]
    refused: frozenset[str]
    goes_without: frozenset[str] = frozenset({"grpc_tools"})
    """Libraries that functions import late, for those who have them; grpc_tools only makes our stubs."""
    modules: tuple[str, ...] = ()
    """Further ones that must import, of packages that other extras bring."""


EXTRAS = (
    Extra(
        name="",
        packages=("protos",),
        refused=TORCH | SERVER_ONLY | {"grpcio", "pyzmq", "pillow", "tritonclient"},
        goes_without=frozenset({"grpc_tools", "xxhash"}),  # keys are made by the server's and the student's end
    ),
    Extra(
        name="server",
        packages=("protos", "crops", "label_store", "teacher_server"),
        refused=TORCH | {"onnxruntime-gpu"},
        goes_without=frozenset({"grpc_tools", "fsspec"}) | OPTIONAL,  # fsspec: recorded labels are a student's
    ),
    Extra(
        name="student",
        packages=("protos", "crops", "label_store", "networks", "student", "doctor"),
        refused=SERVER_ONLY,
        # timm: for those who train one of its models; onnxruntime: the doctor tries a model directory where it is.
        goes_without=frozenset({"grpc_tools", "timm", "onnxruntime"}) | OPTIONAL,
    ),
    Extra(
        name="export",
        packages=("networks", "export"),
        refused=frozenset({"prometheus-client", "pyzmq", "onnxruntime-gpu"}),
        goes_without=frozenset({"tensorrt", "triton_python_backend_utils"}),  # the machine's, and Triton's own
    ),
    Extra(name="demo", packages=("demo",), refused=frozenset({"onnxruntime-gpu"})),
    *(Extra(name=name, packages=(), modules=(module,), refused=SERVER_ONLY) for name, module in WITH_TRAINERS.items()),
)


def closure(extra: str) -> frozenset[str]:
    """What ``pip install teacherfarm[extra]`` pulls in."""
    return closure_of(f"{NAME}[{extra}]" if extra else NAME)


def closure_of(wanted: str) -> frozenset[str]:
    """Canonical names of the distributions that installing ``wanted`` here pulls in, its own too."""
    done: set[tuple[str, str]] = set()
    waiting = [Requirement(wanted)]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras} - {known for owner, known in done if owner == name}:
            done.add((name, extra))
            try:
                stated = distribution(name).requires or []
            except PackageNotFoundError:  # onnxruntime-gpu is never here: named, but not looked into
                continue
            parsed = (Requirement(text) for text in stated)
            waiting += [r for r in parsed if r.marker is None or r.marker.evaluate({"extra": extra})]
    return frozenset(name for name, _ in done)


def modules_of(package: str, root: Path = ROOT) -> Iterator[str]:
    """Every module of one of our packages found on disk, but what importing would run and what runs elsewhere."""
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        module = ".".join((NAME, *(parts[:-1] if parts[-1] == "__init__" else parts)))
        if parts[-1] != "__main__" and module not in ELSEWHERE | WITH_REDIS | set(WITH_TRAINERS.values()):
            yield module


def libraries_of(source: Path) -> frozenset[str]:
    """Top-level names of what a file imports from outside, inside functions too, but not for type checking only."""
    tree = ast.parse(source.read_text())
    names: set[str] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
        waiting += ast.iter_child_nodes(node)
    return frozenset(names - sys.stdlib_module_names - {NAME})


def check_late_imports(extra: Extra) -> None:
    """What a function imports only when it is called must be in the extra as well."""
    hidden = hidden_beside(extra.name)
    known = packages_distributions().keys()
    missing = [
        f"{path.relative_to(ROOT)} imports {library}"
        for package in extra.packages
        for path in sorted((ROOT / package).rglob("*.py"))
        for library in sorted(libraries_of(path) - extra.goes_without)
        if library in hidden or library not in known
    ]
    if missing:
        fail(f"[{extra.name or 'base'}] does not bring what it needs: {'; '.join(missing)}")


class Hidden(MetaPathFinder):
    """A finder that makes modules and distributions look as if they were not installed, also to those who only ask."""

    def __init__(self, finder: Any, extra: str) -> None:
        self._finder, self._modules, self._brought = finder, hidden_beside(extra), closure(extra)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] in self._modules or not hasattr(self._finder, "find_spec"):
            return None
        found: ModuleSpec | None = self._finder.find_spec(fullname, path, target)
        return found

    def find_distributions(self, context: Any) -> Iterator[Distribution]:
        find = getattr(self._finder, "find_distributions", lambda _: ())
        return (found for found in find(context) if canonicalize_name(found.name) in self._brought)


def hidden_beside(extra: str) -> frozenset[str]:
    """Top-level modules installed here that ``teacherfarm[extra]`` alone would not bring."""
    brought = closure(extra)
    return frozenset(
        module
        for module, owners in packages_distributions().items()
        if not any(canonicalize_name(owner) in brought for owner in owners)
    )


def import_alone(extra: Extra) -> None:
    """Import every module of the extra's packages in this process, everything else hidden."""
    sys.meta_path[:] = [Hidden(finder, extra.name) for finder in list(sys.meta_path)]
    for module in [*(module for package in extra.packages for module in modules_of(package)), *extra.modules]:
        importlib.import_module(module)


def fail(sentence: str) -> None:
    sys.exit(f"check_extras: {sentence}")


def run(command: Sequence[str | Path], what: str, cwd: Path = ROOT) -> None:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        fail(f"{what} failed:\n{done.stdout[-4000:]}{done.stderr[-8000:]}")


def check_refused() -> None:
    for extra in EXTRAS:
        for name in sorted(closure(extra.name) & extra.refused):
            fail(f"[{extra.name or 'base'}] pulls in {name}: take it out of that extra in pyproject.toml")
    gpu = closure("gpu")
    if "onnxruntime" in gpu or "onnxruntime-gpu" not in gpu:
        fail("[gpu] must bring onnxruntime-gpu and not onnxruntime: the two overwrite each other's files")
    if missing := closure("server") - gpu - closure_of("onnxruntime"):
        fail(f"[gpu] lacks {', '.join(sorted(missing))}, which [server] brings")


def check_wheel(wheel: Path) -> None:
    """The wheel holds every source file and preset of every linked package: a lost link would ship empty names."""
    packed = set(zipfile.ZipFile(wheel).namelist())
    links = [link.name for link in sorted((ROOT / NAME).iterdir()) if link.is_symlink()]
    wanted = {
        f"{NAME}/{path.relative_to(ROOT).as_posix()}"
        for link in links
        for pattern in ("*.py", "*.pyi", "*.proto", "*.yaml")
        for path in (ROOT / link).rglob(pattern)
    }
    if not links or (missing := sorted(wanted - packed)):
        fail(f"the wheel lacks {', '.join(missing[:5]) if links else 'every package'}")


def check_installed_alone(folder: Path) -> None:
    run([sys.executable, "-m", "build", "--outdir", folder, ROOT], "building sdist and wheel")
    (wheel,) = folder.glob("*.whl")
    check_wheel(wheel)
    python = folder / "venv" / "bin" / "python"
    run([sys.executable, "-m", "venv", folder / "venv"], "making an environment")
    for extra in EXTRAS[:2]:
        wanted = f"{wheel}[{extra.name}]" if extra.name else str(wheel)
        label = extra.name or "base"
        run(
            [python, "-m", "pip", "install", "-c", ROOT / "constraints.txt", wanted],
            f"installing [{label}] alone",
        )
        modules = [NAME, f"{NAME}.cli", *(m for package in extra.packages for m in modules_of(package))]
        program = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
        run([python, "-P", "-c", program, *modules], f"importing [{label}], installed alone,", folder)
        run([folder / "venv" / "bin" / NAME, "--help"], f"`{NAME} --help` of [{label}]", folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--import-alone", metavar="EXTRA", help="the check of one extra, in this process")
    options = parser.parse_args()
    if options.import_alone is not None:
        import_alone(next(extra for extra in EXTRAS if extra.name == options.import_alone))
        return
    check_refused()
    for extra in EXTRAS:
        check_late_imports(extra)
        started = time.monotonic()
        command = [sys.executable, "-m", "tools.check_extras", "--import-alone", extra.name]
        run(command, f"importing the packages of [{extra.name or 'base'}] with everything else hidden")
        print(f"  [{extra.name or 'base'}] imports alone ({time.monotonic() - started:.0f} s)")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        check_installed_alone(Path(folder))
    print(f"  base and [server] install and import alone ({time.monotonic() - started:.0f} s)")


if __name__ == "__main__":
    main()
