"""The blocking client: futures, threads, processes, and that whatever ends gives its room back."""

import asyncio
import concurrent.futures
import gc
import multiprocessing
import threading
import weakref

import numpy as np
import pytest

from teacherfarm.protos.faults import (
    DigestMismatch,
    SessionLost,
    TeacherFailed,
    WindowFull,
    WrongBatchSize,
    WrongNumberType,
)
from teacherfarm.student import TeacherClient, blocking
from teacherfarm.student.blocking import as_pixels
from teacherfarm.student.transports.loopback_transport import LoopbackFarm
from tests.unit.teacher_server.scripted import CARD, answer, crops, records_of

pytestmark = pytest.mark.usefixtures("quick")

LONG_S = 20.0


class HeldFarm(LoopbackFarm):
    """Answers only while let go; crops that begin with 66 break the teacher."""

    def __init__(self) -> None:
        super().__init__(CARD, self._script_of, slice_crops=4)
        self.free = threading.Event()
        self.free.set()

    async def _run(self, pixels, outputs):
        while not self.free.is_set():
            await asyncio.sleep(0.001)
        return await super()._run(pixels, outputs)

    def _script_of(self, pixels, outputs):
        if 66 in pixels[:, 0, 0, 0]:
            raise ZeroDivisionError("66")
        return answer(pixels, outputs)


@pytest.fixture
def farm():
    held = HeldFarm()
    yield held
    held.free.set()


@pytest.fixture
def client(farm):
    with TeacherClient("zmq://nowhere:1", window=8, open_transport=farm.open) as connected:
        yield connected


def assert_right(labels, *firsts) -> None:
    assert np.array_equal(labels.log_probabilities, records_of(*firsts))


def waits(client: TeacherClient, used_crops: int) -> None:
    """Room is given back on other threads."""
    for _ in range(20000):
        if client._core.room.used_crops == used_crops:
            return
        threading.Event().wait(0.001)
    raise AssertionError(client._core.room.used_crops)


def test_labels_and_futures_in_any_order(client):
    assert_right(client.label(crops(1, 2, 3)), 1, 2, 3)
    futures = [client.submit(crops(n, n + 1)) for n in range(4)]
    for n in (2, 0, 3, 1):
        assert_right(futures[n].result(), n, n + 1)
        assert futures[n].done()
    assert client.room() == 8
    assert client.stats.crops_answered == 11
    assert client.card == CARD
    assert client.spec.outputs == ("labels",)
    assert repr(client).startswith("<TeacherClient (only teacher) connected, 0 batches pending")


def test_the_first_use_connects(farm):
    client = TeacherClient("zmq://nowhere:1", open_transport=farm.open)
    assert client.stats.sessions == 0
    assert_right(client.label(crops(5)), 5)
    client.close()


def test_tensors_are_taken_where_they_are(client):
    import torch

    assert_right(client.label(torch.from_numpy(crops(1, 2))), 1, 2)
    with pytest.raises(WrongNumberType, match="teacher_view"):
        client.label(torch.zeros(2, 3, 4, 4))
    elsewhere = torch.zeros(2, 4, 4, 3, dtype=torch.uint8, device="meta")
    with pytest.raises(ValueError, match="crops lie on meta"):
        as_pixels(elsewhere)


def test_a_result_can_be_asked_for_again(client):
    future = client.submit(crops(1))
    assert future.result() is future.result()
    assert client.room() == 8


def test_a_fault_is_raised_where_the_labels_are_collected(client):
    bad, good = client.submit(crops(66)), client.submit(crops(1))
    assert_right(good.result(), 1)
    for _ in range(2):
        with pytest.raises(TeacherFailed, match="66"):
            bad.result()
    assert client.room() == 8


def test_waiting_for_a_while_only(farm, client):
    farm.free.clear()
    future = client.submit(crops(1))
    with pytest.raises(TimeoutError, match=r"no labels within 0\.02 s"):
        future.result(timeout=0.02)
    assert not future.done()
    assert client.room() == 7
    farm.free.set()
    assert_right(future.result(timeout=LONG_S), 1)


def test_a_full_window_of_answers_not_collected_is_said_and_not_waited_for(client):
    futures = [client.submit(crops(*range(4))) for _ in range(2)]
    concurrent.futures.wait([future._future for future in futures], LONG_S)
    with pytest.raises(WindowFull, match=r"8 crops is full .*\.result\(\).*window="):
        client.submit(crops(1))
    futures[0].result()
    assert_right(client.label(crops(1)), 1)


def test_submit_waits_for_room_while_another_thread_collects(farm, client, monkeypatch):
    monkeypatch.setattr(blocking, "ROOM_CHECK_S", 1000.0)
    farm.free.clear()
    futures = [client.submit(crops(*range(4))) for _ in range(2)]
    submitted = threading.Event()
    late = []

    def submit_more():
        late.append(client.submit(crops(9)))
        submitted.set()

    thread = threading.Thread(target=submit_more)
    collector = threading.Thread(target=futures[0].result)
    thread.start()
    collector.start()
    assert not submitted.wait(0.05)
    farm.free.set()
    assert submitted.wait(LONG_S)
    thread.join()
    collector.join()
    assert_right(late[0].result(), 9)


def test_a_batch_larger_than_the_window_gets_in_alone(client):
    assert_right(client.label(crops(*range(30))), *range(30))
    waits(client, 0)


@pytest.mark.parametrize("end", ["cancel", "forget"])
def test_who_does_not_want_the_labels_gives_the_room_back(farm, client, end):
    farm.free.clear()
    futures = [client.submit(crops(*range(4))) for _ in range(2)]
    assert client.room() == 0
    if end == "cancel":
        for future in futures:
            future.cancel()
            future.cancel()
    future = None
    del futures
    gc.collect()
    assert client.room() == 8
    farm.free.set()
    assert_right(client.label(crops(1)), 1)
    waits(client, 0)


def test_a_cancelled_future_has_no_result_and_lets_nobody_wait(farm, client):
    farm.free.clear()
    future = client.submit(crops(1))
    raised = []

    def collect():
        try:
            future.result(LONG_S)
        except concurrent.futures.CancelledError as error:
            raised.append(error)

    threads = [threading.Thread(target=collect) for _ in range(2)]
    for thread in threads:
        thread.start()
    future.cancel()
    for thread in threads:
        thread.join(LONG_S)
    assert len(raised) == 2
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()
    farm.free.set()
    assert_right(client.label(crops(2)), 2)


def test_cancelling_while_labels_are_handed_over_harms_nobody(client, monkeypatch):
    looked_away = concurrent.futures.Future.done
    monkeypatch.setattr(concurrent.futures.Future, "done", lambda self: False)
    for _ in range(3):
        future = client.submit(crops(1))
        future.cancel()
    monkeypatch.setattr(concurrent.futures.Future, "done", looked_away)
    assert_right(client.label(crops(2)), 2)


def test_many_threads_share_a_client(farm):
    with TeacherClient("zmq://nowhere:1", window=64, open_transport=farm.open) as client:

        def ask(start):
            for n in range(start, start + 20):
                assert_right(client.label(crops(n, n + 1)), n, n + 1)

        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            list(threads.map(ask, (0, 30, 100, 200)))
        assert client.stats.crops_answered == 160
        assert client.room() == 64


def test_closing_fails_what_is_pending_and_may_be_done_twice(farm):
    client = TeacherClient("zmq://nowhere:1", open_transport=farm.open)
    farm.free.clear()
    future = client.submit(crops(1))
    client.close()
    client.close()
    with pytest.raises(SessionLost, match="closed"):
        future.result(LONG_S)
    for ask in (lambda: client.label(crops(1)), client.connect, lambda: client.card):
        with pytest.raises(SessionLost, match="closed"):
            ask()


def threads_of_clients() -> int:
    return sum(thread.name == "teacherfarm client" for thread in threading.enumerate())


def test_a_client_never_used_starts_no_thread_and_a_forgotten_one_ends_its_own(farm):
    before = threads_of_clients()
    TeacherClient("zmq://nowhere:1", open_transport=farm.open).close()
    client = TeacherClient("zmq://nowhere:1", open_transport=farm.open)
    assert threads_of_clients() == before
    assert_right(client.label(crops(1)), 1)
    assert threads_of_clients() == before + 1
    gone = weakref.ref(client)
    del client
    gc.collect()
    assert gone() is None
    assert threads_of_clients() == before


def test_a_refusal_is_raised_by_connect_and_by_label(farm):
    client = TeacherClient("zmq://nowhere:1", digest="0123456789", open_transport=farm.open)
    for ask in (client.connect, client.connect, lambda: client.label(crops(1))):
        with pytest.raises(DigestMismatch, match="0123456789"):
            ask()
    client.close()


def test_bad_crops_are_refused_in_the_callers_thread(client):
    with pytest.raises(WrongNumberType):
        client.submit(np.zeros((2, 4, 4, 3), np.float32))
    with pytest.raises(WrongBatchSize):
        client.submit(crops(1), keys=b"x")
    with pytest.raises(ValueError, match="from -8 to 8"):
        client.submit(crops(1), priority=2**31)
    assert client.room() == 8


def use_elsewhere(client: TeacherClient, end) -> None:
    said = []
    for use in (lambda: client.label(crops(1)), client.connect):
        try:
            use()
        except RuntimeError as error:
            said.append(str(error))
    client.close()
    end.send(said)


def test_another_process_is_told_to_ask_where_the_client_was_made(client):
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=use_elsewhere, args=(client, there))
    process.start()
    try:
        assert here.poll(LONG_S)
        said = here.recv()
        process.join(LONG_S)
        assert process.exitcode == 0
    finally:
        process.kill()
    assert len(said) == 2
    assert all("made in another process" in words and "DataLoader workers prepare crops" in words for words in said)
    assert_right(client.label(crops(1)), 1)


def test_the_api_key_comes_from_the_environment_unless_given(farm, monkeypatch):
    monkeypatch.setenv("TEACHERFARM_API_KEY", "from-environment")
    for given, used in ((None, "from-environment"), ("mine", "mine"), ("", "")):
        client = TeacherClient("zmq://nowhere:1", api_key=given, open_transport=farm.open)
        assert client._core._api_key == used
        assert used not in repr(client) or not used
