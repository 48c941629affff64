"""A pool of Triton endpoints: each is connected, checked and brought to its teachers, and brought back after it failed.

What decides is in triton_addresses.py; here is what waits. One task looks after each endpoint and teacher.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence

from teacherfarm.protos.faults import TeacherFarmFault
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.teacher_server.backends.backend import BackendUnreachable, EndpointState, EndpointStatus, Roster
from teacherfarm.teacher_server.backends.triton_addresses import AddressBook, DnsName, back_off_s
from teacherfarm.teacher_server.backends.triton_backend import DEADLINE_S, Traffic, TritonBackend

log = logging.getLogger(__name__)

RESOLVE_EVERY_S = 1.0
RESOLVE_WITHIN_S = 5.0

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""A name's addresses at this moment, for a port; OSError where there are none."""


async def resolve_name(name: str, port: int) -> list[str]:
    """Ask the system's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return [str(address[4][0]) for address in found]


class TritonPool:
    """The endpoints of ``sources`` for every teacher. ``largest_batch``, ``deadline_s``: as for TritonBackend."""

    def __init__(
        self,
        sources: Sequence[str | DnsName],
        *,
        largest_batch: int | None = None,
        deadline_s: float = DEADLINE_S,
        resolve: Resolve = resolve_name,
    ) -> None:
        self._book = AddressBook(sources)
        self._largest_batch = largest_batch
        self._deadline_s = deadline_s
        self._resolve = resolve
        self._states: dict[tuple[str, str], EndpointState] = {}
        self._watches: dict[str, list[asyncio.Task[None]]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._untried: set[tuple[str, str]] = set()
        self._looked = False
        self._tried: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        serving = sum(state.state == "serving" for state in self.states())
        return f"<TritonPool {len(self._watches)} endpoint(s), {serving} of {len(self._states)} serving>"

    def states(self) -> tuple[EndpointState, ...]:
        return tuple(self._states.copy().values())

    async def tried(self) -> None:
        if self._untried or not self._looked:
            self._tried = asyncio.get_running_loop().create_future()
            await self._tried

    async def run(self, rosters: Sequence[Roster]) -> None:
        try:
            while True:
                await asyncio.gather(*map(self._ask_name, self._book.names))
                self._follow(rosters)
                if not self._book.names:
                    await asyncio.get_running_loop().create_future()
                await asyncio.sleep(RESOLVE_EVERY_S)
        finally:
            watches = [task for tasks in self._watches.values() for task in tasks] + list(self._closing)
            for task in watches:
                task.cancel()
            await asyncio.gather(*watches, return_exceptions=True)
            self._states.clear()

    async def _ask_name(self, name: DnsName) -> None:
        try:
            async with asyncio.timeout(RESOLVE_WITHIN_S):
                self._book.answered(name, await self._resolve(name.name, name.port))
        except socket.gaierror as error:
            if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
                # Docker's name server says so once the last container of a service is gone.
                self._book.answered(name, ())
            else:
                log.debug("%s does not resolve: %s", name.name, error)
        except (OSError, TimeoutError) as error:
            log.debug("%s does not resolve: %s", name.name, error)

    def _follow(self, rosters: Sequence[Roster]) -> None:
        wanted = self._book.wanted
        for address in sorted(wanted - self._watches.keys()):
            traffic = Traffic()
            self._watches[address] = []
            for roster in rosters:
                self._untried.add((address, roster.card.name))
                self._tell(address, roster.card, "connecting")
                watch = self._watch(address, roster, traffic)
                self._watches[address].append(
                    asyncio.create_task(watch, name=f"{roster.card.name} on Triton {address}")
                )
        for address in self._watches.keys() - wanted:
            log.info("Triton endpoint %s is gone from its name", address)
            for roster in rosters:
                del self._states[address, roster.card.name]
                self._untried.discard((address, roster.card.name))
            for task in self._watches.pop(address):
                # It lets what is under way end; should the endpoint come back meanwhile, another task has it.
                task.cancel()
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
        self._looked = True
        self._check_tried()

    async def _watch(self, address: str, roster: Roster, traffic: Traffic) -> None:
        card, failures = roster.card, 0
        key = (address, card.name)
        while True:
            backend = TritonBackend(
                card, address, traffic=traffic, largest_batch=self._largest_batch, deadline_s=self._deadline_s
            )
            try:
                if await self._bring(backend, roster):
                    failures = 0
                    self._tell(address, card, "unreachable", await backend.until_lost())
            finally:
                await roster.dismiss(backend)
                await backend.close()
            self._check_tried(key)
            failures += 1
            await asyncio.sleep(back_off_s(failures))

    async def _bring(self, backend: TritonBackend, roster: Roster) -> bool:
        """Whether it serves now."""
        address, card = backend.address, roster.card
        try:
            await backend.start()
            await roster.admit(backend)
        except BackendUnreachable as error:
            self._tell(address, card, "unreachable", str(error))
        except TeacherFarmFault as fault:
            self._tell(address, card, "refused", str(fault))
        except Exception as error:
            # Whatever is wrong with one endpoint, the others are looked after.
            log.debug("%r cannot be checked", backend, exc_info=error)
            self._tell(address, card, "refused", f"fails on its golden crops: {type(error).__name__}: {error}")
        else:
            self._tell(address, card, "serving")
            self._check_tried((address, card.name))
            return True
        return False

    def _tell(self, address: str, card: TeacherCard, state: EndpointStatus, why: str = "") -> None:
        now = EndpointState(address=address, teacher=card.name, state=state, why=why)
        before = self._states.get((address, card.name))
        self._states[address, card.name] = now
        if now == before or state == "connecting":
            return
        if state == "serving":
            log.info("Triton endpoint %s serves %s", address, card.name)
        else:
            log.warning("Triton endpoint %s is %s for %s: %s", address, state, card.name, why)

    def _check_tried(self, key: tuple[str, str] | None = None) -> None:
        if key is not None:
            self._untried.discard(key)
        if self._looked and not self._untried and self._tried is not None and not self._tried.done():
            self._tried.set_result(None)
