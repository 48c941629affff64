"""``teacherfarm doctor ADDRESS`` against real servers, with each thing on the way to one wrong once."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest

from teacherfarm import cli
from teacherfarm.doctor.speaker import who_speaks
from tests.credentials import Authority, CurveFarm, TlsFarm
from tests.farm_process import ROOT, FarmProcess
from tests.triton_server import TritonServer

BRIEF = "--seconds=0"
"""No measuring: what concerns the address alone."""


@pytest.fixture
def doctor(capsys, monkeypatch):
    """``doctor(target, *flags)``: its exit status, findings by check, and figures."""
    monkeypatch.delenv("TEACHERFARM_API_KEY", raising=False)

    def look(*arguments: str):
        status = cli.main(["doctor", *arguments, "--json"])
        report = json.loads(capsys.readouterr().out)
        found = {finding["check"]: finding for finding in report["findings"]}
        assert status == (1 if report["level"] == "problem" else 0)
        return status, found, report["figures"]

    return look


def problems(found):
    return [check for check, finding in found.items() if finding["level"] == "problem"]


def test_a_good_farm_and_its_link(doctor, tiny_farm, wire):
    status, found, figures = doctor(getattr(tiny_farm, wire), "--seconds=3", "--student-rate=1")
    assert status == 0
    assert problems(found) == []
    assert found["protocol"]["found"] == wire
    assert found["encryption"]["found"] == "none, and none is needed within one machine"
    assert found["API key"]["found"].endswith("asks for none")
    assert found["teacher tiny"]["found"].startswith("ready")
    assert 0 < figures["round_trip_s"] < 1
    assert figures["up_bytes_per_s"] > 1e6
    assert figures["raw_crops_per_s"] == pytest.approx(figures["up_bytes_per_s"] / (32 * 32 * 3))
    assert figures["jpeg_crops_per_s"] > 0
    assert figures["labels_per_s"] > 10
    assert 0 <= figures["teachers_busy"] <= 1
    assert found["sizing"]["level"] == "ok"


def test_too_few_teachers_for_a_student(doctor, start_scripted):
    # 200 crops/s, and nothing on the way that is slower.
    farm = start_scripted("--deaf", "--seconds-per-crop=0.005", "--largest-batch=8")
    _, found, figures = doctor(farm.zmq, "--seconds=4", "--student-rate=350")
    assert 150 < figures["labels_per_s"] < 220
    assert figures["teachers_busy"] > 0.9
    assert found["bound"]["found"].startswith("the teachers: 1 of them")
    assert found["sizing"]["level"] == "warning"
    assert found["sizing"]["do"] == "1 more teacher would feed this student"


class NarrowLink(threading.Thread):
    """Forwards one connection after the other to ``place``; to the server it lets so many bytes/s through."""

    def __init__(self, place: str, bytes_per_s: float) -> None:
        super().__init__(daemon=True)
        host, _, port = place.rpartition(":")
        self._far = (host, int(port))
        self._bytes_per_s = bytes_per_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.place = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def run(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._far)
            for source, sink, rate in ((near, far, self._bytes_per_s), (far, near, 1e12)):
                # Small buffers: what they hold would look like bandwidth.
                source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
                threading.Thread(target=self._forward, args=(source, sink, rate), daemon=True).start()

    def close(self):
        self._listener.close()

    def _forward(self, source, sink, rate):
        try:
            while data := source.recv(1 << 14):
                sink.sendall(data)
                # As long as these bytes take on a link of this rate.
                time.sleep(len(data) / rate)
        except OSError:
            return
        finally:
            sink.close()


def test_a_link_that_is_the_bound(doctor, start_scripted):
    farm = start_scripted("--deaf", "--size=224", "--largest-batch=8")
    link = NarrowLink(farm.zmq.partition("://")[2], 12e6)
    link.start()
    try:
        _, found, figures = doctor(f"zmq://{link.place}", "--seconds=4")
    finally:
        link.close()
    assert figures["up_bytes_per_s"] < 14e6
    assert found["bound"]["found"].startswith("the link:")
    assert found["bound"]["level"] == "warning"
    assert 'codec="jpeg"' in found["bound"]["do"]


def test_every_scheme_on_every_port_is_told_where_it_belongs(doctor, tiny_farm):
    belongs = {"zmq": "takes zmq://", "grpc": "takes grpc://", "http": "is an HTTP port"}
    for wire, place in tiny_farm.addresses.items():
        for scheme in ("zmq", "grpc", "grpcs", "triton"):
            if scheme != wire and (scheme, wire) != ("triton", "grpc"):
                status, found, _ = doctor(f"{scheme}://{place.partition('://')[2]}", BRIEF)
                assert (status, problems(found)) == (1, ["protocol"]), (scheme, wire)
                assert belongs[wire] in found["protocol"]["do"]


def test_nobody_there(doctor):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    status, found, _ = doctor(f"zmq://127.0.0.1:{port}", BRIEF)
    assert (status, problems(found)) == (1, ["port"])
    assert "teacherfarm serve" in found["port"]["do"]
    status, found, _ = doctor("grpc://no-such-host.invalid:7000", BRIEF)
    assert (status, problems(found)) == (1, ["name"])


def test_another_programs_port(doctor):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        status, found, _ = doctor(f"grpc://{place}", BRIEF)
    assert (status, problems(found)) == (1, ["protocol"])
    assert "no teacherfarm server listens there" in found["protocol"]["do"]


def test_tls_and_what_may_be_wrong_with_it(doctor, tiny_models, tmp_path):
    tls = TlsFarm(tmp_path / "tls", days=5)
    stranger = Authority(tmp_path / "other").ca
    with FarmProcess(tmp_path, tiny_models, *tls.mutual_flags) as farm:
        place = farm.grpc.partition("://")[2]
        assert who_speaks("127.0.0.1", int(place.rpartition(":")[2])) == "tls"
        status, found, _ = doctor(f"grpcs://{place}{tls.options(mutual=True)}", BRIEF)
        assert (status, problems(found)) == (0, [])
        assert found["certificate"]["level"] == "warning"
        assert "expires in 5 days" in found["certificate"]["found"]
        assert found["protocol"]["found"] == "tls"
        _, found, _ = doctor(f"grpcs://{place}{tls.options()}", BRIEF)
        assert problems(found) == ["handshake"]
        assert "asks students for certificates" in found["handshake"]["found"]
        _, found, _ = doctor(f"grpcs://{place}?ca={stranger}", BRIEF)
        assert problems(found) == ["handshake"]
        assert "by none of the authorities" in found["handshake"]["found"]
        _, found, _ = doctor(f"grpc://{place}", BRIEF)
        assert "grpcs://" in found["protocol"]["do"]


def test_curve_and_what_may_be_wrong_with_it(doctor, tiny_models, tmp_path):
    curve = CurveFarm(tmp_path / "curve", "me")
    with FarmProcess(tmp_path, tiny_models, *curve.flags) as farm:
        place = farm.zmq.partition("?")[0]
        status, found, figures = doctor(f"{place}{curve.options('me')}", "--seconds=1")
        assert (status, problems(found)) == (0, [])
        assert found["encryption"]["found"] == "CURVE"
        assert figures["labels_per_s"] > 0
        _, found, _ = doctor(place, BRIEF)
        assert problems(found) == ["protocol"]
        assert "?server_key=KEY" in found["protocol"]["do"]
        unlisted = curve.stranger("stranger")
        _, found, _ = doctor(f"{place}?server_key={curve.public_key}&client_key={unlisted}", BRIEF)
        assert problems(found) == ["handshake"]
        assert "not on the farm's allow-list" in found["handshake"]["found"]


def test_keys(doctor, tiny_models, tmp_path, monkeypatch):
    projects = tmp_path / "projects.toml"
    command = [sys.executable, "-m", "teacherfarm.cli", "keys", "create", "p", "--projects", str(projects)]
    key = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()[-1]
    with FarmProcess(tmp_path, tiny_models, f"--projects={projects}") as farm:
        status, found, _ = doctor(farm.zmq, BRIEF)
        assert (status, problems(found)) == (1, ["API key"])
        assert found["API key"]["found"].startswith("no key was given")
        monkeypatch.setenv("TEACHERFARM_API_KEY", "mistyped")
        _, found, _ = doctor(farm.zmq, BRIEF)
        assert found["API key"]["found"].startswith("a key was given and is not accepted")
        assert "teacherfarm keys create" in found["API key"]["do"]
        monkeypatch.setenv("TEACHERFARM_API_KEY", key)
        status, found, _ = doctor(farm.grpc, BRIEF)
        assert (status, found["API key"]["found"]) == (0, "accepted")


def test_a_key_that_nobody_asked_for(doctor, tiny_farm, monkeypatch):
    monkeypatch.setenv("TEACHERFARM_API_KEY", "whatever")
    _, found, _ = doctor(tiny_farm.zmq, BRIEF)
    assert found["API key"]["found"] == "one was given, but this farm asks for none"


def test_a_teacher_that_cannot_be_served(doctor, tiny_models, tmp_path):
    models = shutil.copytree(tiny_models, tmp_path / "models")
    shutil.copytree(models / "tiny", models / "broken")
    card = json.loads((models / "broken" / "card.json").read_text())
    (models / "broken" / "card.json").write_text(json.dumps({**card, "name": "broken", "artifact_digest": "0" * 64}))
    with FarmProcess(tmp_path, models) as farm:
        status, found, _ = doctor(farm.zmq, BRIEF)
        assert (status, problems(found)) == (1, ["teacher broken"])
        assert "failed" in found["teacher broken"]["found"]
        status, found, _ = doctor(farm.http)
        assert (status, problems(found)) == (1, ["ready"])
        assert "broken" in found["ready"]["found"]
        status, found, _ = doctor(farm.zmq, BRIEF, "--teacher=broken")
        assert "--teacher" in problems(found)


def test_a_status_page(doctor, tiny_farm):
    status, found, _ = doctor(tiny_farm.http)
    assert (status, problems(found)) == (0, [])
    assert found["teacher tiny"]["found"].startswith("ready")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert problems(doctor(f"http://127.0.0.1:{port}")[1]) == ["status page"]


def test_a_label_store_that_is_gone_is_a_warning(doctor, start_farm):
    farm = start_farm("--store", "redis://127.0.0.1:1/0")
    status, found, _ = doctor(farm.http)
    assert (status, found["ready"]["level"], found["kept labels"]["level"]) == (0, "ok", "warning")
    assert "without kept labels in redis: redis://127.0.0.1:1/0: gone" in found["kept labels"]["found"]


def test_one_alternative_of_two_is_down(doctor, tiny_farm):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    status, found, figures = doctor(f"zmq://127.0.0.1:{port},{tiny_farm.zmq}", "--seconds=1")
    assert status == 1
    assert found["teacher tiny"]["level"] == "ok"
    assert figures["labels_per_s"] > 0


def test_a_triton_server(doctor, triton_repository, tmp_path):
    with TritonServer(triton_repository, tmp_path) as triton:
        status, found, figures = doctor(f"triton://{triton.grpc}", "--seconds=1.5")
        assert (status, problems(found)) == (0, [])
        assert found["teacher tiny"]["found"].startswith("ready")
        assert "bandwidth" not in found
        assert figures["labels_per_s"] > 0
