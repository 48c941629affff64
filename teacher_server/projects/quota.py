"""Crops per second and crops in flight of one project. Pure: the time is an argument, a decision is returned.

The rate is a token bucket kept as a time: from when on the next crop may run. A slice that comes a little early is held
until its turn, in the order of arrival, so that a project gets its rate exactly and without refusals; one that comes
much too early is refused and told when to come back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

BURST_S = 0.25
"""What an idle project saves up, in seconds of its rate."""
LONGEST_HOLD_S = 1.0
WINDOW_S = 0.5
"""Sessions together may have so many seconds of the rate under way: under what is held, so that none is refused, and
above the round trip, so that the rate is reached."""
LONGEST_RETRY_S = 30.0
IN_FLIGHT_RETRY_S = 0.01
"""For each session of the project: together they come back a hundred times a second, however many they are."""


@dataclass(frozen=True)
class Refusal:
    """Not now. ``limit`` is the allowance's field that said so."""

    limit: Literal["crops_per_second", "crops_in_flight"]
    retry_after_s: float


class Quota:
    """The accounts of one project's limits; 0 is no limit."""

    def __init__(self, *, crops_per_second: float, crops_in_flight: int) -> None:
        self.crops_per_second = crops_per_second
        self.most_in_flight = crops_in_flight
        self.in_flight_crops = 0
        self._free_from_s = -math.inf

    def __repr__(self) -> str:
        return f"<Quota {self.crops_per_second:g} crops/s, {self.in_flight_crops} of {self.most_in_flight} in flight>"

    def change(self, *, crops_per_second: float, crops_in_flight: int) -> None:
        """Other limits from now on; who is held already keeps its turn."""
        if crops_per_second > self.crops_per_second or not crops_per_second:
            # What was run at the former rate is not paid off at it: a raise acts at once.
            self._free_from_s = -math.inf
        self.crops_per_second, self.most_in_flight = crops_per_second, crops_in_flight

    @property
    def window_crops(self) -> float:
        """How many crops all sessions together need under way, at most, to use the whole allowance."""
        window = self.crops_per_second * WINDOW_S if self.crops_per_second else math.inf
        return min(window, self.most_in_flight) if self.most_in_flight else window

    def admit(self, num_crops: int, now_s: float, *, num_sessions: int = 1) -> float | Refusal:
        """Seconds to hold a slice before it runs, now counted until :meth:`release`; or a refusal, counted nowhere.

        ``num_sessions``: the project's, who must not all come back all the time. A slice larger than the limit gets in
        when nothing else is in flight: a limit delays, it stops nobody for good.
        """
        in_flight = self.in_flight_crops
        if self.most_in_flight and in_flight and in_flight + num_crops > self.most_in_flight:
            return Refusal("crops_in_flight", IN_FLIGHT_RETRY_S * num_sessions)
        hold_s = 0.0
        if self.crops_per_second:
            start_s = max(self._free_from_s, now_s - BURST_S)
            hold_s = max(0.0, start_s - now_s)
            if hold_s > LONGEST_HOLD_S:
                return Refusal("crops_per_second", min(LONGEST_RETRY_S, hold_s - LONGEST_HOLD_S / 2))
            self._free_from_s = start_s + num_crops / self.crops_per_second
        self.in_flight_crops += num_crops
        return hold_s

    def release(self, num_crops: int) -> None:
        """So many crops were answered, or left."""
        self.in_flight_crops -= num_crops
