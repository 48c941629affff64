"""Real servers on loopback: one shared by all tests that leave it alive, and a way to start more."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from teacherfarm.student import TeacherClient
from tests.farm_process import FarmProcess
from tests.small_disk import mounted_small_disk

StartFarm = Callable[..., FarmProcess]

SCRIPTED = "tests.scripted_farm"
ROWS = 16


@pytest.fixture(params=["zmq", "grpc"])
def wire(request: pytest.FixtureRequest) -> str:
    """Both wires, one after the other."""
    return str(request.param)


@pytest.fixture(scope="session")
def tiny_farm(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarmProcess]:
    """A server of the tiny teacher, shared: nobody stops it."""
    with FarmProcess(tmp_path_factory.mktemp("tiny_farm"), tiny_models) as farm:
        yield farm


@pytest.fixture(scope="session")
def method_models(tapped_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models directory with a teacher for every method (tests.method_runs says which): "tiny" with taps, others."""
    from teacherfarm.export import export_teacher

    models = tmp_path_factory.mktemp("method_models")
    shutil.copytree(tapped_models / "tiny", models / "tiny")
    export_teacher("tests.method_teachers:make_several", models)
    export_teacher("tests.method_teachers:make_pair", models)
    export_teacher("tests.tiny_tokens:make", models, taps=["norm"])
    return models


@pytest.fixture
def start_farm(tiny_models: Path, tmp_path: Path) -> Iterator[StartFarm]:
    """``start_farm(*flags)`` starts a server of the tiny teacher that is this test's own."""
    with ExitStack() as farms:
        yield lambda *flags: farms.enter_context(FarmProcess(tmp_path, tiny_models, *flags))


@pytest.fixture
def start_scripted(tmp_path: Path) -> Iterator[StartFarm]:
    """``start_scripted(*flags, wait=True)`` starts a server of a scripted teacher (tests.scripted_farm)."""
    with ExitStack() as farms:

        def start(*flags: str, wait: bool = True) -> FarmProcess:
            farm = FarmProcess(tmp_path, tmp_path, *flags, module=SCRIPTED)
            farms.callback(farm.stop)
            return farm.start(wait=wait)

        yield start


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB that may be filled up."""
    with mounted_small_disk(tmp_path / "small") as place:
        yield place


@pytest.fixture(scope="session")
def tiny_crops() -> NDArray[np.uint8]:
    """512 different crops for the tiny teacher."""
    return np.random.default_rng(3).integers(0, 256, (512, 32, 32, 3), np.uint8)


@pytest.fixture(scope="session")
def right_records(tiny_models: Path, tiny_crops: NDArray[np.uint8]) -> NDArray[np.void]:
    """The tiny teacher's answers to ``tiny_crops``, computed without any wire."""
    with TeacherClient(f"local://{tiny_models}") as teacher:
        return teacher.label(tiny_crops).records


class Bystander(threading.Thread):
    """A student that does everything right, over and over."""

    def __init__(self, address, crops, records):
        super().__init__(daemon=True)
        self.client = TeacherClient(address, "tiny")
        self.crops, self.records = crops, records
        self.rounds, self.wrong, self.error = 0, 0, None
        self.more, self.stopping = threading.Event(), threading.Event()

    def run(self):
        try:
            with self.client as teacher:
                while not self.stopping.wait(0.002):
                    rows = slice(self.rounds % 8 * ROWS, (self.rounds % 8 + 1) * ROWS)
                    labels = teacher.label(self.crops[rows])
                    self.wrong += labels.records.tobytes() != self.records[rows].tobytes()
                    self.rounds += 1
                    self.more.set()
        except BaseException as error:
            self.error = error

    def check(self):
        """It has had nothing but right labels, and gets more of them now."""
        self.more.clear()
        assert self.more.wait(20), self.error
        self.more.clear()
        assert self.more.wait(20), self.error
        assert self.error is None
        assert self.wrong == 0
        assert self.client.stats.sessions == 1
        assert self.client.stats.crops_resent == 0


@pytest.fixture(scope="module")
def bystanders(tiny_farm, tiny_crops, right_records):
    """One on each wire of the shared server, while a file of tests runs."""
    students = [Bystander(address, tiny_crops, right_records) for address in (tiny_farm.zmq, tiny_farm.grpc)]
    for student in students:
        student.start()
    yield students
    for student in students:
        student.stopping.set()
        student.join(20)


@pytest.fixture
def nobody_else_is_harmed(bystanders, tiny_farm):
    """A student on each wire labels all the while and gets right labels; the shared server logs no error."""
    before = len(tiny_farm.log())
    yield
    for student in bystanders:
        student.check()
    assert "Traceback" not in tiny_farm.log()[before:]
