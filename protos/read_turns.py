"""When to read from a socket: at once while little comes, and the more comes, the more of it at a time.

As network cards moderate their interrupts: waking up for each message costs both ends more than reading it. Knows the
event loop and a descriptor, not what is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

MESSAGES_PER_TURN = 32
"""Whatever comes, others on the event loop get a turn after so many."""
REST_S_PER_RATE = 4e-6
"""Seconds of rest for each message a second: about 1 ms at 250/s, where a turn still takes a single message."""
SHORTEST_REST_S = 0.25e-3
LONGEST_REST_S = 4e-3
MEASURED_OVER_S = 0.05


class Moderation:
    """How long to leave a socket alone after a turn, by the messages that came lately. Pure."""

    def __init__(self) -> None:
        self._since_s = 0.0
        self._messages = 0
        self._rest_s = 0.0

    def rest_after(self, num_messages: int, now_s: float) -> float:
        """Seconds to rest after a turn at ``now_s`` that took so many messages; 0 while they come slowly."""
        self._messages += num_messages
        elapsed_s = now_s - self._since_s
        if elapsed_s >= MEASURED_OVER_S:
            rest_s = min(LONGEST_REST_S, REST_S_PER_RATE * self._messages / elapsed_s)
            self._rest_s = rest_s if rest_s >= SHORTEST_REST_S else 0.0
            self._since_s, self._messages = now_s, 0
        return self._rest_s


class ReadTurns:
    """Calls ``take(most)`` on the running loop whenever ``descriptor`` may have messages, until :meth:`close`.

    ``take`` reads at most so many and returns how many; fewer means that none are left.
    """

    def __init__(self, descriptor: int, take: Callable[[int], int]) -> None:
        self._loop = asyncio.get_running_loop()
        self._descriptor = descriptor
        self._take = take
        self._moderation = Moderation()
        self._closed = False
        self.pending = False
        """Whether a turn will come without the descriptor saying so."""
        self._loop.add_reader(descriptor, self.turn)

    def turn(self) -> None:
        """Read now."""
        self.pending = False
        if self._closed:
            return
        num_messages = self._take(MESSAGES_PER_TURN)
        rest_s = self._moderation.rest_after(num_messages, self._loop.time()) if num_messages else 0.0
        if num_messages == MESSAGES_PER_TURN:
            self.soon()
        elif rest_s and not self._closed:
            self._loop.remove_reader(self._descriptor)
            self._loop.call_later(rest_s, self._wake)
            self.pending = True

    def soon(self) -> None:
        """Read in the loop's next round: an edge of the descriptor may have been missed."""
        if not self.pending:
            self.pending = True
            self._loop.call_soon(self.turn)

    def close(self) -> None:
        """No more turns."""
        self._closed = True
        self._loop.remove_reader(self._descriptor)

    def _wake(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._descriptor, self.turn)
            self.turn()
