"""Settings that every test needs, and one tiny exported teacher; other fixtures live beside their tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from tests.triton_server import TritonServer

# Before torch is imported, and inherited by what tests start: two test processes share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A test that would download fails at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Deadlines measure the machine's other load; on CI the same examples must be tried every time.
hypothesis.settings.register_profile("teacherfarm", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("teacherfarm")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models directory with one verified teacher, "tiny" (tests.tiny_teacher); shared, so nobody writes
    into it.
    """
    from teacherfarm.export import export_teacher

    models = tmp_path_factory.mktemp("models")
    export_teacher("tests.tiny_teacher:make", models)
    return models


@pytest.fixture(scope="session")
def tapped_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models directory with the tiny teacher exported for methods that compare features (tests.methods.TAPS, its
    reductions and the embedding); shared, so nobody writes into it.
    """
    from teacherfarm.export import export_teacher
    from tests.methods import REDUCTIONS, TAPS

    models = tmp_path_factory.mktemp("tapped_models")
    export_teacher("tests.tiny_teacher:make", models, taps=(*TAPS, *REDUCTIONS))
    return models


@pytest.fixture(scope="session")
def triton_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Triton model repository with the tiny teacher, run by ONNX Runtime in Triton's Python backend; shared, so
    nobody writes into it. Skips, with the reason, where no Triton server can be had.
    """
    from teacherfarm.export import export_teacher
    from tests.real_parts import absent
    from tools.triton_environment import TritonAbsent, find_triton

    try:
        find_triton()
    except TritonAbsent as reason:
        absent(str(reason))
    models = tmp_path_factory.mktemp("triton_models")
    export_teacher("tests.tiny_teacher:make", models, triton_backend="python")
    with (models / "tiny" / "config.pbtxt").open("a") as config:
        # One thread: others would spin, on cores that the tests share.
        config.write('parameters { key: "intra_op_threads" value { string_value: "1" } }\n')
    return models


@pytest.fixture(scope="session")
def triton(triton_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A real Triton server of the tiny teacher, shared: nobody stops it."""
    from tests.triton_server import TritonServer

    with TritonServer(triton_repository, tmp_path_factory.mktemp("triton")) as server:
        yield server


@pytest.fixture
def start_triton(triton_repository: Path, tmp_path: Path) -> Iterator[Callable[..., TritonServer]]:
    """``start_triton(*flags, repository=..., wait=True)`` starts a real Triton server that is this test's own."""
    from tests.triton_server import TritonServer

    with ExitStack() as servers:

        def start(*flags: str, repository: Path = triton_repository, wait: bool = True) -> TritonServer:
            server = TritonServer(repository, tmp_path, arguments=flags)
            servers.callback(server.stop)
            return server.start(wait=wait)

        yield start
