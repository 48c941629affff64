"""Hello and Welcome: opens one session over a transport, and insists on the teacher that was pinned."""

from __future__ import annotations

import asyncio

from teacherfarm.protos.faults import DigestMismatch, MalformedMessage, SessionLost, UnexpectedMessage
from teacherfarm.protos.messages import Hello, SliceFault, Welcome
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.protos.wire import decode_header, encode_header
from teacherfarm.student.transports.transport import Transport


async def shake_hands(transport: Transport, hello: Hello, *, within_s: float) -> tuple[Welcome, TeacherCard]:
    """Open ``transport`` and say Hello. Raises what the server refuses it with, or SessionLost after ``within_s``."""
    try:
        async with asyncio.timeout(within_s):
            await transport.open()
            transport.send(encode_header(hello))
            header, payload = await transport.receive()
    except TimeoutError as error:
        raise SessionLost(f"no answer to Hello within {within_s:g} s") from error
    match decode_header(header):
        case Welcome() as welcome:
            card = _read_card(bytes(payload))
        case SliceFault(fault=fault):
            raise fault
        case other:
            raise UnexpectedMessage(f"Hello was answered with {type(other).__name__}")
    # The server compares, too; but a label from another teacher must not depend on the server being right.
    for what, expected, actual in (
        ("teacher", hello.expected_teacher_digest, card.teacher_digest),
        ("artifact", hello.expected_artifact_digest, welcome.artifact_digest),
    ):
        if not actual or not actual.startswith(expected):
            raise DigestMismatch(f"the server's {what} digest is {actual}, pinned is {expected}")
    return welcome, card


def _read_card(text: bytes) -> TeacherCard:
    try:
        return TeacherCard.from_json(text)
    except ValueError as error:
        raise MalformedMessage(f"the server's card: {error}") from error
