"""The client's core: exactly one answer per crop batch, the window, and what each fault does."""

import asyncio
import random

import numpy as np
import pytest

from teacherfarm.protos.crop import pixel_keys
from teacherfarm.protos.faults import (
    BackendDied,
    GoingAway,
    MalformedMessage,
    NotReady,
    Overloaded,
    PoisonBatch,
    SessionLost,
    TeacherFailed,
    UnexpectedMessage,
    WrongBatchSize,
    WrongCropSize,
)
from teacherfarm.protos.messages import GoAway, Goodbye, Pong, SliceFault, SliceLabels
from teacherfarm.student import retry
from teacherfarm.student.client import AsyncTeacherClient
from teacherfarm.student.settings import Timeouts
from teacherfarm.student.transports.loopback_transport import LoopbackFarm
from tests.on_loop import on_loop, settled, until
from tests.unit.student.puppet_farm import PuppetFarm
from tests.unit.teacher_server.scripted import CARD, answer, crops, records_of

pytestmark = pytest.mark.usefixtures("quick")


def client_of(farm, **options) -> AsyncTeacherClient:
    return AsyncTeacherClient("zmq://nowhere:1", open_transport=farm.open, **options)


def assert_right(labels, *firsts) -> None:
    assert np.array_equal(labels.log_probabilities, records_of(*firsts))
    assert labels.weight.tolist() == [1.0] * len(firsts)


@pytest.mark.parametrize("seed", range(4))
@on_loop
async def test_sessions_killed_at_any_moment_change_no_label(seed):
    rng = random.Random(seed)
    batches = [[rng.randrange(256) for _ in range(rng.randint(1, 20))] for _ in range(200)]
    kills = 0

    def script(pixels, outputs):
        nonlocal kills
        if rng.random() < 0.08:
            kills += 1
            farm.kill_sessions()
        return answer(pixels, outputs)

    farm = LoopbackFarm(CARD, script, slice_crops=8)
    async with client_of(farm, window=64) as client:

        async def ask(firsts):
            assert_right(await client.label(crops(*firsts)), *firsts)

        async def kill_between():
            nonlocal kills
            while True:
                await settled(rng.randrange(400))
                kills += 1
                farm.kill_sessions()
                await asyncio.sleep(0.002)

        killer = asyncio.ensure_future(kill_between())
        await asyncio.gather(*map(ask, batches))
        killer.cancel()
        num_crops = sum(map(len, batches))
        assert kills > 20
        assert client.stats.sessions > 10
        assert (client.stats.crops_asked, client.stats.crops_answered) == (num_crops, num_crops)
        assert farm.crops_seen <= num_crops + client.stats.crops_resent
        assert client.stats.crops_resent > 0
        assert (client.num_pending, client.room.used_crops) == (0, 0)


@on_loop
async def test_undisturbed_every_crop_is_sent_once():
    farm = LoopbackFarm(CARD, answer, slice_crops=8)
    async with client_of(farm, window=64) as client:
        await asyncio.gather(*(client.label(crops(*range(20))) for _ in range(30)))
        assert farm.crops_seen == 600
        assert (client.stats.crops_resent, client.stats.late_answers, client.stats.sessions) == (0, 0, 1)


@on_loop
async def test_a_slow_server_is_waited_for_and_asked_once():
    farm = PuppetFarm(window_crops=64)
    async with client_of(farm, timeouts=Timeouts(answer_s=0.01)) as client:
        answers = [await client.submit(crops(n, n + 1)) for n in range(3)]
        await asyncio.sleep(0.15)
        assert not any(future.done() for future in answers)
        assert (len(farm.sessions), len(farm.session.slices), client.stats.crops_resent) == (1, 3, 0)
        farm.session.answer_all()
        for n, future in enumerate(answers):
            assert_right(await future, n, n + 1)


@on_loop
async def test_no_more_than_the_servers_window_is_sent():
    farm = PuppetFarm(window_crops=8, slice_crops=3)
    async with client_of(farm) as client:
        answers = [await client.submit(crops(*range(n, n + 10))) for n in (0, 10, 20)]
        await settled()
        assert [s.num_crops for s, _ in farm.session.slices] == [3, 3], "a third slice would make 9"
        largest = 0
        while not all(future.done() for future in answers):
            largest = max(largest, farm.session.sent_crops)
            farm.session.answer(window_crops=8)
            await settled()
        assert largest in (7, 8)
        for n, future in zip((0, 10, 20), answers, strict=True):
            assert_right(await future, *range(n, n + 10))


@on_loop
async def test_every_answer_carries_the_window_anew():
    farm = PuppetFarm(window_crops=12, slice_crops=4)
    async with client_of(farm) as client:
        answered = await client.submit(crops(*range(40)))
        await settled()
        assert farm.session.sent_crops == 12
        farm.session.answer(window_crops=4)
        await settled()
        assert farm.session.sent_crops == 8, "a smaller window holds back what is next"
        farm.session.say(Pong(window_crops=16))
        await settled()
        assert farm.session.sent_crops == 16
        while not answered.done():
            farm.session.answer()
            await settled()


@on_loop
async def test_keys_are_made_of_the_pixels_when_the_server_wants_them():
    farm = PuppetFarm(window_crops=2, slice_crops=2)
    async with client_of(farm) as client:
        pixels = crops(*range(6))
        answered = await client.submit(pixels)
        keys = []
        for wanted in (True, False, False):
            await settled()
            [(slice_, _)] = farm.session.slices
            keys.append(slice_.keys)
            farm.session.answer(keys_wanted=wanted)
        assert_right(await answered, *range(6))
        assert keys == [b"", pixel_keys(pixels[2:4]), b""]


@on_loop
async def test_slices_tell_what_was_taken_and_carry_keys_and_priority():
    farm = PuppetFarm(window_crops=4, slice_crops=4)
    async with client_of(farm) as client:
        keys = bytes(range(96))
        answered = await client.submit(crops(*range(6)), keys=keys, priority=-3)
        await settled()
        first, _ = farm.session.slices[0]
        farm.session.answer()
        await settled()
        second, _ = farm.session.slices[0]
        farm.session.answer()
        assert_right(await answered, *range(6))
        assert (first.keys + second.keys, first.priority, second.first_row) == (keys, -3, 4)
        assert (first.taken_crops, second.taken_crops) == (0, 4)


@on_loop
async def test_a_batch_larger_than_the_clients_window_gets_in_alone():
    farm = PuppetFarm(window_crops=64)
    async with client_of(farm, window=4) as client:
        large = await client.submit(crops(*range(10)))
        assert client.room.free_crops == 0
        small = asyncio.ensure_future(client.submit(crops(50)))
        await settled()
        assert not small.done()
        farm.session.answer_all()
        assert_right(await large, *range(10))
        future = await small
        await until(lambda: farm.session.slices)
        farm.session.answer()
        assert_right(await future, 50)


@on_loop
async def test_bad_batches_are_refused_at_once_and_take_no_room():
    farm = PuppetFarm()
    async with client_of(farm, window=4) as client:
        for bad, fault in (
            (lambda: client.submit(crops(1), keys=b"short"), WrongBatchSize),
            (lambda: client.submit(crops(1), priority=2**40), ValueError),
            (lambda: client.submit(crops(1)[:, :2]), WrongCropSize),
            (lambda: client.submit(crops()), WrongBatchSize),
        ):
            for _ in range(5):
                with pytest.raises(fault):
                    await bad()
        assert (client.room.used_crops, client.stats.crops_asked, farm.session.slices) == (0, 0, [])


@pytest.mark.parametrize("fault", [TeacherFailed("broke"), PoisonBatch("killed 3"), WrongCropSize("size")])
@on_loop
async def test_a_fault_for_good_fails_its_batch_alone_and_once(fault):
    farm = PuppetFarm(window_crops=64, slice_crops=2)
    async with client_of(farm) as client:
        bad, good = await client.submit(crops(*range(6))), await client.submit(crops(9))
        await settled()
        farm.session.refuse(fault, 1)
        await settled()
        with pytest.raises(type(fault), match=str(fault)):
            await bad
        farm.session.refuse(fault, 0)
        farm.session.answer_all()
        assert_right(await good, 9)
        await until(lambda: not client.num_pending)
        assert (client.stats.crops_failed, client.stats.crops_answered) == (6, 1)
        assert len(farm.sessions) == 1


@pytest.mark.parametrize("fault", [Overloaded("busy", retry_after_s=0.02), NotReady("loading"), BackendDied("gone")])
@on_loop
async def test_a_fault_for_now_is_asked_again_and_nobody_notices(fault):
    farm = PuppetFarm(window_crops=64, slice_crops=2)
    async with client_of(farm) as client:
        answered = await client.submit(crops(*range(6)))
        await settled()
        for _ in range(3):
            farm.session.refuse(fault, 1)
            await settled()
            assert len(farm.session.slices) == 2, "not before its time"
            await until(lambda: len(farm.session.slices) == 3)
            farm.session.slices.sort(key=lambda pair: pair[0].first_row)
        farm.session.answer_all()
        assert_right(await answered, *range(6))
        assert len(farm.sessions) == 1


@on_loop
async def test_a_slice_put_off_goes_to_whichever_session_there_is_then():
    farm = PuppetFarm(window_crops=64)
    async with client_of(farm) as client:
        answered = await client.submit(crops(1, 2))
        await settled()
        farm.session.refuse(Overloaded("busy", retry_after_s=0.05))
        await settled()
        farm.session.die()
        await until(lambda: len(farm.sessions) == 2 and farm.session.hello)
        await until(lambda: farm.session.slices)
        farm.session.answer()
        assert_right(await answered, 1, 2)


@on_loop
async def test_a_dead_sessions_slices_go_first_and_in_order():
    farm = PuppetFarm(window_crops=6, slice_crops=2)
    async with client_of(farm) as client:
        answers = [await client.submit(crops(n, n + 1, n + 2)) for n in (0, 10, 20)]
        await settled()
        farm.session.answer(1)
        await settled()
        farm.session.die()
        await until(lambda: len(farm.sessions) == 2 and len(farm.session.slices) >= 3)
        order = []
        while not all(future.done() for future in answers):
            order += [(s.batch_id, s.first_row) for s, _ in farm.session.slices]
            farm.session.answer_all()
            await settled()
        assert order == [(1, 0), (2, 0), (2, 2), (3, 0), (3, 2)]
        for n, future in zip((0, 10, 20), answers, strict=True):
            assert_right(await future, n, n + 1, n + 2)


@on_loop
async def test_the_first_answer_wins_and_strangers_answers_are_counted_only():
    farm = PuppetFarm(window_crops=64)
    async with client_of(farm) as client:
        answered = await client.submit(crops(1, 2))
        await settled()
        slice_, _ = farm.session.slices[0]
        farm.session.answer()
        for batch_id in (slice_.batch_id, 77):
            farm.session.say(SliceLabels(batch_id=batch_id, first_row=0, num_crops=2, window_crops=0), bytes(40))
        farm.session.say(SliceFault(fault=TeacherFailed("late"), batch_id=slice_.batch_id, first_row=0, num_crops=2))
        assert_right(await answered, 1, 2)
        await until(lambda: client.stats.late_answers == 2)
        assert client.stats.crops_failed == 0


@pytest.mark.parametrize(("num_crops", "num_bytes"), [(2, 39), (2, 0), (2, 60), (3, 60), (1, 20)])
@on_loop
async def test_labels_of_another_size_than_due_are_a_fault_and_no_labels(num_crops, num_bytes):
    farm = PuppetFarm(window_crops=64)
    client = client_of(farm)
    answered = await client.submit(crops(1, 2))
    await settled()
    farm.session.say(SliceLabels(batch_id=1, first_row=0, num_crops=num_crops, window_crops=0), bytes(num_bytes))
    with pytest.raises(MalformedMessage, match="2 labels of 20 bytes were due"):
        await answered
    await client.close()


@on_loop
async def test_one_answer_may_cover_several_slices_of_a_batch():
    farm = PuppetFarm()
    client = client_of(farm)
    answered = await client.submit(crops(*range(7)))
    await until(lambda: len(farm.session.slices) == 2)
    (first, pixels), (second, more) = farm.session.slices
    assert (first.num_crops, second.first_row, second.num_crops) == (4, 4, 3)
    spec = farm.session.hello.spec.resolve(farm.card)
    records = spec.pack(answer(np.concatenate([pixels, more]), spec.graph_outputs(farm.card)), farm.card)
    farm.session.say(SliceLabels(batch_id=1, first_row=0, num_crops=7, window_crops=0), records.tobytes())
    labels = await answered
    assert np.array_equal(labels.log_probabilities, records_of(*range(7)))
    assert client.stats.crops_answered == 7
    await client.close()


@on_loop
async def test_an_answer_that_ends_in_the_middle_of_a_slice_ends_the_client():
    farm = PuppetFarm()
    client = client_of(farm)
    answered = await client.submit(crops(*range(7)))
    await until(lambda: len(farm.session.slices) == 2)
    farm.session.say(SliceLabels(batch_id=1, first_row=0, num_crops=6, window_crops=0), bytes(120))
    with pytest.raises(MalformedMessage, match="7 labels of 20 bytes were due, got 6"):
        await answered
    await client.close()


@on_loop
async def test_a_message_that_no_server_sends_ends_the_client_by_name():
    farm = PuppetFarm()
    client = client_of(farm)
    answered = await client.submit(crops(1))
    farm.session.say(Goodbye())
    with pytest.raises(UnexpectedMessage, match="Goodbye in the middle"):
        await answered
    with pytest.raises(UnexpectedMessage):
        await client.label(crops(2))
    assert "failed" in repr(client)
    await client.close()


@pytest.mark.parametrize("way", ["go away", "slice fault"])
@on_loop
async def test_a_draining_server_answers_what_it_has_and_gets_nothing_new(way):
    farm = PuppetFarm(window_crops=4)
    async with client_of(farm) as client:
        first, second = await client.submit(crops(*range(4))), await client.submit(crops(*range(10, 14)))
        await settled()
        old = farm.session
        if way == "go away":
            old.say(GoAway(reason="shutting down"))
            await settled()
            old.answer()
        else:
            old.refuse(GoingAway("draining"))
        await until(lambda: len(farm.sessions) == 2 and farm.session.slices)
        assert old.slices == []
        assert old.closed
        while not second.done():
            farm.session.answer_all()
            await settled()
        assert_right(await first, *range(4))
        assert_right(await second, *range(10, 14))
        assert client.stats.crops_resent == 0


@on_loop
async def test_a_sessions_fault_after_welcome():
    farm = PuppetFarm()
    client = client_of(farm)
    answered = await client.submit(crops(1))
    farm.session.say(SliceFault(fault=Overloaded("come back", retry_after_s=0.01)))
    await until(lambda: len(farm.sessions) == 2 and farm.session.slices)
    assert not answered.done()
    farm.session.say(SliceFault(fault=MalformedMessage("I did not understand")))
    with pytest.raises(MalformedMessage, match="did not understand"):
        await answered
    assert len(farm.sessions) == 2
    await client.close()


@on_loop
async def test_closing_fails_what_is_pending_and_says_goodbye():
    farm = PuppetFarm(window_crops=4)
    client = client_of(farm)
    answers = [await client.submit(crops(*range(4))) for _ in range(3)]
    await client.close()
    for future in answers:
        with pytest.raises(SessionLost, match="the client was closed"):
            await future
    assert isinstance(farm.session.messages[-1], Goodbye)
    assert farm.session.closed
    await client.close()
    with pytest.raises(SessionLost, match="closed"):
        await client.label(crops(1))
    assert len(farm.sessions) == 1


@on_loop
async def test_a_client_closed_before_it_connected_stays_closed():
    farm = PuppetFarm()
    client = client_of(farm)
    await client.close()
    with pytest.raises(SessionLost, match="closed"):
        await client.connect()
    assert farm.sessions == []


@on_loop
async def test_whoever_cancels_gets_the_room_back_and_nothing_is_kept():
    farm = PuppetFarm(window_crops=4)
    async with client_of(farm, window=8) as client:
        sent, unsent = await client.submit(crops(*range(4))), await client.submit(crops(*range(4)))
        for future in (sent, unsent):
            future.cancel()
        await settled()
        assert client.room.used_crops == 0
        answered = await client.submit(crops(7))
        await settled()
        farm.session.answer()
        await until(lambda: farm.session.slices)
        assert [s.num_crops for s, _ in farm.session.slices] == [1], "what was cancelled unsent is never sent"
        farm.session.answer()
        assert_right(await answered, 7)
        await until(lambda: not client.num_pending)
        assert client.stats.late_answers == 1


@on_loop
async def test_a_connection_that_flaps_is_opened_again_without_growing_delays(monkeypatch):
    monkeypatch.setattr(retry, "LONGEST_DELAY_S", 60.0)
    farm = PuppetFarm()
    async with client_of(farm) as client, asyncio.timeout(10):
        # Doubled each time from a millisecond, the last delays alone would take half a minute.
        for number in range(2, 17):
            farm.session.die()
            await until(lambda number=number: client.stats.sessions == number)
