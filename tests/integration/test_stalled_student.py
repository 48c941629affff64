"""A student that stops taking its answers: the server's memory stays bounded and a healthy student notices nothing."""

from __future__ import annotations

import signal
from contextlib import ExitStack

import pytest

from teacherfarm.protos.messages import GetTeacher
from teacherfarm.protos.wire import PAYLOAD_BYTES, encode_header
from teacherfarm.student import TeacherClient
from tests.farm_process import wait_for
from tests.integration.some_student import SomeStudent
from tests.raw_student import hello, raw_student, slice_header
from tests.scripted_farm import make_crops, right_classes
from tests.standstill import stand_still

SIZE, CLASSES = 112, 20_000
CROP_BYTES, LABEL_BYTES = SIZE * SIZE * 3, CLASSES * 2
MEMORY_MB = 16
SLICE = 8
MIB = 1 << 20
MOST_GROWTH = (3 * MEMORY_MB + 32) * MIB
"""Crops, labels on their way and what the allocator keeps; a server without credit passes it several times over."""


@pytest.fixture
def farm(start_scripted):
    """Large labels, a small budget: what a stalled student may hold is far less than what it could make."""
    return start_scripted(
        f"--size={SIZE}", f"--num-classes={CLASSES}", f"--largest-batch={SLICE}", f"--memory-mb={MEMORY_MB}"
    )


def check_healthy(teacher, num_batches=6, *, size=SIZE, num_classes=CLASSES):
    for seed in range(num_batches):
        crops = make_crops(SLICE, seed, size)
        assert (teacher.label(crops).top1 == right_classes(crops, num_classes)).all()
    assert teacher.stats.sessions == 1


def test_a_peer_that_never_reads(wire, farm):
    """It sends far more than its window, and takes nothing: it is told to wait, or dropped, and never hoarded for."""
    (other_wire,) = {"zmq", "grpc"} - {wire}
    pixels = make_crops(SLICE, 1, SIZE).tobytes()
    with TeacherClient(getattr(farm, wire)) as healthy, TeacherClient(getattr(farm, other_wire)) as stranger:
        check_healthy(healthy)
        check_healthy(stranger)
        before = farm.rss_bytes()
        most = 0
        with raw_student(getattr(farm, wire), deaf=True) as peer:
            peer.send(hello())
            for batch_id in range(600):
                if not peer.send(slice_header(batch_id, SLICE), pixels, timeout_s=2.0):
                    break
                if batch_id % 50 == 0:
                    check_healthy(healthy, 1)
                    most = max(most, farm.rss_bytes())
            check_healthy(healthy)
            check_healthy(stranger)
            most = max(most, farm.rss_bytes())
        grown = most - before
        assert grown < MOST_GROWTH, f"grew by {grown / MIB:.0f} MiB"
        assert batch_id * SLICE * LABEL_BYTES > 2 * MOST_GROWTH, "it asked too little to show anything"


def test_a_student_that_is_stopped_gets_everything_later(wire, farm):
    with TeacherClient(getattr(farm, wire)) as healthy:
        check_healthy(healthy)
        before = farm.rss_bytes()
        with SomeStudent(getattr(farm, wire), num_batches=60, size=SIZE, num_classes=CLASSES) as student:
            stand_still(student.process)
            check_healthy(healthy, 20)
            grown = farm.rss_bytes() - before
            assert grown < MOST_GROWTH, f"grew by {grown / MIB:.0f} MiB"
            student.process.send_signal(signal.SIGCONT)
            student.finish()
        check_healthy(healthy)


def test_a_peer_that_asks_without_end_and_never_reads_loses_its_session(wire, farm):
    """Answers that need no credit must not pile up either."""
    with TeacherClient(getattr(farm, wire)) as healthy:
        check_healthy(healthy, 1)
        before = farm.rss_bytes()
        with raw_student(getattr(farm, wire), deaf=True) as peer:
            peer.send(hello())
            wait_for(lambda: farm.metric("teacherfarm_sessions") == 2)
            question = encode_header(GetTeacher(name="scripted"))
            while farm.metric("teacherfarm_sessions") == 2:
                for _ in range(1000):
                    peer.send(question, timeout_s=2.0)
            check_healthy(healthy, 2)
            assert farm.rss_bytes() - before < MOST_GROWTH


def test_peers_that_ask_for_the_classifier_and_never_read_share_one_copy(wire, start_scripted):
    """Its pieces need no credit: what is held for those who do not take them must not grow with their number."""
    head_mb, num_peers = 24, 8
    farm = start_scripted(f"--head-mb={head_mb}")
    with TeacherClient(getattr(farm, wire)) as healthy, ExitStack() as peers:
        check_healthy(healthy, 1, size=32, num_classes=10)
        before = farm.rss_bytes()
        for _ in range(num_peers):
            peer = peers.enter_context(raw_student(getattr(farm, wire), deaf=True))
            peer.send(hello())
            for first in range(0, head_mb * MIB, PAYLOAD_BYTES):
                peer.send(encode_header(GetTeacher(name="scripted", head=True, head_from=first)))
        wait_for(lambda: farm.metric("teacherfarm_sent_bytes_total", wire=wire) >= num_peers * head_mb * MIB)
        check_healthy(healthy, 2, size=32, num_classes=10)
        grown = farm.rss_bytes() - before
        assert grown < 3 * head_mb * MIB, f"grew by {grown / MIB:.0f} MiB"
