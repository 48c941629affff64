"""One session without a wire: every message in every state has one answer, and a bad one harms nobody else."""

import asyncio
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teacherfarm.protos import messages
from teacherfarm.protos.crop import pixel_keys
from teacherfarm.protos.faults import (
    DigestMismatch,
    GoingAway,
    MalformedMessage,
    MessageTooLarge,
    Overloaded,
    ServerFault,
    SessionLost,
    TeacherFailed,
    UnexpectedMessage,
    UnknownTeacher,
    WireVersionMismatch,
    WrongCropSize,
)
from teacherfarm.protos.messages import (
    GetTeacher,
    GoAway,
    Goodbye,
    Hello,
    ListTeachers,
    Ping,
    Pong,
    Slice,
    SliceFault,
    SliceLabels,
    StudentReport,
    Teacher,
    TeacherList,
    Welcome,
)
from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.protos.wire import decode_header, encode_header
from teacherfarm.teacher_server.frontends.conversation import Conversation
from tests.on_loop import on_loop, settled, until
from tests.unit.teacher_server.scripted import CARD, NUM_CLASSES, ScriptedFarm, crops, records_of

HELLO = Hello(teacher="scripted", spec=LabelSpec())


class Student:
    """The other end: says messages, and keeps what it is told."""

    def __init__(self, farm: ScriptedFarm) -> None:
        self.heard: list[tuple[object, bytes]] = []
        self.conversation = Conversation(farm.gateway, farm.metrics, wire="test", send=self._hear)

    def _hear(self, header, payload) -> None:
        self.heard.append((decode_header(header), bytes(payload)))

    def say(self, value, payload=b"") -> list[object]:
        """What is answered at once."""
        before = len(self.heard)
        self.conversation.receive(encode_header(value), payload)
        return [value for value, _ in self.heard[before:]]

    def ask(self, *firsts: int, batch_id=1, first_row=0, **changes) -> None:
        pixels = crops(*firsts)
        slice_ = {"batch_id": batch_id, "first_row": first_row, "num_crops": len(firsts), "keys": pixel_keys(pixels)}
        self.say(Slice(**(slice_ | changes)), pixels.reshape(-1).data)

    @property
    def last(self) -> object:
        return self.heard[-1][0]

    def faults(self) -> list[type]:
        return [type(value.fault) for value, _ in self.heard if isinstance(value, SliceFault)]


@on_loop
async def test_hello_slice_goodbye(tmp_path):
    async with ScriptedFarm(tmp_path) as farm:
        student = Student(farm)
        assert "before Hello" in repr(student.conversation)
        [welcome] = student.say(HELLO)
        assert isinstance(welcome, Welcome)
        assert TeacherCard.from_json(student.heard[0][1]) == CARD
        assert student.conversation.greeted
        assert farm.metric("sessions", wire="test") == 1
        student.ask(3, 1, 4, batch_id=9, first_row=20)
        await until(lambda: len(student.heard) == 2)
        labels, payload = student.heard[1]
        assert labels == SliceLabels(batch_id=9, first_row=20, num_crops=3, window_crops=64)
        assert np.array_equal(np.frombuffer(payload, "<f2").reshape(3, NUM_CLASSES), records_of(3, 1, 4))
        [pong] = student.say(Ping(taken_crops=3))
        assert (type(pong), pong.window_crops) == (Pong, 64)
        assert not student.conversation.finished
        assert student.say(Goodbye()) == []
        assert student.conversation.finished
        assert farm.metric("sessions", wire="test") == 0
        assert "0 session" in repr(farm.credit)
        assert farm.metric("received_bytes_total", wire="test") == 3 * 48
        assert farm.metric("sent_bytes_total", wire="test") == 60


@on_loop
async def test_pings_tell_the_load_and_keep_how_a_student_fares(tmp_path):
    async with ScriptedFarm(tmp_path) as farm:
        student = Student(farm)
        student.say(HELLO)
        student.ask(3, 1, 4)
        await until(lambda: len(student.heard) == 2)
        loads = []
        report = StudentReport(stall=0.25, wanted_per_s=40.0)

        def told():
            [pong] = student.say(Ping(report=report))
            loads.append(pong.load)
            return pong.load is not None

        await until(told)
        assert loads[-1].backends == 1
        assert loads[-1].labels_per_s > 0
        assert 0 <= loads[-1].busy <= 1
        # Each ping hears of the time since the last one.
        await until(told)
        assert loads[-1].labels_per_s == 0
        owner = {"project": "default", "teacher": CARD.name}
        assert farm.metric("student_stall_ratio", **owner) == 0.25
        assert farm.metric("student_wanted_crops_per_second", **owner) == 40
        student.say(Goodbye())
        assert not farm.metric("student_stall_ratio", **owner)


@on_loop
async def test_several_slices_are_answered_each_once_by_number(tmp_path):
    async with ScriptedFarm(tmp_path) as farm:
        student = Student(farm)
        student.say(HELLO)
        for number in range(8):
            student.ask(number, number + 1, batch_id=number % 3, first_row=number)
        await until(lambda: len(student.heard) == 9)
        await settled()
        assert len(student.heard) == 9
        answers = {(v.batch_id, v.first_row): payload for v, payload in student.heard[1:]}
        assert len(answers) == 8
        for (_, row), payload in answers.items():
            assert np.array_equal(np.frombuffer(payload, "<f2").reshape(2, NUM_CLASSES), records_of(row, row + 1))


@on_loop
async def test_neighbours_in_a_batch_that_are_answered_together_leave_in_one_message(tmp_path):
    async with ScriptedFarm(tmp_path) as farm:
        student = Student(farm)
        student.say(HELLO)
        for batch_id, first_row, firsts in ((1, 0, (5, 6)), (1, 2, (7,)), (2, 0, (8,)), (1, 4, (9,))):
            student.ask(*firsts, batch_id=batch_id, first_row=first_row)
        await until(lambda: len(student.heard) == 4)
        await settled()
        answers = {(v.batch_id, v.first_row, v.num_crops): payload for v, payload in student.heard[1:]}
        # Row 3 of batch 1 is missing between the first and the last.
        assert answers.keys() == {(1, 0, 3), (2, 0, 1), (1, 4, 1)}
        assert np.array_equal(np.frombuffer(answers[1, 0, 3], "<f2").reshape(3, NUM_CLASSES), records_of(5, 6, 7))


@on_loop
async def test_together_they_stay_within_a_payload(tmp_path):
    async with ScriptedFarm(tmp_path) as farm:
        farm.gateway.payload_bytes = 3 * NUM_CLASSES * 2
        student = Student(farm)
        student.say(HELLO)
        for row in range(0, 8, 2):
            student.ask(row, row + 1, first_row=row)
        await until(lambda: len(student.heard) == 5)
        assert [v.num_crops for v, _ in student.heard[1:]] == [2, 2, 2, 2]


BEFORE_HELLO = [Slice(batch_id=1, first_row=0, num_crops=1), Ping()]
NOT_A_STUDENTS = [
    Welcome(session_id="s", window_crops=1, slice_crops=1, artifact_digest=""),
    SliceLabels(batch_id=1, first_row=0, num_crops=1, window_crops=1),
    SliceFault(fault=TeacherFailed("no")),
    GoAway(),
    Pong(),
    TeacherList(teachers=()),
    Teacher(name="t", artifact_digest="a"),
]


def test_every_message_is_tried():
    tried = {type(value) for value in (*BEFORE_HELLO, *NOT_A_STUDENTS)}
    tried |= {Hello, Goodbye, ListTeachers, GetTeacher}
    assert tried == set(messages.Value.__args__)


@pytest.mark.parametrize("value", BEFORE_HELLO, ids=lambda value: type(value).__name__)
@on_loop
async def test_what_needs_a_session_ends_the_connection_before_hello(tmp_path, value):
    async with ScriptedFarm(tmp_path) as farm:
        student = Student(farm)
        [answer] = student.say(value, bytes(48))
        # Not the student's mistake where the server closed a session that was silent for long: it opens another.
        assert type(answer.fault) is SessionLost
        assert f"{type(value).__name__} without a session" in str(answer.fault)
        assert answer.num_crops == 0, "a fault of the session"
        assert student.conversation.finished
        assert farm.metric("faults_total", fault="SessionLost") == 1


@pytest.mark.parametrize("greeted", [False, True])
@pytest.mark.parametrize("value", NOT_A_STUDENTS, ids=lambda value: type(value).__name__)
@on_loop
async def test_what_no_student_says_ends_the_session(tmp_path, value, greeted):
    async with ScriptedFarm(tmp_path) as farm:
        student = Student(farm)
        if greeted:
            student.say(HELLO)
        student.say(value)
        assert type(student.last.fault) is UnexpectedMessage
        assert type(value).__name__ in str(student.last.fault)
        assert student.conversation.finished
        assert "0 session" in repr(farm.credit)


@on_loop
async def test_hello_twice_ends_the_session(tmp_path):
    async with ScriptedFarm(tmp_path) as farm:
        student = Student(farm)
        student.say(HELLO)
        [answer] = student.say(HELLO)
        assert type(answer.fault) is UnexpectedMessage
        assert "Hello twice" in str(answer.fault)
        assert student.conversation.finished
        assert farm.metric("sessions", wire="test") == 0


@pytest.mark.parametrize(
    ("hello", "fault"),
    [
        (Hello(teacher="nobody", spec=LabelSpec()), UnknownTeacher),
        (Hello(teacher="", spec=LabelSpec(), expected_teacher_digest="0" * 64), DigestMismatch),
        (Hello(teacher="", spec=LabelSpec(), wire_version=99), WireVersionMismatch),
    ],
)
@on_loop
async def test_a_refused_hello_ends_the_connection_with_its_fault(tmp_path, hello, fault):
    async with ScriptedFarm(tmp_path) as farm:
        student = Student(farm)
        [answer] = student.say(hello)
        assert type(answer.fault) is fault
        assert student.conversation.finished
        assert not student.conversation.greeted


@pytest.mark.parametrize(
    ("header", "fault"),
    [(b"\xff\xff\xff", MalformedMessage), (b"", MalformedMessage), (bytes(1 << 17), MessageTooLarge)],
)
@pytest.mark.parametrize("greeted", [False, True])
@on_loop
async def test_what_is_no_message_ends_the_session(tmp_path, header, fault, greeted):
    async with ScriptedFarm(tmp_path) as farm:
        student = Student(farm)
        if greeted:
            student.say(HELLO)
            farm.teacher.hold()
            student.ask(1)
            await until(lambda: farm.teacher.running)
        student.conversation.receive(header, b"")
        assert type(student.last.fault) is fault
        assert student.conversation.finished
        await settled()
        assert farm.gateway.admitted_crops == 0, "what was under way is withdrawn"


@pytest.mark.parametrize(("num_bytes", "words"), [(47, "48 bytes"), (0, "48 bytes"), (96, "48 bytes")])
@on_loop
async def test_a_payload_of_another_length_fails_its_slice_alone(tmp_path, num_bytes, words):
    async with ScriptedFarm(tmp_path) as farm:
        student = Student(farm)
        student.say(HELLO)
        student.say(Slice(batch_id=5, first_row=7, num_crops=1), bytes(num_bytes))
        student.ask(1, batch_id=6)
        await until(lambda: len(student.heard) == 3)
        by_batch = {value.batch_id: value for value, _ in student.heard[1:]}
        fault = by_batch[5]
        assert (fault.first_row, fault.num_crops) == (7, 1)
        assert type(fault.fault) is WrongCropSize
        assert words in str(fault.fault)
        assert isinstance(by_batch[6], SliceLabels)
        assert not student.conversation.finished
        assert farm.gateway.admitted_crops == 0


@on_loop
async def test_a_damaged_jpeg_fails_its_slice_alone(tmp_path):
    async with ScriptedFarm(tmp_path) as farm:
        student = Student(farm)
        student.say(Hello(teacher="", spec=LabelSpec(), codec="jpeg"))
        student.say(Slice(batch_id=1, first_row=0, num_crops=1, crop_bytes=(4,)), b"jpeg")
        student.say(Slice(batch_id=2, first_row=0, num_crops=1, crop_bytes=(9,)), b"jpeg")
        await until(lambda: len(student.heard) == 3)
        assert sorted(fault.__name__ for fault in student.faults()) == ["MalformedMessage", "UnreadableCrop"]
        assert not student.conversation.finished


@on_loop
async def test_faults_of_a_slice_name_it_and_are_counted(tmp_path):
    async with ScriptedFarm(tmp_path, window=8) as farm:
        farm.teacher.raises[66] = lambda: ZeroDivisionError("mine")
        student = Student(farm)
        student.say(HELLO)
        student.ask(66, batch_id=1)
        await until(lambda: len(student.heard) == 2)
        assert student.faults() == [TeacherFailed]
        farm.teacher.hold()
        student.ask(*range(8), batch_id=2)
        await until(lambda: farm.teacher.running)
        student.ask(9, batch_id=3, first_row=4)
        await until(lambda: len(student.heard) == 3)
        refused = student.last
        assert type(refused.fault) is Overloaded
        assert (refused.batch_id, refused.first_row, refused.num_crops, refused.window_crops) == (3, 4, 1, 8)
        assert refused.fault.retry_after_s > 0
        assert farm.metric("faults_total", fault="Overloaded") == 1


@on_loop
async def test_taken_crops_in_a_slice_make_room_for_it(tmp_path):
    async with ScriptedFarm(tmp_path, window=8) as farm:
        student = Student(farm)
        student.say(HELLO)
        student.ask(*range(8), batch_id=1)
        await until(lambda: len(student.heard) == 2)
        student.ask(*range(8), batch_id=2, taken_crops=8)
        await until(lambda: len(student.heard) == 3)
        assert student.faults() == []


@on_loop
async def test_an_undeclared_error_is_logged_in_full_and_answered_bare(tmp_path, caplog):
    async with ScriptedFarm(tmp_path) as farm:
        student = Student(farm)
        student.say(HELLO)
        farm.teacher.rewrite = lambda outputs: {name: values[:, :3] for name, values in outputs.items()}
        student.ask(1)
        await until(lambda: len(student.heard) == 2)
        assert student.faults() == [ServerFault]
        assert "session s1" in str(student.last.fault)
        assert "due" not in str(student.last.fault)
        assert "Traceback" in caplog.text
        assert not student.conversation.finished


@on_loop
async def test_an_undeclared_error_on_hello_ends_the_session_and_not_the_front_end(tmp_path, monkeypatch):
    async with ScriptedFarm(tmp_path) as farm:
        student = Student(farm)
        monkeypatch.setattr(farm.gateway, "open_session", lambda hello: 1 / 0)
        [answer] = student.say(HELLO)
        assert type(answer.fault) is ServerFault
        assert student.conversation.finished


@on_loop
async def test_draining_says_so_answers_what_it_has_and_takes_nothing_new(tmp_path):
    async with ScriptedFarm(tmp_path) as farm:
        student, stranger = Student(farm), Student(farm)
        student.say(HELLO)
        farm.teacher.hold()
        student.ask(1, batch_id=1)
        await until(lambda: farm.teacher.running)
        farm.gateway.draining = True
        for conversation in (student.conversation, stranger.conversation):
            conversation.go_away()
        assert isinstance(student.last, GoAway)
        assert stranger.heard == [], "nobody is told before Hello"
        student.ask(2, batch_id=2)
        assert type(student.last.fault) is GoingAway
        assert (student.last.batch_id, student.last.num_crops) == (2, 1)
        [answer] = stranger.say(HELLO)
        assert type(answer.fault) is GoingAway
        farm.teacher.let_go()
        await until(lambda: isinstance(student.last, SliceLabels))
        assert student.last.batch_id == 1
        assert farm.gateway.admitted_crops == 0


@on_loop
async def test_a_connection_that_ends_withdraws_everything_and_answers_nothing(tmp_path):
    async with ScriptedFarm(tmp_path) as farm:
        student, other = Student(farm), Student(farm)
        for one in (student, other):
            one.say(HELLO)
        farm.teacher.hold()
        student.ask(1, batch_id=1)
        await until(lambda: farm.teacher.running)
        student.ask(2, batch_id=2)
        other.ask(3, batch_id=3)
        await settled()
        student.conversation.close()
        student.conversation.close()
        await settled()
        farm.teacher.let_go()
        await until(lambda: isinstance(other.last, SliceLabels))
        assert len(student.heard) == 1
        assert farm.teacher.seen == [[1], [3]]
        assert (farm.gateway.admitted_crops, farm.metric("sessions", wire="test")) == (0, 1)


@on_loop
async def test_teachers_are_listed_and_shown_without_a_session(tmp_path):
    async with ScriptedFarm(tmp_path) as farm:
        student = Student(farm)
        [listed] = student.say(ListTeachers())
        assert [(t.name, t.state) for t in listed.teachers] == [("scripted", "ready")]
        [shown] = student.say(GetTeacher(name="scripted"))
        assert json.loads(student.heard[-1][1])["name"] == shown.name == "scripted"
        assert not student.conversation.finished
        [answer] = student.say(GetTeacher(name="nobody"))
        assert type(answer.fault) is UnknownTeacher
        assert student.conversation.finished


@on_loop
async def test_asking_for_an_unknown_teachers_card_does_not_end_a_session(tmp_path):
    async with ScriptedFarm(tmp_path) as farm:
        student = Student(farm)
        student.say(HELLO)
        student.say(GetTeacher(name="nobody"))
        assert student.faults() == [UnknownTeacher]
        assert not student.conversation.finished


@settings(max_examples=60)
@given(
    data=st.lists(
        st.tuples(
            st.sampled_from([encode_header(v) for v in (HELLO, *BEFORE_HELLO, *NOT_A_STUDENTS, ListTeachers())])
            | st.binary(max_size=30),
            st.binary(max_size=60),
            st.integers(0, 10),
        ),
        max_size=8,
    )
)
def test_no_conversation_raises_or_leaves_anything(tmp_path_factory, data):
    async def scenario() -> None:
        async with ScriptedFarm(tmp_path_factory.mktemp("farm")) as farm:
            student = Student(farm)
            for header, payload, turns in data:
                if student.conversation.finished:
                    break
                student.conversation.receive(header, payload)
                await settled(turns)
            student.conversation.close()
            await settled()
            assert farm.gateway.admitted_crops == farm.metric("sessions", wire="test") == 0
            assert "0 session" in repr(farm.credit)

    asyncio.run(scenario())
