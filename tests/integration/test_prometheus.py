"""A real Prometheus watches a live farm: every panel of the dashboard and every rule finds its data."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from teacherfarm.protos.faults import Unauthenticated
from teacherfarm.student import TeacherClient
from tests.farm_process import ROOT, FarmProcess, wait_for
from tests.prometheus_server import PrometheusServer, find_program
from tests.scripted_farm import make_crops
from tests.triton_server import TritonServer
from tools.dashboard import DASHBOARD

BATCH = 16
DATA_S = 60.0
OF_ENDPOINTS = ("teacherfarm_endpoint_up", "nv_")
"""Metrics that only a farm with Triton servers has; see test_a_farm_with_triton_servers."""


class Student(threading.Thread):
    """Asks the same crops over and over and waits for each batch: hungry all the time."""

    def __init__(self, address: str, key: str, teacher: str):
        super().__init__(daemon=True)
        self.client = TeacherClient(address, teacher, api_key=key)
        self.stopping, self.error = threading.Event(), None

    def run(self):
        try:
            with self.client as teacher:
                # New crops each time: kept labels would leave the teacher nothing to do.
                for seed in itertools.count():
                    if self.stopping.is_set():
                        return
                    teacher.label(make_crops(BATCH, seed))
        except BaseException as error:
            self.error = error

    def end(self):
        self.stopping.set()
        self.join(20)
        assert self.error is None, self.error


def make_key(project, file):
    command = [sys.executable, "-m", "teacherfarm.cli", "keys", "create", project, "--projects", str(file)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def watched(tmp_path_factory, tiny_models):
    """A farm of two projects with three students, one refused stranger, and a Prometheus that watches it."""
    find_program("prometheus")
    folder = tmp_path_factory.mktemp("watched")
    projects = folder / "projects.toml"
    keys = {project: make_key(project, projects) for project in ("heavy", "light")}
    with FarmProcess(folder, tiny_models, f"--projects={projects}", f"--store=lmdb:{folder / 'kept'}") as farm:
        with pytest.raises(Unauthenticated), TeacherClient(farm.zmq, api_key="not a key"):
            pass
        students = [
            Student(farm.zmq, keys["heavy"], "tiny"),
            Student(farm.zmq, keys["heavy"], "tiny"),
            Student(farm.grpc, keys["light"], "tiny"),
        ]
        for student in students:
            student.start()
        with PrometheusServer(folder, {"gateway": [urlsplit(farm.http).netloc]}) as prometheus:
            yield prometheus, farm
        for student in students:
            student.end()


def expressions():
    """Every query of the dashboard, by panel and legend."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield f"{panel['title']}: {target['legendFormat']}", target["expr"]


def as_grafana_asks(expression):
    for name, value in (("$teacher", ".*"), ("$project", ".*"), ("$__rate_interval", "30s")):
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


def check_panels(prometheus, chosen):
    """Each of these queries gets data before long."""
    for title, expression in chosen:
        question = as_grafana_asks(expression)
        try:
            wait_for(lambda question=question: prometheus.query(question), DATA_S)
        except AssertionError as error:
            raise AssertionError(f"no data for {title}: {question}") from error


def check_rules(prometheus):
    """Each rule was evaluated by Prometheus itself, without an error."""

    def groups():
        return prometheus.ask("rules")["groups"]

    wait_for(lambda: all(rule["health"] != "unknown" for group in groups() for rule in group["rules"]), DATA_S)
    rules = [rule for group in groups() for rule in group["rules"]]
    assert len(rules) > 15
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []


def test_every_panel_shows_something(watched):
    prometheus, _ = watched
    chosen = [(title, query) for title, query in expressions() if not any(name in query for name in OF_ENDPOINTS)]
    assert len(chosen) > 25
    check_panels(prometheus, chosen)


def test_every_rule_is_evaluated(watched):
    prometheus, _ = watched
    check_rules(prometheus)
    wait_for(lambda: prometheus.query("teacherfarm:teachers_missing"), DATA_S)
    firing = {sample["alertname"] for sample, _ in prometheus.query('ALERTS{alertstate="firing"}')}
    assert firing == set()


def test_figures_are_those_of_the_farm(watched):
    prometheus, farm = watched
    wait_for(lambda: prometheus.value("sum(teacherfarm_sessions)") == 3)
    for wire, sessions in (("zmq", 2), ("grpc", 1)):
        assert prometheus.value(f'teacherfarm_sessions{{wire="{wire}"}}') == sessions
    # Students that do nothing but wait say so, project by project.
    wait_for(lambda: len(prometheus.query("teacherfarm_student_stall_ratio > 0.5")) == 2, DATA_S)
    wait_for(lambda: len(prometheus.query("teacherfarm_student_wanted_crops_per_second > 0")) == 2, DATA_S)
    # Two students of one project ask the same crops at the same time; the other project's are its own.
    wait_for(lambda: prometheus.value('teacherfarm_joined_total{project="heavy"}') > 0, DATA_S)
    assert prometheus.value('teacherfarm_joined_total{project="light"}') == 0
    assert prometheus.value('teacherfarm_refusals_total{reason="key"}') == 1
    assert 0 < prometheus.value("teacherfarm:busy:ratio") <= 1
    assert prometheus.value("teacherfarm_slots") == farm.metric("teacherfarm_slots") > 0
    shares = prometheus.query(as_grafana_asks(dict(expressions())["Share per project: {{project}}"]))
    assert {labels["project"] for labels, _ in shares} == {"heavy", "light"}
    assert sum(share for _, share in shares) == pytest.approx(1, abs=1e-6)


def test_a_farm_with_triton_servers(triton_repository, tmp_path):
    """What is shown of endpoints, and what is seen of one that dies."""
    find_program("prometheus")
    with ExitStack() as stack:
        one, other = (stack.enter_context(TritonServer(triton_repository, tmp_path)) for _ in range(2))
        farm = stack.enter_context(FarmProcess(tmp_path, triton_repository, "--triton", f"{one.grpc},{other.grpc}"))
        student = Student(farm.zmq, "", "tiny")
        student.start()
        stack.callback(student.end)
        targets = [urlsplit(server.metrics).netloc for server in (one, other)]
        prometheus = stack.enter_context(
            PrometheusServer(tmp_path, {"gateway": [urlsplit(farm.http).netloc], "triton": targets})
        )
        chosen = [(title, query) for title, query in expressions() if any(name in query for name in OF_ENDPOINTS)]
        assert len(chosen) > 3
        check_panels(prometheus, chosen)
        wait_for(lambda: prometheus.value("sum(teacherfarm_endpoint_up)") == 2, DATA_S)
        other.kill()
        gone = f'teacherfarm_endpoint_up{{endpoint="{other.grpc}"}}'
        wait_for(lambda: prometheus.value(gone) == 0, DATA_S)
        wait_for(lambda: prometheus.value("teacherfarm_backends") == 1, DATA_S)
        for alert in ("EndpointDown", "TritonUnreachable"):
            wait_for(lambda alert=alert: prometheus.query(f'ALERTS{{alertname="{alert}"}}'), DATA_S)
        assert prometheus.query('ALERTS{alertname="TeacherWithoutBackend"}') == []


def test_a_farm_that_dies_is_noticed(tmp_path, tiny_models):
    find_program("prometheus")
    with FarmProcess(tmp_path, tiny_models) as farm:
        with PrometheusServer(tmp_path, {"gateway": [urlsplit(farm.http).netloc]}) as prometheus:
            wait_for(lambda: prometheus.value('up{job="gateway"}') == 1)
            farm.kill()
            wait_for(lambda: prometheus.value('up{job="gateway"}') == 0)
            wait_for(lambda: prometheus.query('ALERTS{alertname="GatewayUnreachable", alertstate="pending"}'))
