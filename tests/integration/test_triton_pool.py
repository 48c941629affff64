"""A farm whose teachers run on real Triton servers, which are killed, stopped, replaced and added while it is asked."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from teacherfarm.protos.faults import PoisonBatch, TeacherFailed
from teacherfarm.student import TeacherClient
from tests.farm_process import FarmProcess, wait_for
from tests.triton_server import TritonServer

KILLS, RAISES = 254, 255
"""First byte of a crop at which the misbehaving repository's model kills its server, or raises."""
WELL_BEHAVED = 250
MISBEHAVE = f"""
_execute = TritonPythonModel.execute


def execute(self, requests):
    for request in requests:
        firsts = pb_utils.get_input_tensor_by_name(request, "crops").as_numpy()[:, 0, 0, 0]
        if (firsts == {KILLS}).any():
            os.kill(os.getppid(), 9)
            os._exit(1)
        if (firsts == {RAISES}).any():
            raise ValueError("this model cannot look at such a crop")
    return _execute(self, requests)


TritonPythonModel.execute = execute
"""


class Asking(threading.Thread):
    """A student that asks the same crops over and over, several batches at a time, and compares every answer."""

    def __init__(self, address: str, crops: np.ndarray, records: np.ndarray, rows: int = 32) -> None:
        super().__init__(daemon=True)
        self.client = TeacherClient(address, "tiny")
        self.crops, self.records, self.rows = crops, records, rows
        self.answered, self.wrong, self.error = 0, 0, None
        self.stopping = threading.Event()

    def run(self):
        try:
            with self.client as teacher:
                pending = []
                number = 0
                while not self.stopping.is_set() or pending:
                    while len(pending) < 4 and not self.stopping.is_set():
                        first = number % (len(self.crops) // self.rows) * self.rows
                        number += 1
                        pending.append((first, teacher.submit(self.crops[first : first + self.rows])))
                    first, future = pending.pop(0)
                    labels = future.result(60)
                    self.wrong += labels.records.tobytes() != self.records[first : first + self.rows].tobytes()
                    self.answered += 1
        except BaseException as error:
            self.error = error

    def wait_for_more(self, batches: int = 8) -> None:
        """Until so many more batches were answered."""
        due = self.answered + batches
        wait_for(lambda: self.answered >= due or self.error is not None, 60)
        assert self.error is None, self.error

    def finish(self) -> None:
        """Answer what was asked, and check that every label was right, asked once, in one session."""
        self.stopping.set()
        self.join(60)
        assert not self.is_alive()
        assert self.error is None, self.error
        assert self.answered
        assert self.wrong == 0
        assert self.client.stats.sessions == 1
        assert self.client.stats.crops_resent == 0


@contextmanager
def asking(address: str, crops: np.ndarray, records: np.ndarray) -> Iterator[Asking]:
    student = Asking(address, crops, records)
    student.start()
    try:
        student.wait_for_more()
        yield student
    finally:
        student.stopping.set()
    student.finish()


@pytest.fixture
def start_gateway(triton_repository: Path, tmp_path: Path) -> Iterator[Callable[..., FarmProcess]]:
    """``start_gateway("HOST:PORT,...", *flags)``: a farm of the tiny teacher, run by Triton."""
    farms = []

    def start(endpoints: str, *flags: str, models: Path = triton_repository) -> FarmProcess:
        farm = FarmProcess(tmp_path, models, "--triton", endpoints, *flags)
        farms.append(farm)
        return farm.start()

    yield start
    for farm in farms:
        farm.stop()


@pytest.fixture(scope="session")
def misbehaving(triton_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same teacher by its digests, whose model kills or raises when a crop asks for it."""
    models = tmp_path_factory.mktemp("misbehaving")
    shutil.copytree(triton_repository / "tiny", models / "tiny")
    with (models / "tiny" / "1" / "model.py").open("a") as model:
        model.write(MISBEHAVE)
    return models


def states(farm: FarmProcess) -> dict[str, float]:
    """Which endpoint serves, by the metrics."""
    found = {}
    for line in farm.get("/metrics")[1].splitlines():
        if line.startswith("teacherfarm_endpoint_up{"):
            found[line.partition('endpoint="')[2].partition('"')[0]] = float(line.rpartition(" ")[2])
    return found


def test_labels_served_by_triton_are_those_of_onnx_runtime(triton, start_gateway, wire, tiny_crops, right_records):
    farm = start_gateway(triton.grpc)
    assert farm.get("/readyz")[0] == 200
    with TeacherClient(getattr(farm, wire), "tiny") as teacher:
        assert teacher.label(tiny_crops).records.tobytes() == right_records.tobytes()
    assert states(farm) == {triton.grpc: 1}


def test_a_killed_endpoint_costs_no_label_and_is_back_after_its_restart(
    start_triton, start_gateway, tiny_crops, right_records
):
    one, other = start_triton(), start_triton()
    farm = start_gateway(f"{one.grpc},{other.grpc}")
    with asking(farm.zmq, tiny_crops, right_records) as student:
        for victim in (one, other):
            wait_for(lambda: states(farm) == {one.grpc: 1, other.grpc: 1})
            victim.kill()
            student.wait_for_more()
            wait_for(lambda victim=victim: states(farm)[victim.grpc] == 0)
            assert farm.get("/readyz")[0] == 200
            student.wait_for_more()
            victim.start()
        wait_for(lambda: states(farm) == {one.grpc: 1, other.grpc: 1})


def test_students_wait_while_no_endpoint_lives_and_go_on_when_one_is_back(
    start_triton, start_gateway, tiny_crops, right_records
):
    server = start_triton()
    farm = start_gateway(server.grpc)
    with asking(farm.grpc, tiny_crops, right_records) as student:
        server.kill()
        wait_for(lambda: farm.get("/readyz")[0] == 503)
        _code, words = farm.get("/readyz")
        assert f"tiny is waiting ({server.grpc} is unreachable, " in words
        # Who comes now may wait in line, too.
        with TeacherClient(farm.zmq, "tiny") as newcomer:
            late = newcomer.submit(tiny_crops[:16])
            server.start()
            assert late.result(60).records.tobytes() == right_records[:16].tobytes()
        student.wait_for_more()
        assert farm.get("/readyz")[0] == 200


def test_a_gateway_starts_before_its_triton(start_triton, start_gateway, tiny_crops, right_records):
    server = start_triton()
    server.kill()
    farm = start_gateway(server.grpc)
    code, words = farm.get("/readyz")
    assert (code, "tiny is loading" in words, "cannot connect: Connection refused" in words) == (503, True, True), words
    server.start()
    with TeacherClient(farm.zmq, "tiny") as teacher:
        assert teacher.label(tiny_crops[:16]).records.tobytes() == right_records[:16].tobytes()
    assert farm.get("/readyz")[0] == 200


def test_a_stopped_endpoint_is_found_by_the_deadline(start_triton, start_gateway, tiny_crops, right_records):
    one, other = start_triton(), start_triton()
    farm = start_gateway(f"{one.grpc},{other.grpc}", "--triton-deadline-s=1")
    with asking(farm.zmq, tiny_crops, right_records) as student:
        one.pause()
        wait_for(lambda: states(farm) == {one.grpc: 0, other.grpc: 1})
        student.wait_for_more()
        assert f"Triton endpoint {one.grpc} is unreachable for tiny: no answer within 1 s" in farm.log()
        one.resume()
        wait_for(lambda: states(farm) == {one.grpc: 1, other.grpc: 1})
        student.wait_for_more()


def test_another_teacher_of_the_same_name_is_kept_out_by_its_digest(
    start_triton, start_gateway, triton_repository, tmp_path, tiny_crops, right_records
):
    from teacherfarm.export import export_teacher

    export_teacher("tests.tiny_teacher:make_other", tmp_path / "others", triton_backend="python", name="tiny")
    right, wrong = start_triton(), start_triton(repository=tmp_path / "others")
    farm = start_gateway(f"{right.grpc},{wrong.grpc}")
    with TeacherClient(farm.zmq, "tiny") as teacher:
        assert teacher.label(tiny_crops).records.tobytes() == right_records.tobytes()
        expected = teacher.card.teacher_digest
    assert states(farm) == {right.grpc: 1, wrong.grpc: 0}
    assert farm.get("/readyz")[0] == 200, "the teacher is served"
    found = {e["address"]: (e["teacher"], e["state"]) for e in json.loads(farm.get("/endpoints")[1])}
    assert found == {right.grpc: ("tiny", "serving"), wrong.grpc: ("tiny", "refused")}
    assert "teacher_digest" in farm.get("/")[1]
    [line] = [line for line in farm.log().splitlines() if wrong.grpc in line and "serves another" in line]
    assert "refused for tiny: serves another 'tiny': teacher_digest " in line
    assert f"expected {expected}" in line


def test_another_teacher_in_the_place_of_a_checked_one_never_labels(
    start_triton, start_gateway, tmp_path, tiny_crops, right_records
):
    from teacherfarm.export import export_teacher

    export_teacher("tests.tiny_teacher:make_other", tmp_path / "others", triton_backend="python", name="tiny")
    right = start_triton()
    farm = start_gateway(right.grpc)
    with TeacherClient(farm.zmq, "tiny") as teacher:
        assert teacher.label(tiny_crops).records.tobytes() == right_records.tobytes()
        right.kill()
        with TritonServer(tmp_path / "others", tmp_path, ports=right.ports):
            late = teacher.submit(tiny_crops)
            wait_for(lambda: "is refused, serves another 'tiny'" in farm.get("/readyz")[1])
            assert not late.done()
        right.start()
        assert late.result(60).records.tobytes() == right_records.tobytes()


def test_a_model_that_answers_otherwise_in_spite_of_its_digests_is_kept_out(
    start_triton, start_gateway, triton_repository, tmp_path
):
    from teacherfarm.export import export_teacher

    export_teacher("tests.tiny_teacher:make_other", tmp_path / "others", triton_backend="python", name="tiny")
    config = (triton_repository / "tiny" / "config.pbtxt").read_text()
    (tmp_path / "others" / "tiny" / "config.pbtxt").write_text(config)
    server = start_triton(repository=tmp_path / "others")
    farm = start_gateway(server.grpc)
    code, words = farm.get("/readyz")
    assert code == 503
    assert f"{server.grpc} is refused, teacher 'tiny' (fp32, cpu) differs from its golden answers" in words


@pytest.mark.parametrize(("what", "fault"), [(RAISES, TeacherFailed), (KILLS, PoisonBatch)])
def test_a_slice_that_breaks_triton_faults_alone(
    what, fault, start_triton, start_gateway, misbehaving, tiny_crops, right_records
):
    server = start_triton(repository=misbehaving)
    stopping = threading.Event()

    def keep_alive():
        # What Docker's restart policy does.
        while not stopping.wait(0.05):
            if server.process is not None and server.process.poll() is not None:
                server.stop()
                server.start()

    keeper = threading.Thread(target=keep_alive, daemon=True)
    keeper.start()
    try:
        farm = start_gateway(server.grpc)
        good = tiny_crops[tiny_crops[:, 0, 0, 0] < WELL_BEHAVED]
        records = right_records[tiny_crops[:, 0, 0, 0] < WELL_BEHAVED]
        bad = good[:2].copy()
        bad[:, 0, 0, 0] = what
        with asking(farm.zmq, good, records) as student, TeacherClient(farm.grpc, "tiny") as teacher:
            culprit = teacher.submit(bad)
            with pytest.raises(TeacherFailed) as caught:
                culprit.result(90)
            assert type(caught.value) is fault
            student.wait_for_more()
    finally:
        stopping.set()
        keeper.join(60)
