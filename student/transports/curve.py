"""CURVE of ``zmq://``: the keys that an address names, and a sentence for why a farm and a student do not agree."""

from __future__ import annotations

import asyncio

import zmq

from teacherfarm.protos.curve_keys import read_pair
from teacherfarm.student.settings import CurveKeys

BOX_BYTES = 33
"""What CURVE adds to a frame (RFC 26)."""
GREETING_BYTES = 64
MECHANISM = slice(12, 32)
BEGINNING = b"\xff" + bytes(8) + b"\x7f\x03\x00"
"""Signature and version, the first of a greeting (RFC 23). The other end then says all of its own; the rest of ours,
with another mechanism than its, would make it hang up before it did.
"""
PROBE_S = 5.0


def protect(socket: zmq.Socket[bytes], curve: CurveKeys) -> None:
    """Make a socket, not yet connected, speak CURVE with the farm that has ``server_key``, and with nobody else.

    Raises ValueError naming the file that cannot be used.
    """
    if curve.client_key:
        pair = read_pair(curve.client_key, "client_key")
        public, secret = pair.public.encode(), pair.secret.encode()
    else:
        public, secret = zmq.curve_keypair()
    socket.curve_serverkey = curve.server_key.encode()
    socket.curve_publickey, socket.curve_secretkey = public, secret


async def why_no_handshake(place: str, event: int, curve: CurveKeys | None) -> str | None:
    """What keys and mechanisms have to do with a connection to HOST:PORT that ended with a monitor's ``event``; None
    where they are not to blame.
    """
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        if curve is None or not curve.client_key:
            return (
                "the farm lets in only those on its allow-list, and this student has no key of its own: make one "
                "(teacherfarm keys curve --out DIR), give its public file to the farm and say client_key=FILE"
            )
        return (
            f"the key of this student, client_key={curve.client_key}, is not on the farm's allow-list: its public file "
            "must be in the farm's --curve-clients (SIGHUP makes a running farm read that again)"
        )
    if event not in (zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL):
        return None
    # Of two that do not speak the same, whoever sees it first hangs up: the other has only a connection that ended.
    match await _mechanism_at(place), curve:
        case "CURVE", None:
            return "the farm speaks CURVE: add ?server_key=KEY, its public key (the farm's ready line shows it)"
        case "NULL", CurveKeys():
            return "the farm speaks in the clear, and server_key= allows CURVE alone: is it the right port?"
        case _:
            return None


async def _mechanism_at(place: str) -> str:
    """NULL, CURVE or another one that somebody at HOST:PORT begins with; empty where nobody speaks ZeroMQ."""
    host, _, port = place.rpartition(":")
    try:
        async with asyncio.timeout(PROBE_S):
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            try:
                writer.write(BEGINNING)
                greeting = await reader.readexactly(GREETING_BYTES)
            finally:
                writer.close()
    except (OSError, EOFError):
        return ""
    return greeting[MECHANISM].rstrip(b"\0").decode("ascii", "replace")
