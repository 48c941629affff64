"""A student whose server dies in the middle of an epoch ends up with the very labels of an undisturbed run."""

from __future__ import annotations

import random
import threading
import time

import numpy as np
import pytest

from teacherfarm.export import export_teacher
from teacherfarm.protos.faults import DigestMismatch, GoingAway
from teacherfarm.student import TeacherClient, Timeouts
from teacherfarm.student.labelled_loader import LabelledLoader
from tests.farm_process import FarmProcess, wait_for
from tests.scripted_farm import make_crops, right_classes

BATCH, EPOCH = 32, 24


def batches(tiny_crops):
    """One epoch: batches of crops in an order in which every crop comes more than once."""
    order = np.random.default_rng(11).integers(0, len(tiny_crops), (EPOCH, BATCH))
    return [{"crops": tiny_crops[rows], "rows": rows} for rows in order]


class Killer(threading.Thread):
    """Does ``act`` each time the client has got so many answers more, and keeps what went wrong.

    Each act ends a session: before the next one the client has opened another.
    """

    def __init__(self, client, moments, act):
        super().__init__(daemon=True)
        self.client, self.moments, self.act = client, moments, act
        self.done, self.error = 0, None

    def run(self):
        try:
            for moment in self.moments:
                while self.client.stats.crops_answered < moment or self.client.stats.sessions <= self.done:
                    time.sleep(0.0005)
                self.act()
                self.done += 1
        except BaseException as error:
            self.error = error

    def finish(self):
        self.join(60)
        assert self.error is None
        assert self.done == len(self.moments)


def run_epoch(client, epoch, right_records):
    """An epoch's labels, bitwise right and in order."""
    seen = 0
    for batch, labels in LabelledLoader(epoch, client, lambda batch: batch["crops"]):
        assert batch is epoch[seen]
        assert labels.records.tobytes() == right_records[batch["rows"]].tobytes(), f"batch {seen}"
        assert (labels.weight == 1).all()
        seen += 1
    assert seen == len(epoch)


def moments(seed):
    """Three seeded moments within an epoch, in crops answered."""
    generator = random.Random(seed)
    return sorted(generator.randrange(0, (EPOCH - 10) * BATCH) for _ in range(3))


def test_killed_and_restarted_epoch_gives_the_same_labels(wire, start_farm, tiny_crops, right_records):
    farm = start_farm("--threads=1", "--max-batch=1")
    epoch = batches(tiny_crops)
    with TeacherClient(getattr(farm, wire), "tiny") as client:
        killer = Killer(client, moments(seed=wire), farm.restart)
        killer.start()
        run_epoch(client, epoch, right_records)
        killer.finish()
        stats = client.stats
        assert stats.sessions == 4
        assert stats.crops_resent > 0, "no kill found a crop in flight: the test tested nothing"
        assert (stats.crops_asked, stats.crops_answered, stats.crops_failed) == (EPOCH * BATCH, EPOCH * BATCH, 0)


@pytest.mark.parametrize("wires", [("zmq", "zmq"), ("grpc", "grpc"), ("zmq", "grpc")], ids="-".join)
def test_the_other_address_takes_over(wires, start_farm, tiny_crops, right_records):
    farms = [start_farm("--threads=1", "--max-batch=1") for _ in wires]
    addresses = ",".join(getattr(farm, wire) for farm, wire in zip(farms, wires, strict=True))
    with TeacherClient(addresses) as client:
        first = next(farm for farm in farms if farm.metric("teacherfarm_sessions") == 1)
        killer = Killer(client, [BATCH * 4], first.kill)
        killer.start()
        run_epoch(client, batches(tiny_crops), right_records)
        killer.finish()
        assert client.stats.sessions == 2
        (second,) = (farm for farm in farms if farm is not first)
        assert second.metric("teacherfarm_labels_total") > 0


def test_another_teacher_after_the_restart_is_a_fault_and_not_a_label(wire, tmp_path, tiny_crops):
    export_teacher("tests.tiny_teacher:make", tmp_path / "models")
    with FarmProcess(tmp_path, tmp_path / "models") as farm, TeacherClient(getattr(farm, wire), "tiny") as client:
        client.label(tiny_crops[:4])
        export_teacher("tests.tiny_teacher:make_other", tmp_path / "models", force=True)
        farm.restart()
        with pytest.raises(DigestMismatch, match=r"another teacher than the one this run was started with"):
            client.label(tiny_crops[:4])


def test_sigterm_answers_what_was_accepted_and_says_so(wire, start_scripted):
    farm = start_scripted("--seconds-per-crop=0.004", "--largest-batch=8")
    batches = [make_crops(16, seed) for seed in range(16)]
    with TeacherClient(getattr(farm, wire)) as client:
        answers = [client.submit(crops) for crops in batches]
        # What has not arrived when the signal comes is refused, and would wait for another server.
        pixel_bytes = sum(crops.nbytes for crops in batches)
        wait_for(lambda: farm.metric("teacherfarm_received_bytes_total", wire=wire) == pixel_bytes)
        farm.signal(15)
        wait_for(lambda: farm.get("/readyz") == (503, "draining\n"))
        with pytest.raises(GoingAway, match="draining"):
            TeacherClient(getattr(farm, wire), timeouts=Timeouts(connect_s=0.3)).connect()
        for crops, answer in zip(batches, answers, strict=True):
            assert (answer.result(30).top1 == right_classes(crops, 10)).all()
        assert client.stats.crops_resent == 0
        assert farm.wait() == 0
    assert "Traceback" not in farm.log()
