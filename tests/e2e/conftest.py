"""The farm of docker-compose.yml, started as local processes: profile cpu, a tiny teacher, real servers."""

from __future__ import annotations

import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from teacherfarm.protos.soft_label import SoftLabels
from teacherfarm.student import TeacherClient
from tests.e2e.compose_file import read_compose_file
from tests.e2e.local_engine import LocalEngine
from tests.real_parts import absent
from tools.triton_environment import TritonAbsent, find_triton

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("ip", "nsenter", "setpriv", "redis-server", "prometheus", "curl", "wget", "openssl")
TEACHER = "tests.tiny_teacher:make --triton-backend python"
PROJECTS = "/etc/teacherfarm/projects.toml"
WIRES = {"grpc": 7000, "zmq": 7001}
CROPS = 512


@dataclass(frozen=True, kw_only=True)
class Farm:
    """``crops`` and the teacher's own ``answers`` to them, computed without any wire."""

    engine: LocalEngine
    api_key: str
    crops: NDArray[np.uint8]
    answers: NDArray[np.float32]

    def student(self, wire: str = "zmq", api_key: str = "") -> TeacherClient:
        """A student of the machine that publishes the gateway's ports."""
        port = self.engine.published("gateway", WIRES[wire])
        return TeacherClient(f"{wire}://127.0.0.1:{port}", "tiny", api_key=api_key or self.api_key)

    def get(self, service: str, target: int, path: str) -> tuple[int, str]:
        """Status and text of a page that a service publishes."""
        try:
            address = f"http://127.0.0.1:{self.engine.published(service, target)}{path}"
            with urllib.request.urlopen(address, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def right(self, labels: SoftLabels, rows: slice) -> bool:
        """Whether these are the labels of ``crops[rows]``, each of them."""
        differ = np.abs(labels.log_probabilities.astype(np.float32) - self.answers[rows])
        return bool((labels.weight == 1).all() and (differ < 2e-3 * (1 + np.abs(self.answers[rows]))).all())


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the repository that a farm is started from, prepared as docs/FARM.md says."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("docker-compose.yml", ".env"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "deploy", folder / "deploy", ignore=shutil.ignore_patterns("secrets"))
    subprocess.run(["bash", "deploy/prepare.sh"], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def real_parts() -> None:
    """Leaves the test out, with the reason, where something is missing that it needs."""
    if os.geteuid() != 0:
        absent("containers of network and mount namespaces need root")
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        absent(f"not installed here: {', '.join(missing)}")
    try:
        find_triton()
    except TritonAbsent as reason:
        absent(str(reason))


@pytest.fixture(scope="session")
def farm(checkout: Path, real_parts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """All services of profile cpu that can run here, one Triton; shared, so whoever changes it puts it back."""
    environment = {
        "COMPOSE_PROFILES": "cpu",
        "FARM_TEACHER": TEACHER,
        "FARM_PROJECTS": PROJECTS,
        **{f"FARM_{name}_PORT": "0" for name in ("GRPC", "ZMQ", "HTTP", "PROMETHEUS", "GRAFANA")},
    }
    compose = read_compose_file(checkout / "docker-compose.yml", environment=environment)
    with LocalEngine(compose, tmp_path_factory.mktemp("farm")) as engine:
        engine.create_networks()
        # As the page says: the first key before the first start.
        key = engine.run("admin", "keys", "create", "vision").strip()
        engine.up()
        engine.wait_healthy("gateway")
        crops = np.random.default_rng(3).integers(0, 256, (CROPS, 32, 32, 3), np.uint8)
        with TeacherClient(f"local://{engine.volume('models')}") as teacher:
            answers = teacher.label(crops).log_probabilities.astype(np.float32)
        yield Farm(engine=engine, api_key=key, crops=crops, answers=answers)
