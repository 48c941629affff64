"""docker-compose.yml at work: its services' real commands, environment, ports, volumes and health checks; students,
scale, drain, and what dies comes back. Grafana has nothing to stand in for it here.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from teacherfarm.protos.faults import Unauthenticated
from tests.e2e.conftest import CROPS, PROJECTS, Farm
from tests.e2e.local_engine import wait_until
from tests.farm_process import wait_for
from tests.standstill import stand_still

STARTED = ("triton-cpu", "gateway", "redis", "prometheus")
ROWS = 32
SOON_S = 60.0


class Student(threading.Thread):
    """Asks for labels over and over, several crop batches at a time, and looks at every answer."""

    def __init__(self, farm: Farm, wire: str) -> None:
        super().__init__(daemon=True)
        self.farm, self.client = farm, farm.student(wire)
        self.batches, self.wrong, self.error = 0, 0, None
        self.stopping = threading.Event()

    def run(self):
        try:
            with self.client as teacher:
                while not self.stopping.is_set():
                    pieces = [slice(first, first + ROWS) for first in range(0, CROPS, ROWS)]
                    # By keys that never come again: crops are computed, however often these were asked.
                    futures = [teacher.submit(self.farm.crops[rows], keys=os.urandom(16 * ROWS)) for rows in pieces]
                    for rows, future in zip(pieces, futures, strict=True):
                        self.wrong += not self.farm.right(future.result(), rows)
                        self.batches += 1
        except BaseException as error:
            self.error = error

    def goes_on(self):
        """It has had nothing but right labels, and gets many more now."""
        before = self.batches
        wait_for(lambda: self.batches > before + 2 * CROPS // ROWS or self.error, SOON_S)
        assert (self.error, self.wrong) == (None, 0)


@contextmanager
def students(farm: Farm) -> Iterator[list[Student]]:
    """One on each wire, all the while."""
    pair = [Student(farm, wire) for wire in ("zmq", "grpc")]
    for student in pair:
        student.start()
    try:
        for student in pair:
            student.goes_on()
        yield pair
        for student in pair:
            student.goes_on()
    finally:
        for student in pair:
            student.stopping.set()
        for student in pair:
            student.join(SOON_S)
            assert not student.is_alive()


def served_by(farm: Farm, replica) -> int:
    """Inferences of a Triton replica, by its own count."""
    page = replica.run(["curl", "--silent", "http://127.0.0.1:8002/metrics"], 10).stdout
    return sum(int(n) for n in re.findall(r'^nv_inference_count\{model="tiny".*\} (\d+)', page, flags=re.MULTILINE))


def test_what_cannot_run_here_is_named(farm, capsys):
    with capsys.disabled():
        print("\n", *farm.engine.skipped, sep="  ")
    assert [reason.partition(" ")[0] for reason in farm.engine.skipped] == ["grafana"]
    assert set(farm.engine.compose.enabled()) == {*STARTED, "export", "grafana"}


@pytest.mark.parametrize("wire", ["zmq", "grpc"])
def test_a_student_gets_labels_through_the_published_ports(farm, wire):
    with farm.student(wire) as teacher:
        assert farm.right(teacher.label(farm.crops), slice(None))


@pytest.mark.parametrize("service", STARTED)
def test_health_checks_tell_a_stopped_service(farm, service):
    check = dataclasses.replace(farm.engine.compose.services[service].health, timeout_s=2.0)
    container = farm.engine.container(service)
    wait_until(lambda: container.healthy(check), SOON_S, container.log)
    stand_still(container.process)
    try:
        assert not container.healthy(check)
    finally:
        container.process.send_signal(signal.SIGCONT)
    wait_until(lambda: container.healthy(check), SOON_S, container.log)


@pytest.mark.parametrize("service", STARTED)
def test_nothing_runs_as_root_or_may_become_it(farm, service):
    container = farm.engine.container(service)
    status = container.run(["cat", "/proc/1/status", f"/proc/{container.process.pid}/status"], 10)
    told = dict(line.split(":\t", 1) for line in status.stdout.splitlines() if ":\t" in line)
    uid = farm.engine.compose.services[service].user.partition(":")[0]
    assert told["Uid"].split() == [uid] * 4
    assert (told["CapEff"], told["CapBnd"], told["NoNewPrivs"]) == ("0" * 16, "0" * 16, "1")


def test_models_are_read_only_for_those_who_serve_them(farm):
    for service in ("gateway", "triton-cpu"):
        container = farm.engine.container(service)
        assert container.run(["test", "-r", "/models/tiny/config.pbtxt"], 10).returncode == 0
        assert "Read-only" in container.run(["touch", "/models/other"], 10).stderr
    assert "Read-only" in farm.engine.container("gateway").run(["touch", "/opt/other"], 10).stderr


def test_names_lead_to_every_replica_and_only_within_a_network(farm):
    gateway = farm.engine.container("gateway")
    address = farm.engine.address(farm.engine.container("triton-cpu"), "farm")
    assert address in gateway.run(["getent", "ahostsv4", "triton"], 10).stdout
    assert (
        farm.engine.run("export", "triton", entrypoint=("sh", "-c", "getent ahostsv4 $0 || echo unknown"))
        == "unknown\n"
    )


def test_prometheus_finds_the_gateway_once_and_every_triton(farm):
    farm.engine.scale("triton-cpu", 2)
    try:
        wanted = {"gateway": ["up"], "triton": ["up", "up"]}
        found = {}

        def all_up():
            # Targets as they are known, not as they answered: one that is about to be asked counts, too.
            _, text = farm.get("prometheus", 9090, "/api/v1/targets?state=active")
            found.clear()
            for target in json.loads(text)["data"]["activeTargets"]:
                found.setdefault(target["labels"]["job"], []).append(target["health"])
            return found == wanted

        wait_until(all_up, SOON_S, lambda: f"{found}, expected {wanted}")
    finally:
        farm.engine.scale("triton-cpu", 1)


def test_triton_scales_to_three_and_back_under_load_and_nothing_is_lost(farm):
    with students(farm) as pair:
        farm.engine.scale("triton-cpu", 3)
        replicas = farm.engine.containers("triton-cpu")
        farm.engine.wait_healthy("triton-cpu")
        for replica in replicas:
            wait_until(lambda r=replica: served_by(farm, r) > 10, SOON_S, lambda r=replica: f"{r} serves nothing")
        for student in pair:
            student.goes_on()
        stopped = farm.engine.scale("triton-cpu", 1)
        grace_s = farm.engine.compose.services["triton-cpu"].stop_grace_s
        assert [code for code, _ in stopped] == [0, 0]
        assert all(took_s < grace_s for _, took_s in stopped)
    assert [(student.client.stats.sessions, student.client.stats.crops_resent) for student in pair] == [(1, 0)] * 2


def test_a_killed_triton_is_started_again_and_serves(farm):
    replica = farm.engine.container("triton-cpu")
    with students(farm):
        starts = replica.starts
        replica.kill()
        wait_for(lambda: replica.starts > starts)
        farm.engine.wait_healthy("triton-cpu")
    assert served_by(farm, replica) > 0


def test_the_gateway_is_unready_without_a_triton_and_ready_with_one(farm):
    check = farm.engine.compose.services["gateway"].health
    gateway = farm.engine.container("gateway")
    farm.engine.scale("triton-cpu", 0)
    try:
        wait_until(lambda: not gateway.healthy(check), SOON_S, gateway.log)
        status, text = farm.get("gateway", 7002, "/readyz")
        assert (status, "tiny" in text) == (503, True)
    finally:
        farm.engine.scale("triton-cpu", 1)
    farm.engine.wait_healthy("gateway")


def test_a_gateway_told_to_stop_drains_within_its_grace_period_and_students_wait_for_the_next(farm):
    service = farm.engine.compose.services["gateway"]
    drain_s = float(service.environment["TEACHERFARM_DRAIN_S"])
    with students(farm):
        code, took_s = farm.engine.stop("gateway")
        assert code == 0
        assert took_s < drain_s < service.stop_grace_s
        farm.engine.scale("gateway", 1)
        farm.engine.wait_healthy("gateway")


def test_a_killed_gateway_is_started_again_and_students_go_on(farm):
    gateway = farm.engine.container("gateway")
    with students(farm):
        starts = gateway.starts
        gateway.kill()
        wait_for(lambda: gateway.starts > starts)
        farm.engine.wait_healthy("gateway")


def test_keys_are_made_beside_the_running_gateway_and_taken_up_on_sighup(farm):
    key = farm.engine.run("admin", "keys", "create", "other").strip()
    with pytest.raises(Unauthenticated):
        with farm.student(api_key=key) as teacher:
            teacher.label(farm.crops[:ROWS])
    farm.engine.container("gateway").process.send_signal(signal.SIGHUP)

    def works():
        try:
            with farm.student(api_key=key) as teacher:
                return farm.right(teacher.label(farm.crops[:ROWS]), slice(ROWS))
        except Unauthenticated:
            return False

    wait_until(works, SOON_S, farm.engine.container("gateway").log)
    limits = farm.engine.run("admin", PROJECTS, entrypoint=("cat",))
    assert {"[projects.vision]", "[projects.other]"} <= set(limits.splitlines())


def store_metric(farm: Farm, name: str, label: str) -> float:
    page = farm.get("gateway", 7002, "/metrics")[1]
    found = re.findall(rf"^teacherfarm_store_{name}{{.*{label}.*}} (\S+)$", page, flags=re.MULTILINE)
    return sum(map(float, found))


def test_labels_kept_in_redis_outlive_the_gateway_and_may_go(farm):
    with farm.student() as teacher:
        assert farm.right(teacher.label(farm.crops), slice(None))
        redis = 'layer="redis"'
        wait_until(
            lambda: store_metric(farm, "written_total", redis) >= CROPS,
            SOON_S,
            lambda: farm.get("gateway", 7002, "/store")[1],
        )
    farm.engine.stop("gateway")
    farm.engine.scale("gateway", 1)
    farm.engine.wait_healthy("gateway")
    with farm.student() as teacher:
        assert farm.right(teacher.label(farm.crops), slice(None))
    assert store_metric(farm, "hits_total", 'project="vision"') == CROPS
    listed = farm.engine.run("gateway", "labels", "stats", "redis://redis:6379/0")
    assert "project vision, tiny" in listed
    redis = farm.engine.container("redis")
    with students(farm):
        starts = redis.starts
        redis.kill()
        wait_for(lambda: redis.starts > starts)
        farm.engine.wait_healthy("redis")
        wait_for(lambda: farm.get("gateway", 7002, "/readyz") == (200, "ready\n"), SOON_S)


@pytest.mark.parametrize("service", ["redis", "prometheus"])
def test_what_keeps_data_ends_by_itself_when_told_to_and_comes_back(farm, service):
    code, took_s = farm.engine.stop(service)
    assert code == 0
    assert took_s < farm.engine.compose.services[service].stop_grace_s
    farm.engine.scale(service, 1)
    farm.engine.wait_healthy(service)


def test_an_export_that_runs_again_leaves_the_teacher_as_it_is(farm):
    card = farm.engine.volume("models") / "tiny" / "card.json"
    before = card.stat().st_mtime_ns
    command = farm.engine.compose.services["export"].command
    assert "stays as it is" in farm.engine.run("export", *command)
    assert card.stat().st_mtime_ns == before
