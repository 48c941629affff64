"""The blocking face of the client: the asynchronous core on a thread and event loop of its own. No logic twice."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import weakref
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from teacherfarm.protos.classifier_head import ClassifierHead
from teacherfarm.protos.crop import Codec
from teacherfarm.protos.faults import SessionLost, WindowFull
from teacherfarm.protos.references import CropReferences
from teacherfarm.protos.soft_label import LabelSpec, SoftLabels
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.student.accounts import ClientStats
from teacherfarm.student.by_reference import ByReference
from teacherfarm.student.client import AsyncTeacherClient, OpenTransport
from teacherfarm.student.settings import OnStarved, Timeouts
from teacherfarm.student.transports.connect import open_transport
from teacherfarm.student.waits import Reporter, WaitClock

ROOM_CHECK_S = 0.5


class LabelFuture:
    """The labels of a submitted crop batch. Until collected, cancelled or forgotten it counts against the window."""

    def __init__(self, client: TeacherClient, num_crops: int) -> None:
        self._client = client
        self._num_crops = num_crops
        self._future: concurrent.futures.Future[SoftLabels] = concurrent.futures.Future()
        self._collected = False

    def done(self) -> bool:
        """Whether labels or a fault are there."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> SoftLabels:
        """Wait for the labels. Raises the fault that the batch got, or TimeoutError after ``timeout`` seconds.

        Raises CancelledError after :meth:`cancel`, also where it was called by another thread meanwhile.
        """
        self._client._require_own_process()
        try:
            if not self._future.done():
                with self._client._waits:
                    self._future.exception(timeout)
        except TimeoutError:
            if not self._future.done():
                raise TimeoutError(f"no labels within {timeout} s (the batch is still being asked for)") from None
        except concurrent.futures.CancelledError:
            pass
        self._collect()
        return self._future.result()

    def cancel(self) -> None:
        """Nobody wants these labels any more."""
        self._future.cancel()
        self._collect()

    def _collect(self) -> None:
        with self._client._lock:
            if self._collected:
                return
            self._collected = True
            self._client._collected(self._num_crops)

    def __del__(self) -> None:
        # In a forked child the locks may be held for ever, and the window is the parent's.
        if self._client._pid == os.getpid():
            self.cancel()


class TeacherClient:
    """A student's connection to one teacher, for blocking code; :class:`AsyncTeacherClient` explains the arguments.

    The first use connects. Safe to share between threads; belongs to the process that made it (DataLoader workers
    prepare crops, the main process asks for labels).
    """

    def __init__(
        self,
        address: str,
        teacher: str = "",
        *,
        api_key: str | None = None,
        digest: str = "",
        spec: LabelSpec | None = None,
        window: int | None = None,
        timeouts: Timeouts | None = None,
        on_starved: OnStarved = "wait",
        codec: Codec = "raw",
        by_reference: ByReference | None = None,
        open_transport: OpenTransport = open_transport,
    ) -> None:
        self._core = AsyncTeacherClient(
            address,
            teacher,
            api_key=api_key,
            digest=digest,
            spec=spec,
            window=window,
            timeouts=timeouts,
            on_starved=on_starved,
            codec=codec,
            by_reference=by_reference,
            open_transport=open_transport,
        )
        self._waits = WaitClock()
        self._core.reporter = Reporter(self._waits)
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._room_changed = threading.Condition(self._lock)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: weakref.finalize[..., TeacherClient] | None = None
        self._closed = False

    def __repr__(self) -> str:
        return repr(self._core).replace("Async", "", 1)

    @property
    def card(self) -> TeacherCard:
        """The teacher's card; connects if need be."""
        self.connect()
        return self._core.card

    @property
    def spec(self) -> LabelSpec:
        """The label spec with its outputs spelled out; connects if need be."""
        self.connect()
        return self._core.spec

    @property
    def stats(self) -> ClientStats:
        """Counters since the client was made."""
        return self._core.stats

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def connect(self) -> None:
        """Open the first session; raises what the server refused it with, or SessionLost after ``connect_s``."""
        loop = self._running_loop()
        asyncio.run_coroutine_threadsafe(self._core.connect(), loop).result()

    def head(self) -> ClassifierHead:
        """The teacher's linear classifier, asked for once and kept; connects if need be. Raises NoHead, Starved."""
        self.connect()
        return asyncio.run_coroutine_threadsafe(self._core.head(), self._running_loop()).result()

    def label(self, crops: Any, *, keys: bytes = b"", priority: int = 0) -> SoftLabels:
        """Soft labels of crops: uint8 [N, H, W, C], a numpy array or a CPU tensor, or references. Waits for them."""
        return self.submit(crops, keys=keys, priority=priority).result()

    def submit(self, crops: Any, *, keys: bytes = b"", priority: int = 0) -> LabelFuture:
        """The same, waiting for room only, not for the answer. ``crops`` must not change until it is there."""
        if self._loop is None or self._core._card is None:
            self.connect()
        batch = self._core.checked(
            crops if isinstance(crops, CropReferences) else as_pixels(crops), keys=keys, priority=priority
        )
        with self._room_changed:
            while not self._core.room.take(len(batch)):
                # Another thread may be about to collect: only a window in which nothing moves is full for good.
                with self._waits:
                    moved = self._room_changed.wait(ROOM_CHECK_S)
                if not moved and not self._core.num_pending:
                    raise WindowFull(
                        f"the window of {self._core.room.window_crops} crops is full of labels not "
                        "collected yet: call .result() on earlier futures, or give the client a larger "
                        "window="
                    )
            answer = LabelFuture(self, len(batch))
            # Under the lock: the loop lives until what was handed to it before close() is dealt with.
            self._running_loop().call_soon_threadsafe(self._core.enqueue, batch, answer._future)
        return answer

    def room(self) -> int:
        """Crops that can be submitted now without waiting."""
        return self._core.room.free_crops

    def close(self) -> None:
        """End the session and the thread. Futures still pending get SessionLost."""
        with self._lock:
            self._closed = True
        if self._end is not None:
            self._end()

    def _collected(self, num_crops: int) -> None:
        with self._room_changed:
            self._core.room.give_back(num_crops)
            self._room_changed.notify_all()

    def _require_own_process(self) -> None:
        if self._pid != os.getpid():
            raise RuntimeError(
                "this TeacherClient was made in another process: let DataLoader workers prepare crops "
                "only, and ask for labels in the process that made the client (or make one here)"
            )

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        self._require_own_process()
        with self._lock:
            if self._closed:
                raise SessionLost("the client was closed")
            if self._loop is None:
                self._loop = loop = asyncio.new_event_loop()
                thread = threading.Thread(target=loop.run_forever, name="teacherfarm client", daemon=True)
                thread.start()
                # Also when the client is forgotten, or the program ends without closing it.
                self._end = weakref.finalize(self, _end_thread, self._core, loop, thread, self._pid)
            return self._loop


def _end_thread(core: AsyncTeacherClient, loop: asyncio.AbstractEventLoop, thread: threading.Thread, pid: int) -> None:
    if pid != os.getpid() or not thread.is_alive():
        return
    if threading.current_thread() is thread:
        # Garbage collection may drop the last reference on the client's own thread, which cannot wait for itself.
        task = loop.create_task(core.close())
        task.add_done_callback(lambda _: loop.stop())
        return
    asyncio.run_coroutine_threadsafe(core.close(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def as_pixels(crops: Any) -> NDArray[Any]:
    """A numpy view of an array or CPU tensor. A tensor elsewhere is refused: copying it back would hide the cost."""
    if isinstance(crops, np.ndarray):
        return crops
    device = getattr(crops, "device", None)
    if device is not None and getattr(device, "type", "cpu") != "cpu":
        raise ValueError(
            f"crops lie on {device}: pass the CPU tensor that the DataLoader made; only the student needs a copy there"
        )
    return np.asarray(crops)
