"""When sockets are read: at once while little comes, several messages at a time when much does."""

import asyncio
import os

import pytest

from teacherfarm.protos.read_turns import LONGEST_REST_S, MESSAGES_PER_TURN, Moderation, ReadTurns


@pytest.mark.parametrize(
    ("rate", "rest_s"), [(10, 0.0), (50, 0.0), (100, 0.0004), (250, 0.001), (1000, 0.004), (100_000, LONGEST_REST_S)]
)
def test_a_socket_rests_the_longer_the_more_comes(rate, rest_s):
    moderation = Moderation()
    rests = [moderation.rest_after(1, number / rate) for number in range(1, rate)]
    assert rests[-1] == pytest.approx(rest_s, rel=0.05)


def test_it_forgets_a_burst():
    moderation = Moderation()
    for number in range(1000):
        moderation.rest_after(1, number / 1000)
    assert moderation.rest_after(1, 1.0) > 0
    assert moderation.rest_after(1, 3.0) == 0


class Letters:
    """A pipe whose bytes are messages."""

    def __init__(self) -> None:
        self.out, self.into = os.pipe()
        os.set_blocking(self.out, False)
        self.taken: list[int] = []
        self.all_taken = asyncio.Event()
        self.due = 0

    def post(self, number: int) -> None:
        self.due += number
        self.all_taken.clear()
        os.write(self.into, bytes(number))

    def take(self, most: int) -> int:
        try:
            number = len(os.read(self.out, most))
        except BlockingIOError:
            return 0
        self.taken.append(number)
        if sum(self.taken) == self.due:
            self.all_taken.set()
        return number

    def close(self) -> None:
        os.close(self.out)
        os.close(self.into)


def test_many_messages_are_taken_in_bounded_turns_and_none_is_forgotten():
    async def read() -> None:
        letters = Letters()
        turns = ReadTurns(letters.out, letters.take)
        for _ in range(300):
            letters.post(7)
            await letters.all_taken.wait()
        letters.post(3 * MESSAGES_PER_TURN)
        await letters.all_taken.wait()
        assert max(letters.taken) == MESSAGES_PER_TURN
        turns.close()
        letters.due += 1
        os.write(letters.into, b"x")
        turns.soon()
        await asyncio.sleep(2 * LONGEST_REST_S)
        assert sum(letters.taken) == letters.due - 1, "closed, it reads no more"
        letters.close()

    asyncio.run(asyncio.wait_for(read(), 30))


def test_while_it_rests_messages_gather():
    async def read() -> list[int]:
        letters = Letters()
        turns = ReadTurns(letters.out, letters.take)
        for _ in range(4000):
            letters.post(1)
            await asyncio.sleep(0)
        await letters.all_taken.wait()
        turns.close()
        letters.close()
        return letters.taken

    taken = asyncio.run(asyncio.wait_for(read(), 30))
    assert sum(taken) == 4000
    assert max(taken[len(taken) // 2 :]) > 1
