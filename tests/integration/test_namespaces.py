"""Three hosts: two students of two projects train at once from one farm, one over TLS, one over CURVE, each over 10 ms
and 1 Gbit/s of its own. Hosts are network namespaces.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from contextlib import ExitStack

import numpy as np
import pytest

from teacherfarm.teacher_server.projects.api_keys import digest_of, make_key
from tests.credentials import CurveFarm, TlsFarm
from tests.farm_process import ROOT, FarmProcess
from tests.integration.training_student import BATCH
from tests.namespaces import CannotMakeNamespaces, Hosts
from tests.real_parts import absent

STEPS = 48
END_S = 60.0
FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())"
SEND = """
import socket, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as connection:
    began_s = time.monotonic()
    connection.sendall(bytes(int(sys.argv[3])))
    connection.shutdown(socket.SHUT_WR)
    connection.recv(1)
    print(time.monotonic() - began_s)
"""
RECEIVE = """
import socket, sys
with socket.create_server((sys.argv[1], 0)) as listening:
    print(listening.getsockname()[1], flush=True)
    connection, _ = listening.accept()
    with connection:
        while connection.recv(1 << 20):
            pass
"""


@pytest.fixture
def hosts():
    with ExitStack() as stack:
        try:
            made = stack.enter_context(Hosts("farm", "one", "two"))
        except CannotMakeNamespaces as error:
            absent(str(error))
        yield made


@pytest.fixture
def projects(tmp_path):
    """A projects file with two projects, and the key of each."""
    keys = {name: make_key() for name in ("birds", "ships")}
    text = "".join(f'[projects.{name}]\nkeys = ["{digest_of(key)}"]\n' for name, key in keys.items())
    (tmp_path / "projects.toml").write_text(text)
    return keys


class TrainingStudent:
    """A student's process on a host; ``end`` gives what it said."""

    def __init__(self, prefix, address, crops, api_key):
        command = [*prefix, sys.executable, "-m", "tests.integration.training_student", address, str(crops), str(STEPS)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TEACHERFARM_API_KEY": api_key}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
        )

    def wait_ready(self):
        assert self._process.stdout.readline() == "ready\n"

    def go(self):
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def end(self):
        said, _ = self._process.communicate(timeout=END_S)
        assert self._process.returncode == 0
        return json.loads(said)

    def kill(self):
        self._process.kill()
        self._process.communicate()


@pytest.mark.timeout(300)  # four processes begin, two of them with torch
def test_students_of_two_projects_train_at_once_over_tls_and_curve(
    hosts, projects, tiny_models, tiny_crops, right_records, tmp_path
):
    links = [hosts.link("farm", "one"), hosts.link("farm", "two")]
    tls, curve = TlsFarm(tmp_path / "tls", links[0].addresses[0]), CurveFarm(tmp_path / "curve", "two")
    np.save(tmp_path / "crops.npy", tiny_crops)
    flags = [*tls.flags, *curve.flags, f"--projects={tmp_path / 'projects.toml'}"]
    with ExitStack() as stack:
        farm = FarmProcess(tmp_path, tiny_models, *flags, host="0.0.0.0", prefix=hosts.on("farm"))
        stack.enter_context(farm)
        by_tls = farm.grpc.replace("0.0.0.0", links[0].addresses[0]) + tls.options()
        by_curve = f"{farm.zmq}&client_key={curve.students['two']}".replace("0.0.0.0", links[1].addresses[0])
        assert by_tls.startswith("grpcs://10.77.")
        students = [
            TrainingStudent(hosts.on("one"), by_tls, tmp_path / "crops.npy", projects["birds"]),
            TrainingStudent(hosts.on("two"), by_curve, tmp_path / "crops.npy", projects["ships"]),
        ]
        for student in students:
            stack.callback(student.kill)
        for student in students:
            student.wait_ready()
        for student in students:
            student.go()
        said = [student.end() for student in students]
        fetch = [*hosts.on("farm"), sys.executable, "-c", FETCH, farm.http.replace("0.0.0.0", "127.0.0.1") + "/metrics"]
        metrics = subprocess.run(fetch, check=True, capture_output=True, text=True).stdout
        log = farm.log()

    num_crops = STEPS * BATCH
    expected = hashlib.sha256(right_records[np.arange(num_crops) % len(tiny_crops)].tobytes()).hexdigest()
    for student in said:
        assert student["labels"] == expected
        assert (student["answered"], student["sessions"]) == (num_crops, 1)
        assert np.mean(student["losses"][-8:]) < np.mean(student["losses"][:8])
        assert student["round_trip_s"] > 0.010
    one, two = said
    assert max(one["began_s"], two["began_s"]) < min(one["ended_s"], two["ended_s"]), "one trained after the other"
    for project in projects:
        assert f'teacherfarm_labels_total{{project="{project}",teacher="tiny"}} {num_crops:.1f}' in metrics
    assert "Traceback" not in log
    for link in links:
        link.close()
        assert link.carried_bytes[1] > tiny_crops[0].nbytes * num_crops, "the crops took another way"
    for secret in (*projects.values(), curve.secret_file.read_text().split('"')[3]):
        assert secret not in log


def test_the_links_between_hosts_are_as_slow_as_they_say(hosts):
    """Otherwise the other test shows less than it says."""
    link = hosts.link("farm", "one")
    farm_address, num_bytes = link.addresses[0], 40_000_000
    receiving = subprocess.Popen(
        [*hosts.on("farm"), sys.executable, "-c", RECEIVE, farm_address], stdout=subprocess.PIPE, text=True
    )
    try:
        port = receiving.stdout.readline().strip()
        send = [*hosts.on("one"), sys.executable, "-c", SEND, farm_address, port, str(num_bytes)]
        took_s = float(subprocess.run(send, check=True, capture_output=True, text=True).stdout)
        receiving.communicate(timeout=END_S)
    finally:
        receiving.kill()
        receiving.communicate()
    assert took_s > num_bytes * 8 / 1e9
    with pytest.raises(subprocess.CalledProcessError):
        # No way leads from one student to the other, or out.
        subprocess.run([*hosts.on("two"), sys.executable, "-c", SEND, farm_address, port, "1"], check=True, stderr=-3)
