"""The seam behind which a teacher runs. Implementations: onnx_backend, triton_backend, scripted_backend (for tests)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from teacherfarm.protos.teacher_card import TeacherCard

GraphOutputs = Mapping[str, NDArray[Any]]
"""Output name to array [N, ...]."""

EndpointStatus = Literal["connecting", "serving", "unreachable", "refused"]


class BackendUnreachable(Exception):
    """What runs the teacher cannot be asked any more: refused, reset, or silent beyond the deadline.

    Inside the server only: the lane lets this backend go and has its slices run elsewhere. ``under_way``: the
    connection broke in the middle of the call, so that its slices may have broken it: they run with nobody else next.
    """

    def __init__(self, message: str, *, under_way: bool = False) -> None:
        super().__init__(message)
        self.under_way = under_way


class FailedInCompany(Exception):
    """The call failed on a server that may have run it together with others, so that it need not be to blame."""


class Backend(Protocol):
    """Runs one teacher. Methods are called on the event loop; the work happens elsewhere."""

    @property
    def slots(self) -> int:
        """How many teacher batches run side by side; the lane keeps that many pulling."""
        ...

    @property
    def largest_batch(self) -> int:
        """Most crops in one teacher batch."""
        ...

    @property
    def provider_class(self) -> str:
        """What computes, for the artifact digest: answers may differ in the last bits between classes."""
        ...

    async def start(self) -> None:
        """Load the model and warm it up; raises a BadTeacher fault when it cannot be loaded."""
        ...

    async def run(self, pixels: NDArray[Any], outputs: Sequence[str]) -> GraphOutputs:
        """The named graph outputs for crops [N, H, W, C], 1 <= N <= ``largest_batch``.

        ``pixels`` may be a view of a receive buffer and must not be changed or kept. Raises BackendDied when what runs
        the teacher is gone and this call alone was under way, BackendUnreachable when the lane must do without this
        backend, and anything else when this batch broke it.
        """
        ...

    async def run_alone(self, pixels: NDArray[Any], outputs: Sequence[str]) -> GraphOutputs:
        """The same with no other call under way on what runs the teacher: whatever it breaks, nobody else did.

        Never raises FailedInCompany.
        """
        ...

    async def close(self) -> None:
        """Free the model; calls under way are finished first."""
        ...


@dataclass(frozen=True, kw_only=True)
class EndpointState:
    """One teacher on one endpoint of a pool; ``why`` says what keeps it from serving.

    Connecting: not tried to the end yet. Serving: in its lane. Unreachable: nothing answers there. Refused: what
    answers is not the card's teacher.
    """

    address: str
    teacher: str
    state: EndpointStatus
    why: str = ""


class Roster(Protocol):
    """A teacher whose backends come and go."""

    @property
    def card(self) -> TeacherCard: ...

    async def admit(self, backend: Backend) -> None:
        """Check a started backend's golden answers and let it serve; raises a BadTeacher fault otherwise."""
        ...

    async def dismiss(self, backend: Backend) -> None:
        """Let it serve no more, once its calls under way ended."""
        ...


class BackendPool(Protocol):
    """Finds backends elsewhere and brings them to teachers, as long as :meth:`run` is awaited."""

    async def run(self, rosters: Sequence[Roster]) -> None:
        """Until cancelled; closes its backends then."""
        ...

    async def tried(self) -> None:
        """Until every endpoint known at the start was tried once for every teacher."""
        ...

    def states(self) -> tuple[EndpointState, ...]:
        """Every endpoint for every teacher, now; may be called from another thread."""
        ...
