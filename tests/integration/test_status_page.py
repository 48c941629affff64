"""What a monitor and a person see of a running server: pages, metrics that count, gauges that come back down."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack

from teacherfarm.student import TeacherClient
from teacherfarm.teacher_server.frontends.status_frontend import MOST_VISITORS
from tests.farm_process import wait_for
from tests.integration.some_student import SomeStudent
from tests.scripted_farm import make_crops


def test_pages_of_a_ready_server(tiny_farm):
    assert tiny_farm.get("/healthz") == (200, "alive\n")
    assert tiny_farm.get("/readyz") == (200, "ready\n")
    status, page = tiny_farm.get("/teachers")
    (teacher,) = json.loads(page)
    with TeacherClient(tiny_farm.zmq) as client:
        digest = client.card.teacher_digest
    assert (status, teacher) == (200, {"name": "tiny", "teacher_digest": digest, "state": "ready"})
    status, page = tiny_farm.get("/")
    assert status == 200
    for shown in ("tiny", "ready", tiny_farm.zmq, tiny_farm.grpc, digest[:16]):
        assert shown in page
    status, page = tiny_farm.get("/nowhere")
    assert (status, page) == (404, "not here: try /, /metrics, /healthz, /readyz, /teachers, /endpoints or /store\n")


def test_metrics_count_and_gauges_come_back_down(wire, start_scripted):
    farm = start_scripted("--seconds-per-crop=0.005", "--largest-batch=4")
    assert farm.metric("teacherfarm_teacher_ready", teacher="scripted") == 1
    crops = make_crops(100, seed=1)
    with TeacherClient(getattr(farm, wire)) as one, TeacherClient(getattr(farm, wire)) as two:
        wait_for(lambda: farm.metric("teacherfarm_sessions", wire=wire) == 2)
        answers = [client.submit(crops) for client in (one, two)]
        wait_for(lambda: farm.metric("teacherfarm_waiting_crops", teacher="scripted") > 40)
        assert farm.metric("teacherfarm_admitted_crops") > 40
        for answer in answers:
            answer.result(30)
    wait_for(lambda: farm.metric("teacherfarm_sessions") == 0)
    assert farm.metric("teacherfarm_labels_total", teacher="scripted") == 200
    assert farm.metric("teacherfarm_waiting_crops") == farm.metric("teacherfarm_admitted_crops") == 0
    assert farm.metric("teacherfarm_received_bytes_total", wire=wire) >= crops.nbytes
    assert farm.metric("teacherfarm_sent_bytes_total", wire=wire) >= 200 * 20
    assert farm.metric("teacherfarm_run_seconds_count") == farm.metric("teacherfarm_batch_crops_count") > 0


def test_a_student_killed_without_a_word_leaves_nothing_behind_on_grpc(start_scripted):
    """TCP tells gRPC; a ROUTER socket only finds out that nothing was heard for a minute."""
    farm = start_scripted("--seconds-per-crop=0.02", "--largest-batch=4")
    with SomeStudent(farm.grpc, num_batches=50) as student:
        assert farm.metric("teacherfarm_sessions") == 1
        student.process.kill()
        wait_for(lambda: farm.metric("teacherfarm_sessions") == 0)
        wait_for(lambda: farm.metric("teacherfarm_admitted_crops") == 0)
        wait_for(lambda: farm.metric("teacherfarm_waiting_crops") == 0)


def test_visitors_that_say_nothing_are_few_and_harm_no_student(start_scripted):
    farm = start_scripted()
    host, _, port = farm.http.removeprefix("http://").rpartition(":")
    with ExitStack() as stack:
        visitors = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(MOST_VISITORS)]
        one_too_many = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
        assert one_too_many.recv(1) == b""
        crops = make_crops(8, seed=1)
        with TeacherClient(farm.zmq) as teacher:
            assert len(teacher.label(crops)) == 8
        visitors[0].sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert visitors[0].recv(1 << 16).startswith(b"HTTP/1.0 200")
    wait_for(lambda: _is_alive(farm))


def _is_alive(farm):
    try:
        return farm.get("/healthz")[0] == 200
    except OSError:
        return False
