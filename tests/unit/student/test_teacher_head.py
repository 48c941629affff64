"""The teacher's classifier over a client's session: whole, once, whatever dies in between."""

import asyncio
import dataclasses
import hashlib

import numpy as np
import pytest
from safetensors.numpy import save

from teacherfarm.protos import wire
from teacherfarm.protos.faults import (
    DamagedArtifact,
    DigestMismatch,
    GoingAway,
    MalformedMessage,
    NoHead,
    SessionLost,
    Starved,
)
from teacherfarm.protos.messages import SliceFault, Teacher
from teacherfarm.student import TeacherClient
from teacherfarm.student.client import AsyncTeacherClient
from teacherfarm.student.settings import Timeouts
from teacherfarm.student.teacher_head import fetch_head
from teacherfarm.student.transports import answering
from teacherfarm.student.transports.loopback_transport import LoopbackFarm
from tests.on_loop import on_loop
from tests.unit.teacher_server.scripted import CARD, NUM_CLASSES, answer, crops

WEIGHT = np.random.default_rng(1).normal(size=(NUM_CLASSES, 3)).astype(np.float32)
HEAD = save({"weight": WEIGHT, "bias": np.arange(NUM_CLASSES, dtype=np.float32)})
HEADED = dataclasses.replace(CARD, has_head=True, head_digest=hashlib.sha256(HEAD).hexdigest())

pytestmark = pytest.mark.usefixtures("quick")


class Asked:
    """Answers in pieces of 40 bytes; dies over every third question."""

    def __init__(self, content: bytes = HEAD, size: int | None = None) -> None:
        self.content, self.size, self.questions = content, len(content) if size is None else size, []

    async def __call__(self, question):
        self.questions.append(question)
        if len(self.questions) % 3 == 2:
            raise SessionLost("died")
        first = question.head_from
        piece = self.content[first : first + 40]
        return Teacher(name=question.name, artifact_digest="", head_bytes=self.size), piece

    async def session(self):
        return self


@on_loop
async def test_pieces_are_put_together_over_several_sessions():
    asked = Asked()
    head = await fetch_head(asked.session, HEADED, "key", bytearray())
    assert np.array_equal(head.weight, WEIGHT)
    assert head.bias.tolist() == list(range(NUM_CLASSES))
    assert len(asked.questions) > -(-len(HEAD) // 40)
    assert {(q.name, q.api_key, q.head) for q in asked.questions} == {(CARD.name, "key", True)}


@pytest.mark.parametrize(
    ("asked", "fault"),
    [
        (Asked(HEAD[:-1] + b"!"), DigestMismatch),
        (Asked(b""), MalformedMessage),
        (Asked(HEAD, size=30), MalformedMessage),
        (Asked(HEAD, size=1 << 40), MalformedMessage),
        (Asked(HEAD[:50], size=60), MalformedMessage),
    ],
)
def test_what_is_not_the_cards_classifier_is_refused(asked, fault):
    with pytest.raises(fault):
        asyncio.run(fetch_head(asked.session, HEADED, "", bytearray()))


def open_client(farm, **options) -> TeacherClient:
    return TeacherClient("zmq://nowhere:1", open_transport=farm.open, **options)


def test_a_client_asks_once_and_goes_on_labelling(monkeypatch):
    monkeypatch.setattr(answering, "PAYLOAD_BYTES", 64)
    farm = LoopbackFarm(HEADED, answer, head=HEAD)
    with open_client(farm) as client:
        client.label(crops(1, 2))
        head = client.head()
        received = client.stats.bytes_received
        assert client.head() is head
        assert client.stats.bytes_received == received
        assert np.array_equal(head.weight, WEIGHT)
        assert np.array_equal(
            client.label(crops(3)).log_probabilities, answer(crops(3), ("log_probabilities",))["log_probabilities"]
        )
    assert len(farm._sessions) == 1


@on_loop
async def test_a_session_that_dies_over_it_is_followed_by_another():
    farm = LoopbackFarm(HEADED, answer, head=HEAD)
    async with AsyncTeacherClient("zmq://nowhere:1", open_transport=farm.open) as client:
        asking = asyncio.create_task(client.head())
        await asyncio.sleep(0)
        farm.kill_sessions()
        assert np.array_equal((await asking).weight, WEIGHT)


@on_loop
async def test_what_comes_late_is_taken_by_who_asks_again(monkeypatch):
    monkeypatch.setattr(answering, "PAYLOAD_BYTES", 64)
    farm = LoopbackFarm(HEADED, answer, head=HEAD)
    async with AsyncTeacherClient(
        "zmq://nowhere:1", open_transport=farm.open, timeouts=Timeouts(answer_s=0.1)
    ) as client:
        server = farm._sessions[-1]._session
        answer_head, asked = server._answer_head, []

        def answer_all_but_the_second(first):
            asked.append(first)
            if len(asked) != 2:
                answer_head(first)

        monkeypatch.setattr(server, "_answer_head", answer_all_but_the_second)
        with pytest.raises(Starved):
            await client.head()
        answer_head(asked[1])
        await client.label(crops(1))
        assert np.array_equal((await client.head()).weight, WEIGHT)
        assert asked == list(range(0, len(HEAD), 64)), "each piece is asked for once: a server gives no more"
        assert client.stats.sessions == 1


@on_loop
async def test_a_client_that_is_closed_over_it_says_so():
    farm = LoopbackFarm(HEADED, answer, head=HEAD)
    async with AsyncTeacherClient("zmq://nowhere:1", open_transport=farm.open) as client:
        farm._sessions[-1]._session._answer_head = lambda first: None
        asking = asyncio.create_task(client.head())
        await asyncio.sleep(0)
    with pytest.raises(SessionLost, match="closed"):
        await asking


@on_loop
async def test_what_ends_the_session_is_no_answer_to_the_question():
    farm = LoopbackFarm(HEADED, answer, head=HEAD)
    async with AsyncTeacherClient("zmq://nowhere:1", open_transport=farm.open) as client:
        server = farm._sessions[-1]._session
        server._answer_head = lambda first: server._say(SliceFault(fault=GoingAway("the server restarts")))
        assert np.array_equal((await client.head()).weight, WEIGHT)
        assert client.stats.sessions == 2


def test_a_card_without_one_is_believed():
    farm = LoopbackFarm(dataclasses.replace(CARD, headless="an ensemble averages several"), answer)
    with open_client(farm) as client, pytest.raises(NoHead, match="an ensemble averages several"):
        client.head()


def test_a_refusal_ends_no_session():
    farm = LoopbackFarm(HEADED, answer)
    with open_client(farm) as client:
        farm._sessions[-1]._session._read_head = None
        with pytest.raises(NoHead, match="ask a farm"):
            client.head()
        client.label(crops(1))
        assert client.stats.sessions == 1


def test_a_server_that_says_nothing_is_waited_for_so_long(monkeypatch):
    farm = LoopbackFarm(HEADED, answer, head=HEAD)
    with open_client(farm, timeouts=Timeouts(answer_s=0.2)) as client:
        monkeypatch.setattr(farm._sessions[-1]._session, "_answer_head", lambda first: None)
        with pytest.raises(Starved, match=r"no classifier of 'scripted' within 0.2 s from zmq://nowhere:1"):
            client.head()


def test_a_damaged_one_is_a_fault():
    content = save({"weight": WEIGHT[:3]})
    card = dataclasses.replace(HEADED, head_digest=hashlib.sha256(content).hexdigest())
    with open_client(LoopbackFarm(card, answer, head=content)) as client, pytest.raises(DamagedArtifact):
        client.head()


def test_a_header_says_which_piece():
    question = wire.GetTeacher(name="t", head=True, head_from=12)
    assert wire.decode_header(wire.encode_header(question)) == question
