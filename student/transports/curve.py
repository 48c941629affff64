"""CURVE of ``zmq://``: the keys that an address names, and a sentence for why a farm and a student do not agree."""

from __future__ import annotations

import zmq

from teacherfarm.protos.curve_keys import read_pair
from teacherfarm.student.settings import CurveKeys

BOX_BYTES = 33
"""What CURVE adds to a frame (RFC 26)."""


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


def why_no_handshake(event: int, value: int, curve: CurveKeys | None) -> str | None:
    """What a monitor's event says about keys and mechanisms; None where they are not to blame."""
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
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
        if curve is None:
            return "the farm speaks CURVE: add ?server_key=KEY, its public key (the farm's ready line shows it)"
        return "the farm speaks in the clear, and server_key= allows CURVE alone: is it the right port?"
    return None
