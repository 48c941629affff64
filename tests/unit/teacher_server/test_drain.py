"""What a server has answered when it stops after a drain."""

import asyncio
from dataclasses import replace

import pytest

from teacherfarm.protos.messages import SliceLabels
from teacherfarm.teacher_server import server as server_module
from teacherfarm.teacher_server.frontends import conversation
from teacherfarm.teacher_server.server import Server
from teacherfarm.teacher_server.settings import ServerSettings
from tests.on_loop import on_loop, settled, until
from tests.unit.teacher_server.scripted import Teacher, exported
from tests.unit.teacher_server.test_conversation import HELLO, Student


@pytest.fixture
def teachers():
    """The backends that the server made."""
    return []


@pytest.fixture
def server(tmp_path, teachers):
    def make_backend(_, card):
        teachers.append(Teacher(card))
        return teachers[-1]

    settings = ServerSettings(grpc="off", zmq="127.0.0.1:0", http="off", drain_s=10)
    server = Server(settings, teachers=[exported(tmp_path)], make_backend=make_backend)
    # The student below is connected to the gateway itself.
    server.frontends.clear()
    return server


def answered(student):
    return [value.batch_id for value, _ in student.heard if isinstance(value, SliceLabels)]


@on_loop
async def test_answers_that_wait_for_neighbours_leave_before_the_server_stops(server, monkeypatch):
    monkeypatch.setattr(conversation, "MOMENT_S", 0.9 * server_module.DRAIN_POLL_S)
    await server.start()
    student = Student(server)
    student.say(HELLO)
    student.ask(1, batch_id=1)
    await until(lambda: answered(student) == [1])
    # This one is computed within the moment after the first answer, in which it waits for others.
    student.ask(2, batch_id=2)
    await until(lambda: server.gateway.admitted_crops)
    await until(lambda: not server.gateway.admitted_crops)
    await server.drain()
    student.conversation.close()
    await server.stop()
    assert answered(student) == [1, 2]


@on_loop
async def test_a_drain_lasts_until_what_was_accepted_is_answered(server, teachers, monkeypatch):
    monkeypatch.setattr(server_module, "DRAIN_POLL_S", 0)
    await server.start()
    [teacher] = teachers
    teacher.hold()
    student = Student(server)
    student.say(HELLO)
    student.ask(1)
    await until(lambda: server.gateway.admitted_crops)
    drain = asyncio.create_task(server.drain())
    await settled()
    assert not drain.done()
    teacher.let_go()
    await drain
    assert answered(student) == [1]
    await server.stop()


@on_loop
async def test_a_drain_ends_in_time_whatever_hangs(server, teachers, caplog):
    server.settings = replace(server.settings, drain_s=0.05)
    await server.start()
    [teacher] = teachers
    teacher.hold()
    student = Student(server)
    student.say(HELLO)
    student.ask(1)
    await until(lambda: server.gateway.admitted_crops)
    await server.drain()
    assert "1 crops were not answered within drain_s" in caplog.text
    student.conversation.close()
    await server.stop()
