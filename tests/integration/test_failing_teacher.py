"""Crops that break the teacher fault alone; who shared a teacher batch with them is answered (guarantees 1 and 4)."""

from __future__ import annotations

import pytest

from teacherfarm.protos.faults import PoisonBatch, TeacherFailed
from teacherfarm.student import TeacherClient
from tests.farm_process import wait_for
from tests.scripted_farm import KILLS, RAISES, asking_for, make_crops, right_classes

SLICE = 2


@pytest.mark.parametrize(("what", "fault"), [(RAISES, TeacherFailed), (KILLS, PoisonBatch)])
def test_bad_crops_fault_alone(what, fault, wire, start_scripted, tmp_path):
    held_by = tmp_path / "held"
    farm = start_scripted(f"--held-by={held_by}", "--largest-batch=32")
    bad_ones = {3, 11}
    batches = [asking_for(what, SLICE, n) if n in bad_ones else make_crops(SLICE, n) for n in range(16)]
    stranger_batches = [make_crops(SLICE, 100 + n) for n in range(4)]
    (other_wire,) = {"zmq", "grpc"} - {wire}
    with TeacherClient(getattr(farm, wire)) as teacher, TeacherClient(getattr(farm, other_wire)) as stranger:
        # While the first slice is held all others queue up, and share the next teacher batch.
        held_by.touch()
        first = teacher.submit(make_crops(SLICE, 1000))
        wait_for(lambda: farm.metric("teacherfarm_busy_slot_seconds_total") > 0)
        answers = [teacher.submit(crops) for crops in batches]
        stranger_answers = [stranger.submit(crops) for crops in stranger_batches]
        num_waiting = SLICE * (len(answers) + len(stranger_answers))
        wait_for(lambda: farm.metric("teacherfarm_waiting_crops") == num_waiting)
        held_by.unlink()
        for number, answer in enumerate(answers):
            if number in bad_ones:
                with pytest.raises(TeacherFailed) as caught:
                    answer.result(30)
                assert type(caught.value) is fault
            else:
                assert (answer.result(30).top1 == right_classes(batches[number], 10)).all()
        for crops, answer in zip(stranger_batches, stranger_answers, strict=True):
            assert (answer.result(30).top1 == right_classes(crops, 10)).all()
        assert len(first.result(30)) == SLICE
        assert (teacher.label(batches[0]).top1 == right_classes(batches[0], 10)).all()
        assert teacher.stats.sessions == stranger.stats.sessions == 1
        assert teacher.stats.crops_failed == SLICE * len(bad_ones)
    answered_slices = len(batches) - len(bad_ones) + len(stranger_batches) + 2
    assert farm.metric("teacherfarm_batch_crops_count") < answered_slices, "nothing shared a teacher batch"
    assert farm.metric("teacherfarm_faults_total", fault=fault.__name__) == len(bad_ones)
