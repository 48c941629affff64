"""Fetches the teacher's linear classifier over a client's own session, piece by piece, whatever dies in between.

Knows sessions and the wire's values; no transport and no torch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from teacherfarm.protos.classifier_head import MOST_HEAD_BYTES, ClassifierHead, read_head
from teacherfarm.protos.faults import MalformedMessage, SessionLost, TeacherFarmFault
from teacherfarm.protos.messages import GetTeacher, Teacher
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.protos.wire import Buffer

Ask = Callable[[GetTeacher], Awaitable[tuple[Teacher, bytes]]]
"""One question and its answer; SessionLost where the session died over it."""


class Question:
    """At most one question that a session was asked and has not answered yet."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[tuple[Teacher, bytes]] | None = None

    def ask(self) -> asyncio.Future[tuple[Teacher, bytes]]:
        """Where the answer will be."""
        assert self._answer is None or self._answer.done(), "one question at a time"
        self._answer = asyncio.get_running_loop().create_future()
        return self._answer

    def answer(self, value: Teacher, payload: Buffer) -> bool:
        """Whether somebody waited for it."""
        if self._answer is None or self._answer.done():
            return False
        self._answer.set_result((value, bytes(payload)))
        return True

    def fail(self, fault: TeacherFarmFault) -> bool:
        """The same, with a fault."""
        if self._answer is None or self._answer.done():
            return False
        self._answer.set_exception(fault)
        return True


async def fetch_head(ask: Ask, card: TeacherCard, api_key: str) -> ClassifierHead:
    """The classifier of the card's teacher. Raises what the server refuses it with, DigestMismatch, DamagedArtifact."""
    content = bytearray()
    while True:
        question = GetTeacher(name=card.name, api_key=api_key, head=True, head_from=len(content))
        try:
            answer, piece = await ask(question)
        except SessionLost:
            # The next session is with the same teacher, or with nobody: digests are pinned.
            continue
        content += piece
        if not piece or len(content) > answer.head_bytes or answer.head_bytes > MOST_HEAD_BYTES:
            raise MalformedMessage(
                f"the classifier of {card.name!r} came as {len(content)} bytes of {answer.head_bytes}; at most "
                f"{MOST_HEAD_BYTES} are taken"
            )
        if len(content) == answer.head_bytes:
            return read_head(bytes(content), card)
