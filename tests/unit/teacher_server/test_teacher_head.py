"""A teacher's classifier at the server: in pieces, once for each connection, and only what the card describes."""

import dataclasses
import hashlib

import numpy as np
import pytest

from teacherfarm.protos.faults import DamagedArtifact, NoHead, NotAllowed, Overloaded, Unauthenticated
from teacherfarm.protos.messages import GetTeacher, SliceFault, Teacher
from teacherfarm.teacher_server.farm.model_directory import read_model_directory
from teacherfarm.teacher_server.projects.project import Allowance
from tests.on_loop import on_loop
from tests.unit.teacher_server.scripted import CARD, ScriptedFarm, keyed
from tests.unit.teacher_server.test_conversation import HELLO, Student
from tests.unit.teacher_server.test_model_directory import write

HEAD = bytes(range(100))
HEADED = dataclasses.replace(CARD, has_head=True, head_digest=hashlib.sha256(HEAD).hexdigest())


def farm_of(folder, **options) -> ScriptedFarm:
    farm = ScriptedFarm(folder, HEADED, **options)
    (folder / "scripted" / "head.safetensors").write_bytes(HEAD)
    farm.gateway.payload_bytes = 64
    return farm


def ask(first: int = 0, **changes) -> GetTeacher:
    return GetTeacher(name="scripted", head=True, head_from=first, **changes)


@pytest.mark.parametrize("greeted", [False, True])
@on_loop
async def test_it_comes_in_pieces_of_a_payload(tmp_path, greeted):
    async with farm_of(tmp_path) as farm:
        student = Student(farm)
        if greeted:
            student.say(HELLO)
        [first] = student.say(ask())
        [second] = student.say(ask(64))
        assert [(type(a), a.name, a.head_bytes) for a in (first, second)] == [(Teacher, "scripted", 100)] * 2
        assert first.artifact_digest == farm.gateway.artifact_digest(farm.farm.lane("scripted"))
        assert student.heard[-2][1] + student.heard[-1][1] == HEAD
        assert not student.conversation.finished


@on_loop
async def test_one_connection_takes_it_once(tmp_path):
    async with farm_of(tmp_path) as farm:
        student = Student(farm)
        student.say(HELLO)
        student.say(ask())
        student.say(ask())
        assert student.faults() == [Overloaded]
        student.say(ask(10**6))
        assert student.faults() == [Overloaded] * 2
        assert not student.conversation.finished
        other = Student(farm)
        assert [type(value) for value in other.say(ask())] == [Teacher]


@on_loop
async def test_all_are_given_views_of_one_copy(tmp_path):
    async with farm_of(tmp_path) as farm:
        (one, size), (other, _) = (farm.gateway.read_head(farm.farm.lane("scripted"), 0) for _ in range(2))
        assert (bytes(one), size) == (HEAD[:64], 100)
        assert np.shares_memory(np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8))


@on_loop
async def test_a_teacher_without_one_says_why(tmp_path):
    async with ScriptedFarm(tmp_path, dataclasses.replace(CARD, headless="it has no classes")) as farm:
        student = Student(farm)
        [answer] = student.say(ask())
        assert isinstance(answer, SliceFault)
        assert type(answer.fault) is NoHead
        assert "it has no classes" in str(answer.fault)


@on_loop
async def test_a_file_that_is_gone_is_a_fault_of_this_question(tmp_path):
    async with farm_of(tmp_path) as farm:
        (tmp_path / "scripted" / "head.safetensors").unlink()
        student = Student(farm)
        student.say(HELLO)
        student.say(ask())
        assert student.faults() == [DamagedArtifact]
        assert not student.conversation.finished


@on_loop
async def test_it_is_only_for_projects_with_a_key(tmp_path):
    async with farm_of(tmp_path, projects=keyed(a=Allowance())) as farm:
        student = Student(farm)
        student.say(ask(api_key="stolen"))
        assert student.faults() == [Unauthenticated]
        assert [type(value) for value in Student(farm).say(ask(api_key="key of a"))] == [Teacher]


@on_loop
async def test_it_is_only_for_projects_that_may_use_the_teacher(tmp_path):
    async with farm_of(tmp_path, projects=keyed(a=Allowance(teachers=("another",)), b=Allowance())) as farm:
        greeted = Student(farm)
        greeted.say(dataclasses.replace(HELLO, api_key="key of b"))
        for student in (Student(farm), greeted):
            student.say(ask(api_key="key of a"))
            assert student.faults() == [NotAllowed]
        assert not any(payload == HEAD[:64] for _, payload in greeted.heard)


def test_a_teacher_whose_classifier_is_not_the_cards_is_not_served(tmp_path):
    good, gone, altered = (write(tmp_path / name, HEADED, name=name) for name in ("good", "gone", "other"))
    (good / "head.safetensors").write_bytes(HEAD)
    (altered / "head.safetensors").write_bytes(HEAD[::-1])
    found = {teacher.name: teacher for teacher in read_model_directory(tmp_path)}
    assert found["good"].fault is None
    assert found["good"].read_head(90, 64) == (HEAD[90:], 100)
    for name, folder in (("gone", gone), ("other", altered)):
        assert type(found[name].fault) is DamagedArtifact
        assert f"{folder}/head.safetensors is not the classifier" in str(found[name].fault)
