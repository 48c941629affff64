"""docs/FARM.md's farm: a gateway that asks students for certificates or CURVE keys, Triton on another machine, students
elsewhere.
"""

import os
import signal
import subprocess
import sys
import uuid

import numpy as np
import pytest

from teacherfarm.protos.faults import HandshakeFailed
from teacherfarm.student import TeacherClient
from tests.e2e.compose_file import read_compose_file
from tests.e2e.conftest import TEACHER
from tests.e2e.container import run
from tests.e2e.local_engine import LocalEngine, wait_until

ACCESS = "/etc/teacherfarm"


@pytest.fixture(scope="module")
def machine(real_parts):
    """An address of this machine's that nobody else uses: the second machine's."""
    name = f"tf{uuid.uuid4().hex[:6]}"
    address = f"10.127.{os.getpid() % 250}.{uuid.uuid4().int % 250 + 1}"
    run("ip", "link", "add", name, "type", "bridge")
    try:
        run("ip", "addr", "add", f"{address}/32", "dev", name)
        run("ip", "link", "set", name, "up")
        yield address
    finally:
        run("ip", "link", "del", name)


@pytest.fixture(scope="module")
def gateway(checkout, machine, tmp_path_factory):
    """The first machine, its Triton left out: all labels come from the second one."""
    for words in (["server", "127.0.0.1", "localhost"], ["student", "alice"]):
        subprocess.run(["bash", "deploy/certificates.sh", *words], cwd=checkout, check=True, capture_output=True)
    environment = {
        "COMPOSE_PROFILES": "",
        "FARM_TEACHER": TEACHER,
        "FARM_TRITON": f"dns://triton:8001,{machine}:8001",
        "FARM_ALLOW_PLAINTEXT": "false",
        "FARM_CURVE_KEY": f"{ACCESS}/curve/farm.secret",
        "FARM_CURVE_CLIENTS": f"{ACCESS}/students",
        **{f"FARM_{name}_PORT": "0" for name in ("GRPC", "ZMQ", "HTTP", "PROMETHEUS", "GRAFANA")},
    }
    files = [checkout / name for name in ("deploy/compose.tls.yml", "deploy/compose.mutual-tls.yml")]
    compose = read_compose_file(checkout / "docker-compose.yml", *files, environment=environment)
    with LocalEngine(compose, tmp_path_factory.mktemp("gateway")) as engine:
        engine.create_networks()
        engine.run("admin", "-c", f"mkdir -p {ACCESS}/students", entrypoint=("sh",))
        engine.run("admin", "keys", "curve", "--out", f"{ACCESS}/curve", "--name", "farm")
        engine.up()
        yield engine


@pytest.fixture(scope="module")
def tritons(gateway, machine, checkout, tmp_path_factory):
    """The second machine: the models brought by tar, and its own compose file."""
    models = checkout / "deploy" / "triton-machine" / "models"
    models.mkdir()
    packed = gateway.volume("models")
    subprocess.run(f"tar -C {packed} -c . | tar -C {models} -x", shell=True, check=True)
    compose = read_compose_file(models.parent / "docker-compose.yml", environment={"TRITON_BIND": machine})
    with LocalEngine(compose, tmp_path_factory.mktemp("tritons")) as engine:
        engine.up()
        gateway.wait_healthy("gateway")
        yield engine


@pytest.fixture(scope="module")
def curve_keys(tmp_path_factory, gateway):
    """A student's pair, whose public half was brought to the farm; and the farm's public key."""
    keys = tmp_path_factory.mktemp("keys")
    command = [sys.executable, "-m", "teacherfarm.cli", "keys", "curve", "--out", str(keys), "--name", "alice"]
    subprocess.run(command, check=True, capture_output=True)
    gateway.run(
        "admin",
        "-c",
        f"cat > {ACCESS}/students/alice.public",
        entrypoint=("sh",),
        stdin=(keys / "alice.public").read_text(),
    )
    gateway.container("gateway").process.send_signal(signal.SIGHUP)
    told = gateway.run("admin", f"{ACCESS}/curve/farm.public", entrypoint=("cat",))
    server_key = told.partition('public-key = "')[2].partition('"')[0]
    return server_key, keys / "alice.secret"


def right(teacher, models):
    crops = np.random.default_rng(5).integers(0, 256, (64, 32, 32, 3), np.uint8)
    with TeacherClient(f"local://{models}") as local:
        expected = local.label(crops).log_probabilities.astype(np.float32)
    return np.allclose(teacher.label(crops).log_probabilities.astype(np.float32), expected, atol=0.02)


def test_a_student_with_a_certificate_gets_labels_from_the_other_machine(gateway, tritons, checkout):
    secrets = checkout / "deploy" / "secrets"
    files = f"ca={secrets}/ca.crt&cert={secrets}/students/alice.crt&key={secrets}/students/alice.key"
    with TeacherClient(f"grpcs://localhost:{gateway.published('gateway', 7000)}?{files}") as teacher:
        assert right(teacher, gateway.volume("models"))


def test_a_student_without_a_certificate_is_refused(gateway, tritons, checkout):
    address = f"grpcs://localhost:{gateway.published('gateway', 7000)}?ca={checkout}/deploy/secrets/ca.crt"
    with pytest.raises(HandshakeFailed, match="certificate"):
        with TeacherClient(address) as teacher:
            teacher.label(np.zeros((1, 32, 32, 3), np.uint8))


def test_a_student_on_the_allow_list_gets_labels_from_the_other_machine(gateway, tritons, curve_keys):
    server_key, secret = curve_keys
    port = gateway.published("gateway", 7001)
    with TeacherClient(f"zmq://127.0.0.1:{port}?server_key={server_key}&client_key={secret}") as teacher:
        assert right(teacher, gateway.volume("models"))


def test_the_gateway_waits_for_a_machine_that_went_away_and_takes_it_back(gateway, tritons, curve_keys):
    check = gateway.compose.services["gateway"].health
    container = gateway.container("gateway")
    tritons.scale("triton", 0)
    wait_until(lambda: not container.healthy(check), 60, container.log)
    tritons.scale("triton", 1)
    wait_until(lambda: container.healthy(check), 60, container.log)


def test_certificates_are_kept(checkout, gateway):
    done = subprocess.run(
        ["bash", "deploy/certificates.sh", "student", "alice"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "is there already" in done.stdout
