"""A name whose addresses change while crops are asked: real Triton servers on several loopback addresses, one port."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from teacherfarm.teacher_server.backends import triton_pool
from teacherfarm.teacher_server.backends.triton_addresses import DnsName
from teacherfarm.teacher_server.backends.triton_pool import TritonPool
from teacherfarm.teacher_server.farm.farm import BatchSettings, Farm
from teacherfarm.teacher_server.farm.model_directory import read_model_directory
from teacherfarm.teacher_server.metrics import Metrics
from teacherfarm.teacher_server.projects.project import Project
from tests.on_loop import on_loop, until
from tests.triton_server import TritonServer, free_ports

HOSTS = ("127.0.0.1", "127.0.0.2")
ROWS = 16
LABELS = ("log_probabilities",)
LOOK_S = 0.01


@pytest.fixture(scope="module")
def two_tritons(triton_repository: Path, tmp_path_factory: pytest.TempPathFactory):
    """A server on each of the hosts, on the same ports."""
    folder, ports = tmp_path_factory.mktemp("two_tritons"), free_ports("0.0.0.0")
    with (
        TritonServer(triton_repository, folder, host=HOSTS[0], ports=ports) as one,
        TritonServer(triton_repository, folder, host=HOSTS[1], ports=ports) as other,
    ):
        yield one, other


class Names:
    """A name server whose answer the test writes."""

    def __init__(self, *hosts: str) -> None:
        self.hosts: tuple[str, ...] | OSError = hosts

    async def resolve(self, name: str, port: int) -> tuple[str, ...]:
        assert name == "triton"
        if isinstance(self.hosts, OSError):
            raise self.hosts
        return self.hosts


@asynccontextmanager
async def farm_of(names: Names, models: Path, port: int) -> AsyncIterator[tuple[Farm, TritonPool]]:
    pool = TritonPool([DnsName("triton", port)], resolve=names.resolve)
    farm = Farm(read_model_directory(models), lambda *_: None, metrics=Metrics(), batches=BatchSettings(), pool=pool)
    await farm.start()
    try:
        yield farm, pool
    finally:
        await farm.close()


def serving(pool: TritonPool) -> set[str]:
    return {state.address.rpartition(":")[0] for state in pool.states() if state.state == "serving"}


@on_loop
async def test_endpoints_come_and_go_with_the_names_addresses(
    two_tritons, triton_repository, tiny_crops, right_records, monkeypatch
):
    monkeypatch.setattr(triton_pool, "RESOLVE_EVERY_S", 0.05)
    port = int(two_tritons[0].grpc.rpartition(":")[2])
    names = Names(HOSTS[0])
    async with farm_of(names, triton_repository, port) as (farm, pool):
        assert farm.missing() is None
        assert serving(pool) == {HOSTS[0]}
        lane, asked, wrong = farm.lane("tiny"), 0, 0
        right = right_records["labels"]

        async def ask_on(number: int) -> None:
            nonlocal asked, wrong
            while True:
                first = asked % (len(tiny_crops) // ROWS) * ROWS
                asked += 1
                crops = tiny_crops[first : first + ROWS]
                outputs = await lane.label(Project(name="p"), f"s{number}", crops, LABELS)
                wrong += not np.array_equal(outputs[LABELS[0]], right[first : first + ROWS])

        students = [asyncio.create_task(ask_on(number)) for number in range(4)]
        try:
            names.hosts = HOSTS
            await until(lambda: serving(pool) == set(HOSTS), every_s=LOOK_S)
            names.hosts = (HOSTS[1],)
            await until(lambda: serving(pool) == {HOSTS[1]}, every_s=LOOK_S)
            assert [state.address for state in pool.states()] == [f"{HOSTS[1]}:{port}"], "who is gone is not listed"
            names.hosts = socket.gaierror(socket.EAI_AGAIN, "try again")
            answered = asked
            await until(lambda: asked > answered + 50, every_s=LOOK_S)
            assert serving(pool) == {HOSTS[1]}, "a name server that is down takes nobody out"
            names.hosts = socket.gaierror(socket.EAI_NONAME, "no such name")
            await until(lambda: farm.missing() is not None, every_s=LOOK_S)
            assert farm.missing() == "tiny is waiting (no Triton endpoint is known)"
            names.hosts = HOSTS
            await until(lambda: serving(pool) == set(HOSTS), every_s=LOOK_S)
            answered = asked
            await until(lambda: asked > answered + 50, every_s=LOOK_S)
        finally:
            for student in students:
                student.cancel()
            ended = await asyncio.gather(*students, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ended), ended
        assert wrong == 0
    assert not pool.states()


@on_loop
async def test_what_keeps_an_endpoint_out_is_said_once_and_again_when_it_changes(
    two_tritons, triton_repository, monkeypatch, caplog
):
    monkeypatch.setattr(triton_pool, "RESOLVE_EVERY_S", 0.05)
    monkeypatch.setattr(triton_pool, "back_off_s", lambda failures: 0.01)
    caplog.set_level(logging.INFO, "teacherfarm.teacher_server.backends.triton_pool")
    port = int(two_tritons[0].grpc.rpartition(":")[2])
    names = Names("127.0.0.3")
    async with farm_of(names, triton_repository, port) as (farm, pool):
        assert "127.0.0.3" in str(farm.missing())
        assert "unreachable" in str(farm.missing())
        names.hosts = ("127.0.0.3", HOSTS[0])
        await until(lambda: serving(pool) == {HOSTS[0]}, every_s=LOOK_S)
        assert farm.missing() is None
        told = [r.getMessage() for r in caplog.records if r.name == triton_pool.log.name]
        refused = f"Triton endpoint 127.0.0.3:{port} is unreachable for tiny: cannot connect: Connection refused"
        assert told == [refused, f"Triton endpoint {HOSTS[0]}:{port} serves tiny"], "tried by the dozen, told once"
