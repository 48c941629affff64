"""When to try again. Pure: nothing waits here, a delay is returned."""

from __future__ import annotations

from teacherfarm.protos.faults import TeacherFarmFault

FIRST_DELAY_S = 0.05
LONGEST_DELAY_S = 5.0


class Backoff:
    """Delays between attempts to open a session: doubling, capped, spread so that students do not return in step.

    ``spread`` is a number in [0, 1) of this client's own.
    """

    def __init__(self, spread: float) -> None:
        self._spread = spread
        self._failures = 0

    def failed(self, fault: TeacherFarmFault) -> float:
        """Seconds to wait after one more failure; a time that the server named is kept to."""
        delay_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(self._failures, 30))
        self._failures += 1
        return max(fault.retry_after_s, delay_s * (0.75 + 0.5 * self._spread))

    def succeeded(self) -> None:
        """The next failure starts from the first delay again."""
        self._failures = 0
