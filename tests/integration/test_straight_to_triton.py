"""Students of ``triton://``: one real Triton server, no gateway, and what the client promises all the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import urllib.request

import numpy as np
import psutil
import pytest

from teacherfarm.export import export_teacher
from teacherfarm.protos.faults import (
    BadTeacher,
    DigestMismatch,
    NoHead,
    Overloaded,
    SessionLost,
    Starved,
    UnknownTeacher,
)
from teacherfarm.student import LabelSpec, TeacherClient, Timeouts
from teacherfarm.student.listing import list_teachers
from teacherfarm.student.transports import triton_transport
from tests.farm_process import ROOT, wait_for
from tests.integration.test_restart import BATCH, EPOCH, Killer, batches, run_epoch

SLOW = """
# A teacher batch takes a tenth of a second.
import time

answer = TritonPythonModel._run

def answer_slowly(self, names, crops):
    time.sleep(0.1)
    return answer(self, names, crops)

TritonPythonModel._run = answer_slowly
"""


@pytest.fixture
def own_repository(triton_repository, tmp_path):
    """A copy of the repository that a test may alter."""
    return shutil.copytree(triton_repository, tmp_path / "models")


@pytest.fixture
def impatient(monkeypatch):
    """Heartbeats come often and partitions are found soon, so that a test need not wait for them."""
    monkeypatch.setattr(triton_transport, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(triton_transport, "SILENCE_S", 0.5)


def export_python(source, repository, **options):
    return export_teacher(source, repository, triton_backend="python", **options)


def pending(server):
    """Inferences that wait in Triton, by its own count."""
    with urllib.request.urlopen(server.metrics, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("nv_inference_pending_request_count{"))


@pytest.mark.parametrize(
    "spec",
    [LabelSpec(), LabelSpec(top_k=3, temperature=2.0), LabelSpec(outputs=("labels", "embedding"))],
    ids=["dense", "top-k", "features"],
)
def test_labels_are_those_of_the_teacher_in_process(triton, triton_repository, tiny_crops, spec):
    with TeacherClient(f"local://{triton_repository}", spec=spec) as local:
        right = local.label(tiny_crops)
    with TeacherClient(f"triton://{triton.grpc}", spec=spec) as teacher:
        labels = teacher.label(tiny_crops)
        assert teacher.card.classes[0] == "plane"
        assert teacher.stats.crops_resent == 0
    assert labels.records.tobytes() == right.records.tobytes()


def test_killed_and_restarted_in_an_epoch_it_gives_the_same_labels(start_triton, tiny_crops, right_records):
    server = start_triton()
    with TeacherClient(f"triton://{server.grpc}") as client:
        killer = Killer(client, [BATCH * 2, BATCH * 9], server.restart)
        killer.start()
        run_epoch(client, batches(tiny_crops), right_records)
        killer.finish()
        stats = client.stats
        assert stats.sessions == 3
        assert stats.crops_resent > 0, "no kill found a crop in flight: the test tested nothing"
        assert (stats.crops_asked, stats.crops_answered, stats.crops_failed) == (EPOCH * BATCH, EPOCH * BATCH, 0)


def test_the_other_server_takes_over(start_triton, tiny_crops, right_records):
    servers = [start_triton(), start_triton()]
    with TeacherClient(",".join(f"triton://{server.grpc}" for server in servers)) as client:

        def kill_the_one_in_use():
            mine = psutil.Process().net_connections("tcp")
            ports = {c.raddr.port for c in mine if c.status == psutil.CONN_ESTABLISHED}
            [used] = [server for server in servers if int(server.grpc.rpartition(":")[2]) in ports]
            used.kill()

        killer = Killer(client, [BATCH * 4], kill_the_one_in_use)
        killer.start()
        run_epoch(client, batches(tiny_crops), right_records)
        killer.finish()
        assert client.stats.sessions == 2


def test_a_short_silence_is_waited_for_and_a_long_one_ends_the_session(impatient, start_triton, tiny_crops):
    server = start_triton()
    with TeacherClient(f"triton://{server.grpc}") as client:
        right = client.label(tiny_crops[:32]).records
        server.pause()
        answer = client.submit(tiny_crops[:32])
        with pytest.raises(TimeoutError):
            answer.result(0.2)
        server.resume()
        assert answer.result(20).records.tobytes() == right.tobytes()
        assert client.stats.sessions == 1
        server.pause()
        answer = client.submit(tiny_crops[:32])
        wait_for(lambda: client.stats.crops_resent == 32)
        server.resume()
        assert answer.result(20).records.tobytes() == right.tobytes()
        assert client.stats.sessions == 2


def test_another_teacher_after_a_restart_is_a_fault_and_not_a_label(own_repository, start_triton, tiny_crops):
    server = start_triton(repository=own_repository)
    with TeacherClient(f"triton://{server.grpc}") as client:
        client.label(tiny_crops[:4])
        server.kill()
        export_python("tests.tiny_teacher:make_other", own_repository, force=True)
        server.start()
        with pytest.raises(DigestMismatch, match="another teacher than the one this run was started with"):
            client.label(tiny_crops[:4])


def test_another_teacher_loaded_in_its_place_is_found_out(impatient, own_repository, start_triton, tiny_crops):
    server = start_triton("--model-control-mode=poll", "--repository-poll-secs=1", repository=own_repository)
    with TeacherClient(f"triton://{server.grpc}") as client:
        client.label(tiny_crops[:4])
        export_python("tests.tiny_teacher:make_other", own_repository, force=True)
        with pytest.raises(DigestMismatch, match="another teacher than the one this run was started with"):
            wait_for(lambda: client.label(tiny_crops[:4]) is None)


def test_a_pinned_digest_that_is_not_triton_s(triton):
    with pytest.raises(DigestMismatch):
        TeacherClient(f"triton://{triton.grpc}", digest="0" * 64).connect()


def test_never_more_in_triton_than_its_batcher_can_use(own_repository, start_triton, tiny_crops):
    with (own_repository / "tiny" / "1" / "model.py").open("a") as model:
        model.write(SLOW)
    server = start_triton("--metrics-interval-ms=10", repository=own_repository)
    with TeacherClient(f"triton://{server.grpc}", window=1024) as client:
        answers = [client.submit(tiny_crops[:64]) for _ in range(16)]
        most = 0.0
        while not all(answer.done() for answer in answers):
            most = max(most, pending(server))
        # One teacher batch runs, one waits, one travels; sixteen were asked for.
        assert 1 <= most <= 3


def test_a_full_queue_in_triton_is_waited_for(own_repository, start_triton, tiny_crops, right_records, monkeypatch):
    refusals = []

    def overloaded(*arguments, **named):
        refusals.append(Overloaded(*arguments, **named))
        return refusals[-1]

    monkeypatch.setattr(triton_transport, "Overloaded", overloaded)
    # One student alone keeps below any queue: as many crops as several would send.
    monkeypatch.setattr(triton_transport, "BATCHES_IN_FLIGHT", 8)
    with (own_repository / "tiny" / "1" / "model.py").open("a") as model:
        model.write(SLOW)
    config = own_repository / "tiny" / "config.pbtxt"
    queue = "max_queue_delay_microseconds: 0 default_queue_policy { max_queue_size: 1 }"
    config.write_text(config.read_text().replace("max_queue_delay_microseconds: 0", queue))
    server = start_triton(repository=own_repository)
    with TeacherClient(f"triton://{server.grpc}") as client:
        answers = [client.submit(tiny_crops[first : first + 64]) for first in range(0, 512, 64)]
        for first, answer in zip(range(0, 512, 64), answers, strict=True):
            assert answer.result(20).records.tobytes() == right_records[first : first + 64].tobytes()
        assert client.stats.sessions == 1
    assert refusals, "the queue was never full: the test tested nothing"


def test_forked_workers_beside_an_open_connection(triton, triton_repository):
    address = f"triton://{triton.grpc}"
    program = [sys.executable, "-m", "tests.integration.two_epochs", "fork", address, str(triton_repository)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, f"exit code {done.returncode}:\n{done.stdout}\n{done.stderr}"
    assert done.stdout.count("12 batches right") == 4


def test_a_model_whose_process_died_is_waited_for_until_triton_is_restarted(start_triton, tiny_crops):
    server = start_triton()
    timeouts = Timeouts(answer_s=1.0)
    with TeacherClient(f"triton://{server.grpc}", on_starved="raise", timeouts=timeouts) as client:
        right = client.label(tiny_crops[:8]).records
        [model] = psutil.Process(server.pid).children()
        model.kill()
        with pytest.raises(Starved):
            client.label(tiny_crops[:8])
        server.restart()
        wait_for(lambda: client.stats.sessions > 1)
        assert client.label(tiny_crops[:8]).records.tobytes() == right.tobytes()


def test_what_is_served_is_listed(own_repository, start_triton):
    export_python("tests.tiny_teacher:make_other", own_repository, name="other")
    config = own_repository / "other" / "config.pbtxt"
    foreign = shutil.copytree(own_repository / "other", own_repository / "foreign") / "config.pbtxt"
    lines = config.read_text().replace('name: "other"', 'name: "foreign"').splitlines()
    foreign.write_text("\n".join(line for line in lines if not line.startswith("parameters")))
    server = start_triton(repository=own_repository)
    found = {teacher.name: teacher for teacher in list_teachers(f"triton://{server.grpc}")}
    assert sorted(found) == ["foreign", "other", "tiny"]
    assert found["tiny"].card.num_classes == 10
    assert (found["tiny"].state, found["foreign"].state) == ("ready", "failed")
    assert isinstance(found["foreign"].fault, BadTeacher)
    with pytest.raises(UnknownTeacher, match="foreign, other, tiny: say which"):
        TeacherClient(f"triton://{server.grpc}").connect()
    with pytest.raises(UnknownTeacher, match="nobody"):
        TeacherClient(f"triton://{server.grpc}", "nobody").connect()
    with pytest.raises(BadTeacher, match="export it again"):
        TeacherClient(f"triton://{server.grpc}", "foreign").connect()
    with TeacherClient(f"triton://{server.grpc}", "other") as client:
        assert client.card.teacher_digest == found["other"].teacher_digest


def test_nobody_there_is_listed_as_such():
    with pytest.raises(SessionLost, match=r"triton://127\.0\.0\.1:1"):
        list_teachers("triton://127.0.0.1:1", timeouts=Timeouts(connect_s=2.0))


def test_a_card_that_is_not_the_model_s_is_refused(own_repository, start_triton):
    config = own_repository / "tiny" / "config.pbtxt"
    [line] = [line for line in config.read_text().splitlines() if 'key: "teacher_digest"' in line]
    config.write_text(config.read_text().replace(line, line.replace('string_value: "', 'string_value: "0')))
    server = start_triton(repository=own_repository)
    with pytest.raises(DigestMismatch, match=r"config\.pbtxt"):
        TeacherClient(f"triton://{server.grpc}").connect()


def test_jpeg_is_decoded_before_triton_gets_it(triton, triton_repository, tiny_crops):
    smooth = np.repeat(np.repeat(tiny_crops[:4, ::8, ::8], 8, axis=1), 8, axis=2)
    with TeacherClient(f"triton://{triton.grpc}", codec="jpeg") as teacher:
        labels = teacher.label(smooth)
    with TeacherClient(f"local://{triton_repository}", codec="jpeg") as local:
        assert labels.records.tobytes() == local.label(smooth).records.tobytes()


def test_reductions_come_through_and_the_classifier_is_refused(own_repository, start_triton, tiny_crops):
    export_python("tests.tiny_teacher:make", own_repository, name="tapped", taps=["block@2x2", "block@attention"])
    server = start_triton(repository=own_repository)
    outputs = ("labels", "block@2x2", "block@attention")
    with TeacherClient(f"triton://{server.grpc}", "tapped", spec=LabelSpec(outputs=outputs)) as teacher:
        labels = teacher.label(tiny_crops[:3])
        with pytest.raises(NoHead, match=r"with triton://.* has no classifiers to give: ask a farm"):
            teacher.head()
        assert np.array_equal(teacher.label(tiny_crops[:3]).records, labels.records)
        assert teacher.stats.sessions == 1
    with TeacherClient(f"local://{own_repository}", "tapped", spec=LabelSpec(outputs=outputs)) as teacher:
        local = teacher.label(tiny_crops[:3])
    for name in outputs[1:]:
        assert np.allclose(labels.output(name), local.output(name), atol=2e-3)
