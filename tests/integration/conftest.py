"""Real servers on loopback: one shared by all tests that leave it alive, and a way to start more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from teacherfarm.student import TeacherClient
from tests.farm_process import FarmProcess

StartFarm = Callable[..., FarmProcess]

SCRIPTED = "tests.scripted_farm"


@pytest.fixture(params=["zmq", "grpc"])
def wire(request: pytest.FixtureRequest) -> str:
    """Both wires, one after the other."""
    return str(request.param)


@pytest.fixture(scope="session")
def tiny_farm(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarmProcess]:
    """A server of the tiny teacher, shared: nobody stops it."""
    with FarmProcess(tmp_path_factory.mktemp("tiny_farm"), tiny_models) as farm:
        yield farm


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


@pytest.fixture(scope="session")
def tiny_crops() -> NDArray[np.uint8]:
    """512 different crops for the tiny teacher."""
    return np.random.default_rng(3).integers(0, 256, (512, 32, 32, 3), np.uint8)


@pytest.fixture(scope="session")
def right_records(tiny_models: Path, tiny_crops: NDArray[np.uint8]) -> NDArray[np.void]:
    """The tiny teacher's answers to ``tiny_crops``, computed without any wire."""
    with TeacherClient(f"local://{tiny_models}") as teacher:
        return teacher.label(tiny_crops).records
