"""What stands in for each image of the compose file where there is no Docker engine: the same programs, installed here.

An image of which nothing can run here is named with the reason.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.compose_file import Service
from tests.e2e.dockerfile import BASE_PATH, read_dockerfile

ROOT = Path(__file__).resolve().parents[2]
SYSTEM = (Path("/usr"),)


@dataclass(frozen=True, kw_only=True)
class LocalImage:
    """``shown``: folders of this machine that the container sees, read-only, by where it sees them. ``owners``: folders
    of the image and whose they are; a fresh volume takes that over.
    """

    entrypoint: tuple[str, ...]
    environment: Mapping[str, str]
    shown: Mapping[str, Path]
    owners: Mapping[str, int] = field(default_factory=dict)


class CannotRunHere(Exception):
    """Why an image has nothing to stand in for it."""


def local_image(service: Service) -> LocalImage:
    """What runs ``service`` here. Raises CannotRunHere."""
    if service.dockerfile is not None:
        return _ours(service.dockerfile)
    name = service.image.rpartition(":")[0]
    makers = {
        "nvcr.io/nvidia/tritonserver": _triton,
        "redis": lambda: _debian("redis-server", owners={"/data": 999}),
        "prom/prometheus": lambda: _debian("prometheus", entry=True, owners={"/prometheus": 65534}),
    }
    if name not in makers:
        raise CannotRunHere(f"{service.name} skipped: nothing here stands in for {service.image}")
    return makers[name]()


def _ours(dockerfile: Path) -> LocalImage:
    """Our own image: the entry point and environment of its Dockerfile, this environment where it has its own."""
    image = read_dockerfile(dockerfile)
    environment, base = Path(sys.prefix), Path(sys.base_prefix)
    # The checkout itself: this environment finds the packages there, and a test's own teacher is one of its modules.
    shown = {"/opt/teacherfarm": environment, **{str(place): place for place in (ROOT, environment, base)}}
    return LocalImage(
        entrypoint=image.entrypoint,
        environment={**image.environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        shown=shown,
        owners=image.owners,
    )


def _triton() -> LocalImage:
    """The real server with its Python backend, where the image has its backends: so its command line stays as it is."""
    from tools.triton_environment import TritonAbsent, find_triton

    try:
        found = find_triton()
    except TritonAbsent as reason:
        raise CannotRunHere(str(reason)) from reason
    told = found.environment()
    environment = found.programs.parent
    # Beside its package, where its own relative path would lead.
    libraries = list(environment.glob("lib/python*/site-packages/nvidia_pytriton.libs"))
    base = Path((environment / "bin" / "python").resolve()).parents[1]
    return LocalImage(
        entrypoint=(),
        environment={
            "PATH": f"/opt/tritonserver/bin:{found.programs}:{BASE_PATH}",
            "LD_LIBRARY_PATH": os.pathsep.join([told["LD_LIBRARY_PATH"], *map(str, libraries)]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
        },
        shown={
            "/opt/tritonserver/bin": found.server.parent,
            "/opt/tritonserver/backends": found.backends,
            **{str(place): place for place in (environment, base, found.library_folder)},
        },
    )


def _debian(program: str, *, owners: Mapping[str, int], entry: bool = False) -> LocalImage:
    path = shutil.which(program)
    if path is None:
        raise CannotRunHere(f"{program} is not installed: apt-get install {program}")
    return LocalImage(entrypoint=(path,) if entry else (), environment={"PATH": BASE_PATH}, shown={}, owners=owners)
