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
AwaitSession = Callable[[], Awaitable[Ask]]
"""Whom to ask, once there is a session. Raises what ended the client, where there will be none."""


class Question:
    """What a session was asked and whose answer nobody has taken yet: at most one question.

    One who stopped waiting may come again with the same question, and gets the answer to it: it is asked once.
    """

    def __init__(self) -> None:
        self._asked: GetTeacher | None = None
        self._answer: asyncio.Future[tuple[Teacher, bytes]] | None = None

    async def ask(self, question: GetTeacher, send: Callable[[GetTeacher], None]) -> tuple[Teacher, bytes]:
        """Its answer, or the fault that came instead."""
        if self._answer is None:
            self._asked, self._answer = question, asyncio.get_running_loop().create_future()
            send(question)
        assert self._asked == question, "one question at a time"
        await asyncio.wait((self._answer,))
        taken, self._answer = self._answer, None
        return taken.result()

    def answer(self, value: Teacher, payload: Buffer) -> bool:
        """Whether it was asked for."""
        if self._answer is None or self._answer.done():
            return False
        self._answer.set_result((value, bytes(payload)))
        return True

    def fail(self, fault: TeacherFarmFault) -> bool:
        """The same, with a fault."""
        if self._answer is None or self._answer.done():
            return False
        self._answer.set_exception(fault)
        # Nobody need wait for it any more.
        self._answer.exception()
        return True


async def fetch_head(
    await_session: AwaitSession, card: TeacherCard, api_key: str, content: bytearray
) -> ClassifierHead:
    """The classifier of the card's teacher. Raises what the server refuses it with, DigestMismatch, DamagedArtifact.

    ``content``: what is there already; whoever is cancelled and comes again with it goes on where it stopped.
    """
    while True:
        ask = await await_session()
        question = GetTeacher(name=card.name, api_key=api_key, head=True, head_from=len(content))
        try:
            answer, piece = await ask(question)
        except SessionLost:
            # The next session is with the same teacher, or with nobody: digests are pinned.
            continue
        num_bytes = len(content) + len(piece)
        if not piece or num_bytes > answer.head_bytes or answer.head_bytes > MOST_HEAD_BYTES:
            content.clear()
            raise MalformedMessage(
                f"the classifier of {card.name!r} came as {num_bytes} bytes of {answer.head_bytes}; at most "
                f"{MOST_HEAD_BYTES} are taken"
            )
        content += piece
        if num_bytes == answer.head_bytes:
            whole = bytes(content)
            content.clear()
            return read_head(whole, card)
