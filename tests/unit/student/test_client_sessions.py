"""How a client gets its sessions: refusals, alternatives, pinned digests; and what it does when nobody
answers.
"""

import asyncio

import numpy as np
import pytest

from teacherfarm.protos.faults import (
    DigestMismatch,
    MalformedMessage,
    NotReady,
    Overloaded,
    SessionLost,
    Starved,
    TeacherFarmFault,
    UnexpectedMessage,
    UnknownOutput,
    UnknownTeacher,
)
from teacherfarm.protos.messages import Pong, SliceFault, Welcome
from teacherfarm.protos.soft_label import LabelSpec
from teacherfarm.student.client import AsyncTeacherClient
from teacherfarm.student.settings import Timeouts
from teacherfarm.student.transports.loopback_transport import LoopbackFarm
from tests.on_loop import on_loop, settled, until
from tests.unit.student.puppet_farm import PuppetFarm
from tests.unit.teacher_server.scripted import CARD, answer, crops, make_card, records_of

pytestmark = pytest.mark.usefixtures("quick")

SOON = Timeouts(connect_s=0.05, answer_s=0.05)


def client_of(farm, address="zmq://nowhere:1", **options) -> AsyncTeacherClient:
    return AsyncTeacherClient(address, open_transport=farm.open, **options)


def refusing(farm: PuppetFarm, *faults: TeacherFarmFault) -> None:
    """The first Hellos get these faults, later ones a Welcome."""
    left = list(faults)

    def greet(session):
        if left:
            session.say(SliceFault(fault=left.pop(0)))
        else:
            farm.welcome(session)

    farm.greet = greet


@on_loop
async def test_hello_says_what_was_asked():
    farm = PuppetFarm()
    spec = LabelSpec(top_k=3, temperature=4.0)
    async with AsyncTeacherClient(
        "zmq://nowhere:1",
        "tiny",
        api_key="key",
        digest=CARD.teacher_digest[:12].upper(),
        spec=spec,
        open_transport=farm.open,
    ) as client:
        hello = farm.session.hello
        assert (hello.teacher, hello.api_key, hello.spec, hello.codec) == ("tiny", "key", spec, "raw")
        assert (hello.expected_teacher_digest, hello.expected_artifact_digest) == (CARD.teacher_digest[:12], "")
        assert client.card == CARD
        assert client.spec.outputs == ("labels",)


def test_the_card_is_there_only_once_connected():
    with pytest.raises(RuntimeError, match="not connected"):
        _ = client_of(PuppetFarm()).card


@on_loop
async def test_a_server_that_still_loads_is_asked_again_until_it_is_ready():
    farm = PuppetFarm()
    refusing(farm, NotReady("loading"), Overloaded("full"), SessionLost("gone"))
    async with client_of(farm) as client:
        assert len(farm.sessions) == 4
        assert client.stats.sessions == 1
        assert all(session.closed for session in farm.sessions[:3])


@pytest.mark.parametrize("fault", [UnknownTeacher("served are: a, b"), UnknownOutput("no output"), DigestMismatch("d")])
@on_loop
async def test_a_refusal_for_good_is_raised_at_once_and_everywhere(fault):
    farm = PuppetFarm()
    refusing(farm, fault)
    client = client_of(farm)
    for ask in (client.connect, client.connect, lambda: client.label(crops(1))):
        with pytest.raises(type(fault), match=str(fault)):
            await ask()
    assert len(farm.sessions) == 1
    await client.close()


@pytest.mark.parametrize(("unreachable", "words"), [(True, "nobody there"), (False, "no answer to Hello within 0.05")])
@on_loop
async def test_nobody_there_is_said_after_a_while_with_the_addresses(unreachable, words):
    farm = PuppetFarm()
    farm.unreachable = unreachable
    farm.greet = lambda session: None
    client = client_of(farm, "zmq://one:1,grpc://other:2", timeouts=SOON)
    with pytest.raises(SessionLost, match=f"(zmq://one:1, grpc://other:2|grpc://other:2, zmq://one:1).*{words}"):
        await client.connect()
    # Where nothing answers, one attempt takes all the time there is.
    assert len(farm.sessions) > 1 or not unreachable
    await client.close()


@on_loop
async def test_a_server_not_ready_in_time_is_named_as_such():
    farm = PuppetFarm()
    farm.greet = lambda session: session.say(SliceFault(fault=NotReady("'tiny' is loading")))
    client = client_of(farm, timeouts=SOON)
    with pytest.raises(NotReady, match="'tiny' is loading"):
        await client.connect()
    await client.close()


@on_loop
async def test_alternatives_are_tried_in_turn_and_all_students_of_a_teacher_start_at_one():
    farm = PuppetFarm()
    addresses = "zmq://a:1,zmq://b:2,zmq://c:3"
    async with client_of(farm, addresses) as client:
        answered = await client.submit(crops(1))
        for _ in range(3):
            number = len(farm.sessions)
            farm.session.die()
            await until(lambda number=number: len(farm.sessions) > number and farm.session.slices)
        farm.session.answer()
        await answered
        tried = [str(session.address) for session in farm.sessions]
    assert sorted(tried[:3]) == addresses.split(",")
    assert tried[3] == tried[0]
    other = PuppetFarm()
    async with client_of(other, "zmq://c:3,zmq://a:1,zmq://b:2"):
        assert str(other.session.address) == tried[0]


@pytest.mark.parametrize("change", ["teacher", "artifact"])
@on_loop
async def test_another_teacher_in_the_middle_of_a_run_is_a_fault(change):
    farm = PuppetFarm()
    client = client_of(farm)
    first = await client.submit(crops(1))
    await settled()
    farm.session.answer()
    await first
    pending = await client.submit(crops(2))
    if change == "teacher":
        farm.card = make_card(teacher_digest="f" * 64)
    else:
        farm.artifact_digest = "another"
    farm.session.die()
    with pytest.raises(DigestMismatch, match=f"{change} digest is .*pinned is"):
        await pending
    with pytest.raises(DigestMismatch):
        await client.label(crops(3))
    hello = farm.session.hello
    assert (hello.expected_teacher_digest, hello.expected_artifact_digest) == (CARD.teacher_digest, "artifact")
    await client.close()


@on_loop
async def test_another_teacher_than_the_one_insisted_on():
    farm = LoopbackFarm(CARD, answer)
    client = client_of(farm, digest="0123456789")
    with pytest.raises(DigestMismatch, match="0123456789"):
        await client.connect()
    await client.close()
    async with client_of(farm, digest=CARD.teacher_digest[:10]) as client:
        await client.label(crops(1))


@pytest.mark.parametrize(
    ("say", "fault"),
    [
        (lambda farm, session: session.say(Pong()), UnexpectedMessage),
        (lambda farm, session: session.say(welcome(farm), b"{}"), MalformedMessage),
        (lambda farm, session: session.say(welcome(farm), b"\xff"), MalformedMessage),
    ],
)
@on_loop
async def test_an_answer_to_hello_that_makes_no_sense(say, fault):
    farm = PuppetFarm()
    farm.greet = lambda session: say(farm, session)
    client = client_of(farm)
    with pytest.raises(fault):
        await client.connect()
    await client.close()


def welcome(farm: PuppetFarm) -> Welcome:
    return Welcome(session_id="s", window_crops=8, slice_crops=4, artifact_digest="artifact")


@on_loop
async def test_a_server_that_offers_no_window_is_still_asked_slice_by_slice():
    farm = PuppetFarm(window_crops=0, slice_crops=0)
    async with client_of(farm) as client:
        answered = await client.submit(crops(1, 2, 3))
        while not answered.done():
            await until(lambda: farm.session.slices or answered.done())
            assert len(farm.session.slices) <= 1
            farm.session.answer_all()
            await settled()
        assert np.array_equal((await answered).log_probabilities, records_of(1, 2, 3))


@on_loop
async def test_starved_students_that_raise():
    farm = PuppetFarm(window_crops=4)
    async with client_of(farm, timeouts=SOON, on_starved="raise") as client:
        answered, unsent = await client.submit(crops(*range(6))), await client.submit(crops(7))
        await settled()
        farm.session.answer()
        for future in (answered, unsent):
            with pytest.raises(Starved, match=r"(2 of 6|1 of 1) crops got no labels for .* from zmq://nowhere:1.*skip"):
                await future
        await until(lambda: client.room.used_crops == 0)
        assert client.num_pending == 0
        assert (client.stats.crops_starved, client.stats.crops_failed) == (3, 0)


@on_loop
async def test_starved_students_that_skip_keep_shape_and_what_was_answered():
    farm = PuppetFarm(window_crops=64, slice_crops=2)
    async with client_of(farm, timeouts=SOON, on_starved="skip", window=100) as client:
        partly, nothing = await client.submit(crops(*range(6))), await client.submit(crops(8, 9))
        await settled()
        farm.session.answer(1)
        labels = await partly
        assert labels.weight.tolist() == [0, 0, 1, 1, 0, 0]
        assert len(labels.records) == 6
        assert np.array_equal(labels.log_probabilities[2:4], records_of(2, 3))
        assert np.isfinite(labels.probabilities()).all()
        assert "4 without answer" in repr(labels)
        labels = await nothing
        assert labels.weight.tolist() == [0, 0]
        assert labels.probabilities().shape == (2, 10)
        stats = client.stats
        assert (stats.crops_asked, stats.crops_answered, stats.crops_starved) == (8, 2, 6)
        # What comes too late changes nothing.
        farm.session.answer_all()
        await until(lambda: stats.late_answers == 3)
        assert (stats.crops_answered, client.num_pending) == (2, 0)
        again = await client.submit(crops(1))
        await settled()
        farm.session.answer()
        assert (await again).weight.tolist() == [1]


@on_loop
async def test_starved_students_that_wait_say_so_and_get_their_labels(caplog):
    farm = PuppetFarm(window_crops=64)
    async with client_of(farm, timeouts=Timeouts(answer_s=0.02)) as client:
        answered = await client.submit(crops(1, 2))
        await until(lambda: "still waiting" in caplog.text)
        assert not answered.done()
        farm.session.answer()
        assert (await answered).weight.tolist() == [1, 1]
        assert client.stats.crops_starved == 0


@pytest.mark.parametrize("policy", ["raise", "skip"])
@on_loop
async def test_starvation_is_noticed_without_any_session_too(policy):
    farm = PuppetFarm()
    async with client_of(farm, timeouts=SOON, on_starved=policy) as client:
        farm.unreachable = True
        farm.session.die()
        await until(lambda: len(farm.sessions) > 2)
        answered = await client.submit(crops(1))
        if policy == "skip":
            assert (await answered).weight.tolist() == [0]
        else:
            with pytest.raises(Starved):
                await answered
        farm.unreachable = False
        again = await client.submit(crops(2))
        await until(lambda: farm.session.slices)
        assert [s.num_crops for s, _ in farm.session.slices] == [1], "the starved crop is not asked any more"
        farm.session.answer()
        assert (await again).weight.tolist() == [1]


@on_loop
async def test_the_server_hears_from_a_quiet_student(monkeypatch):
    from teacherfarm.student import client as module

    monkeypatch.setattr(module, "PING_INTERVAL_S", 0.01)
    farm = PuppetFarm()
    async with client_of(farm):
        await until(lambda: [type(m).__name__ for m in farm.session.messages].count("Ping") >= 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on_starved": "panic"}, "'wait', 'raise' or 'skip', got 'panic'"),
        ({"codec": "png"}, "'raw' or 'jpeg', got 'png'"),
        ({"window": 0}, "at least 1 crop, got 0"),
    ],
)
def test_bad_arguments(options, words):
    with pytest.raises(ValueError, match=words):
        client_of(PuppetFarm(), **options)


@on_loop
async def test_a_client_that_is_cancelled_while_connecting_leaves_nothing():
    farm = PuppetFarm()
    farm.greet = lambda session: None
    client = client_of(farm)
    connecting = asyncio.ensure_future(client.connect())
    await until(lambda: farm.sessions and farm.session.hello)
    connecting.cancel()
    await settled()
    await client.close()
    assert farm.session.closed
    assert len(farm.sessions) == 1


@on_loop
async def test_one_alternative_that_refuses_is_not_the_end_while_another_comes_back():
    farm, attempts = PuppetFarm(), []

    def greet(session):
        attempts.append(session)
        match len(attempts):
            case 1:
                session.say(SliceFault(fault=UnknownTeacher("served are: others")))
            case 2:
                session.say(SliceFault(fault=NotReady("loading")))
            case 3:
                session.say(SliceFault(fault=UnknownTeacher("served are: others")))
            case _:
                farm.welcome(session)

    farm.greet = greet
    async with client_of(farm, "zmq://one:1,zmq://other:2") as client:
        assert len(attempts) == 4
        assert client.stats.sessions == 1


@on_loop
async def test_pixels_of_skipped_batches_are_let_go_without_any_session():
    farm = PuppetFarm()
    async with client_of(farm, timeouts=SOON, on_starved="skip") as client:
        farm.unreachable = True
        farm.session.die()
        for number in range(5):
            labels = await client.label(crops(number))
            assert labels.weight.tolist() == [0]
        assert client.num_pending == 0
        assert "0 slices unsent" in repr(client._ledger)


@on_loop
async def test_a_watch_that_breaks_ends_the_client_loudly(monkeypatch, caplog):
    farm = PuppetFarm()
    async with client_of(farm) as client:
        answer = await client.submit(crops(1))
        monkeypatch.setattr(client._ledger, "asked_before", lambda time_s: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await answer
        assert "undeclared error of the client's watch" in caplog.text
