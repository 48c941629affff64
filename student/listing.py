"""``teacherfarm teachers ADDRESS``: what a farm serves, asked over either wire, without a session."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from teacherfarm.protos.faults import MalformedMessage, SessionLost, TeacherFarmFault, UnexpectedMessage
from teacherfarm.protos.messages import (
    GetTeacher,
    Goodbye,
    ListTeachers,
    SliceFault,
    Teacher,
    TeacherList,
    Value,
)
from teacherfarm.protos.teacher_card import TeacherCard
from teacherfarm.protos.wire import Buffer, decode_header, encode_header
from teacherfarm.student.settings import Address, Timeouts, choose_api_key, parse_addresses
from teacherfarm.student.transports.connect import open_transport

DIGEST_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class ServedTeacher:
    """One teacher of a farm. A ready one has its card; another may say by ``fault`` why it is not."""

    name: str
    state: str
    teacher_digest: str
    artifact_digest: str = ""
    card: TeacherCard | None = None
    fault: TeacherFarmFault | None = None


def list_teachers(address: str, *, api_key: str | None = None, timeouts: Timeouts | None = None) -> list[ServedTeacher]:
    """Every teacher of the farm at ``address``; of several addresses, the first that answers. Not from inside an event
    loop. Raises SessionLost when none answers.
    """
    key = choose_api_key(api_key)
    return asyncio.run(list_teachers_async(address, api_key=key, timeouts=timeouts or Timeouts(connect_s=10.0)))


async def list_teachers_async(address: str, *, api_key: str, timeouts: Timeouts) -> list[ServedTeacher]:
    """The same, for asynchronous code."""
    lost: SessionLost | None = None
    for place in parse_addresses(address):
        if place.scheme == "local":
            raise ValueError(f"{place} is a folder, not a farm: its cards are {place.place}/*/card.json")
        try:
            return await _list_at(place, api_key, timeouts)
        except SessionLost as fault:
            lost = fault
    assert lost is not None
    raise lost


async def _list_at(place: Address, api_key: str, timeouts: Timeouts) -> list[ServedTeacher]:
    if place.scheme == "triton":
        return await _list_models(place, timeouts)
    answer, _ = await _ask(place, ListTeachers(api_key=api_key), timeouts)
    if not isinstance(answer, TeacherList):
        raise UnexpectedMessage(f"{place} answered ListTeachers with {type(answer).__name__}")
    found = []
    for summary in answer.teachers:
        known = ServedTeacher(name=summary.name, state=summary.state, teacher_digest=summary.teacher_digest)
        try:
            found.append(await _with_card(place, known, api_key, timeouts))
        except TeacherFarmFault as fault:
            found.append(
                ServedTeacher(name=known.name, state=known.state, teacher_digest=known.teacher_digest, fault=fault)
            )
    return found


async def _list_models(place: Address, timeouts: Timeouts) -> list[ServedTeacher]:
    """The models of a Triton server, which speaks another protocol."""
    from teacherfarm.student.transports.triton_transport import list_models

    found = []
    for name, state, served in await list_models(place.place, within_s=timeouts.connect_s):
        if isinstance(served, TeacherFarmFault):
            found.append(ServedTeacher(name=name, state="failed", teacher_digest="", fault=served))
            continue
        teacher = ServedTeacher(
            name=name,
            state=state,
            teacher_digest=served.card.teacher_digest,
            artifact_digest=served.artifact_digest,
            card=served.card,
        )
        found.append(teacher)
    return found


async def _with_card(place: Address, known: ServedTeacher, api_key: str, timeouts: Timeouts) -> ServedTeacher:
    answer, payload = await _ask(place, GetTeacher(name=known.name, api_key=api_key), timeouts)
    if not isinstance(answer, Teacher):
        raise UnexpectedMessage(f"{place} answered GetTeacher with {type(answer).__name__}")
    try:
        card = TeacherCard.from_json(bytes(payload))
    except ValueError as error:
        raise MalformedMessage(f"the card of {known.name!r}: {error}") from error
    return ServedTeacher(
        name=known.name,
        state=known.state,
        teacher_digest=known.teacher_digest,
        artifact_digest=answer.artifact_digest,
        card=card,
    )


async def _ask(place: Address, question: Value, timeouts: Timeouts) -> tuple[Value, Buffer]:
    """One question over a connection of its own: a fault that answers it ends the connection."""
    transport = open_transport(place, timeouts, "")
    try:
        async with asyncio.timeout(timeouts.connect_s):
            await transport.open()
            transport.send(encode_header(question))
            header, payload = await transport.receive()
            answer = decode_header(header)
            # Over ZeroMQ nothing else tells the server that this peer is gone and may be forgotten.
            transport.send(encode_header(Goodbye()))
    except TimeoutError as error:
        raise SessionLost(f"{place} did not answer within {timeouts.connect_s:g} s") from error
    except SessionLost as fault:
        raise SessionLost(f"{fault}. Is a server running there (teacherfarm serve models/)?") from fault
    finally:
        await transport.close()
    if isinstance(answer, SliceFault):
        raise answer.fault
    return answer, payload


def table(teachers: Sequence[ServedTeacher]) -> str:
    """Teachers as aligned lines, the faults of those that are not ready below them."""
    rows = [("TEACHER", "STATE", "DIGEST", "CLASSES", "INPUT", "PRECISION", "OTHER OUTPUTS")]
    for teacher in teachers:
        card = teacher.card
        rows.append(
            (
                teacher.name,
                teacher.state,
                teacher.teacher_digest[:DIGEST_DIGITS] or "-",
                "-" if card is None else f"{card.num_classes} {card.activation}" if card.num_classes else "none",
                "-" if card is None else f"{card.crop_format.describe()} {card.channel_order}",
                "-" if card is None else f"{card.precision} {card.provider_class}",
                "-" if card is None else ", ".join(output.name for output in card.features) or "-",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"{t.name}: {type(t.fault).__name__}: {t.fault}" for t in teachers if t.fault is not None]
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``teacherfarm teachers`` takes."""
    parser.description = "List what a farm serves, over either wire: names, states, digests, classes and inputs."
    parser.epilog = "example: teacherfarm teachers zmq://127.0.0.1:7001"
    parser.add_argument("address", metavar="ADDRESS", help="zmq://, grpc:// or triton://HOST:PORT")
    parser.add_argument("--api-key", metavar="KEY", help="default: the environment's TEACHERFARM_API_KEY")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="S", help="seconds to wait for answers [10]")


def main(options: argparse.Namespace) -> int:
    """Print the list; 1 when some teacher is not ready."""
    teachers = list_teachers(
        options.address,
        api_key=options.api_key,
        timeouts=Timeouts(connect_s=options.timeout),
    )
    print(table(teachers))
    return 0 if all(teacher.state == "ready" for teacher in teachers) else 1
