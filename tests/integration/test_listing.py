"""``teacherfarm teachers``: what a farm says of itself before any session, on both wires."""

import shutil

import pytest

from teacherfarm import cli
from teacherfarm.protos.faults import DamagedArtifact, SessionLost
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.student.listing import list_teachers
from teacherfarm.student.settings import Timeouts
from tests.farm_process import FarmProcess


def test_a_farm_lists_its_teachers_with_their_cards(tiny_farm, tiny_models, wire):
    (teacher,) = list_teachers(getattr(tiny_farm, wire))
    card = TeacherCard.from_json((tiny_models / "tiny" / "card.json").read_text())
    assert (teacher.name, teacher.state, teacher.fault) == ("tiny", "ready", None)
    assert teacher.card == card
    assert teacher.teacher_digest == card.teacher_digest
    assert len(teacher.artifact_digest) == 64


def test_a_teacher_that_cannot_be_served_is_listed_with_its_fault(tiny_models, tmp_path, capsys):
    models = tmp_path / "models"
    shutil.copytree(tiny_models, models)
    shutil.copytree(models / "tiny", models / "torn")
    card = (models / "torn" / "card.json").read_text()
    (models / "torn" / "card.json").write_text(card.replace('"name": "tiny"', '"name": "torn"'))
    (models / "torn" / "1" / "model.onnx").write_bytes(b"half a file")
    with FarmProcess(tmp_path, models) as farm:
        ready, torn = sorted(list_teachers(farm.zmq), key=lambda teacher: teacher.name)
        assert cli.main(["teachers", farm.grpc]) == 1
    assert (ready.state, torn.state, torn.card) == ("ready", "failed", None)
    assert isinstance(torn.fault, DamagedArtifact)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["TEACHER", "STATE", "DIGEST", "CLASSES", "INPUT", "PRECISION", "OTHER", "OUTPUTS"]
    assert ["tiny", "ready", ready.teacher_digest[:12], "10", "softmax"] in [line.split()[:5] for line in printed]
    assert printed[-1].startswith("torn: DamagedArtifact: ")


def test_nobody_there_is_said_at_once_and_the_next_address_is_tried(tiny_farm, wire):
    nobody = f"{wire}://127.0.0.1:1"
    with pytest.raises(SessionLost, match="Is a server running there"):
        list_teachers(nobody, timeouts=Timeouts(connect_s=5))
    assert [teacher.name for teacher in list_teachers(f"{nobody},{getattr(tiny_farm, wire)}")] == ["tiny"]


def test_whoever_listed_is_no_stranger_any_more(start_scripted, wire):
    farm = start_scripted("--max-strangers=1")
    for _ in range(3):
        assert [teacher.name for teacher in list_teachers(getattr(farm, wire))] == ["scripted"]


def test_a_folder_is_no_farm(tmp_path):
    with pytest.raises(ValueError, match="is a folder, not a farm"):
        list_teachers(f"local://{tmp_path}")
