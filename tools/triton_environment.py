"""A real Triton server without Docker, in an environment of its own: ``python -m tools.triton_environment``.

Makes .venv-triton from the package that carries the server's binary and its Python backend (about 100 MB to download,
350 MB on disk), and finds it again. Where that cannot be done it says why, in one sentence.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / ".venv-triton"
CONSTRAINTS = ROOT / "constraints-triton.txt"
INSTALLED = ".installed"
WHY_NOT = "why-not.txt"

PYTHONS = ("3.11", "3.12")
"""Those for which there is both a stub of the Python backend and a numpy below 2."""
LEAST_GLIBC = (2, 35)
INSTALL_WITHIN_S = 900.0
ASK_WITHIN_S = 30.0

# Asked of each Python that is there: its version, and where the shared library lies that the backend's stub loads.
PROBE = """
import ctypes, json, os, sys, sysconfig
import ensurepip, venv
name = sysconfig.get_config_var("INSTSONAME") or ""
folders = [sysconfig.get_config_var("LIBDIR") or "", os.path.join(sys.base_prefix, "lib")]
folders.append(os.path.join(folders[0], sysconfig.get_config_var("MULTIARCH") or ""))
found = [folder for folder in folders if ".so" in name and os.path.exists(os.path.join(folder, name))]
if found:
    ctypes.CDLL(os.path.join(found[0], name))
version = "%d.%d" % sys.version_info[:2]
print(json.dumps([sys.executable, version, name, found[0] if found else ""]))
"""


class TritonAbsent(Exception):
    """There is no Triton server here; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Python:
    """One Python. ``library``: the file name of its shared library; ``library_folder``: where that lies, or empty."""

    executable: str
    version: str
    library: str
    library_folder: str


@dataclass(frozen=True, kw_only=True)
class TritonInstallation:
    """Where the parts of an installed Triton server are."""

    server: Path
    backends: Path
    programs: Path
    library_folder: Path

    def command(self, repository: Path) -> list[str]:
        """How to start the server on a model repository; flags for its addresses may follow."""
        return [str(self.server), f"--model-repository={repository}", f"--backend-directory={self.backends}"]

    def environment(self) -> dict[str, str]:
        """This process's environment as the server needs it: its stub finds packages by the first python3 on PATH."""
        kept = {name: text for name, text in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        libraries = [str(self.library_folder), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        return kept | {
            "PATH": f"{self.programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "LD_LIBRARY_PATH": os.pathsep.join(libraries),
            "VIRTUAL_ENV": str(self.programs.parent),
            "PYTHONDONTWRITEBYTECODE": "1",  # model repositories are not written into
        }


def find_triton(environment: Path = ENVIRONMENT) -> TritonInstallation:
    """The installed server. Raises TritonAbsent."""
    try:
        parts = json.loads((environment / INSTALLED).read_text())
        found = TritonInstallation(**{name: Path(path) for name, path in parts.items()})
    except (OSError, ValueError, TypeError) as error:
        why_not = environment / WHY_NOT
        if why_not.is_file():
            raise TritonAbsent(why_not.read_text().strip()) from error
        raise TritonAbsent("no Triton server is installed here: run `make triton`") from error
    if not found.server.is_file() or not found.library_folder.is_dir():
        raise TritonAbsent(f"{environment} is incomplete: remove it and run `make triton`")
    return found


def make_triton(environment: Path = ENVIRONMENT) -> TritonInstallation:
    """Install the server, in place of what was there. Raises TritonAbsent."""
    shutil.rmtree(environment, ignore_errors=True)
    check_platform(platform.machine(), platform.libc_ver())
    python = choose_python(list(pythons()))
    try:
        _run([python.executable, "-m", "venv", str(environment)])
        install = [
            *(str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--only-binary=:all:", "--retries=3", "--timeout=60", f"--constraint={CONSTRAINTS}"),
        ]
        _run([*install, "onnxruntime", "numpy"])
        # What else it names is for its own Python interface, which nobody here uses.
        _run([*install, "--no-deps", "nvidia-pytriton"])
    except (subprocess.SubprocessError, OSError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise TritonAbsent(
            f"Triton's environment could not be made with {python.executable}: {said[-2000:]}"
        ) from error
    return _finish(environment, python)


def _finish(environment: Path, python: Python) -> TritonInstallation:
    home = environment / "lib" / f"python{python.version}" / "site-packages" / "pytriton" / "tritonserver"
    backends = home / "backends"
    stub = home / "python_backend_stubs" / python.version / "triton_python_backend_stub"
    try:
        shutil.copy(stub, backends / "python")
    except OSError as error:
        raise TritonAbsent(f"the installed package has no stub for Python {python.version}: {error}") from error
    installation = TritonInstallation(
        server=home / "bin" / "tritonserver",
        backends=backends,
        programs=environment / "bin",
        library_folder=Path(python.library_folder),
    )
    parts = {name: str(path) for name, path in dataclasses.asdict(installation).items()}
    (environment / INSTALLED).write_text(json.dumps(parts))
    return installation


def check_platform(machine: str, libc: tuple[str, str]) -> None:
    """Raise TritonAbsent where the package has no binary."""
    if sys.platform != "linux" or machine != "x86_64":
        raise TritonAbsent(f"Triton's package has a server for Linux on x86-64 only, this is {sys.platform}, {machine}")
    name, version = libc
    if name != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < LEAST_GLIBC:
        raise TritonAbsent(f"Triton's package needs glibc 2.35 or newer, here is {name or 'another libc'} {version}")


def pythons() -> Iterator[Python]:
    """The Pythons of this machine, the one that runs this first; each once."""
    # Not sys.executable: that may be a virtual environment's, and ours must not lean on it.
    own = os.path.join(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    names = [own, *(f"/usr/bin/python{v}" for v in PYTHONS), *(f"python{v}" for v in PYTHONS), "/usr/bin/python3"]
    seen: set[str] = set()
    for name in names:
        try:
            asked = subprocess.run(
                [name, "-I", "-c", PROBE], capture_output=True, text=True, check=True, timeout=ASK_WITHIN_S
            )
            executable, version, library, folder = json.loads(asked.stdout)
        except (OSError, subprocess.SubprocessError, ValueError):
            continue
        if executable not in seen:
            seen.add(executable)
            yield Python(executable=executable, version=version, library=library, library_folder=folder)


def choose_python(found: list[Python]) -> Python:
    """The first that can run the Python backend's stub. Raises TritonAbsent, naming what each one lacks."""
    for python in found:
        if python.version in PYTHONS and python.library_folder:
            return python
    lacks = []
    for python in found:
        if python.version not in PYTHONS:
            lacks.append(f"{python.executable} is {python.version}")
        elif ".so" in python.library:
            lacks.append(f"{python.executable} has no {python.library} (apt-get install libpython{python.version})")
        else:
            lacks.append(f"{python.executable} was built without a shared library (--enable-shared)")
    raise TritonAbsent(
        f"Triton's Python backend needs Python {' or '.join(PYTHONS)} with its shared library and the venv module: "
        + ("; ".join(lacks) or "no Python was found")
    )


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_WITHIN_S)


def skips_allowed() -> bool:
    """Whether tests of parts that are not here may be left out; CI says that none may."""
    return not (os.environ.get("CI") or os.environ.get("TEACHERFARM_NO_SKIPS"))


def main() -> int:
    """1 where the server cannot be had and must be; where it need not be, the reason is kept for the tests to give."""
    print("Installing a Triton server into .venv-triton: about 100 MB to download, once.", flush=True)
    try:
        make_triton()
    except TritonAbsent as reason:
        print(f"No Triton server: {reason}", file=sys.stderr)
        if not skips_allowed():
            return 1
        print("The tests that need it will be skipped.", file=sys.stderr)
        ENVIRONMENT.mkdir(exist_ok=True)
        (ENVIRONMENT / WHY_NOT).write_text(f"{reason}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
