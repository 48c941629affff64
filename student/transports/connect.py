"""Chooses the transport that an address names. Each transport's library is imported only when it is used."""

from __future__ import annotations

from teacherfarm.protos.wire import PAYLOAD_BYTES
from teacherfarm.student.settings import Address, Timeouts
from teacherfarm.student.transports.transport import Transport

MOST_PAYLOAD_BYTES = 32 * PAYLOAD_BYTES
"""A student accepts this much in one message: a single crop's feature maps may exceed the usual payload."""


def open_transport(address: Address, timeouts: Timeouts, teacher: str) -> Transport:
    """A transport for one session, not yet open."""
    match address.scheme:
        case "zmq":
            from teacherfarm.student.transports.zmq_transport import ZmqTransport

            return ZmqTransport(
                address.place, payload_bytes=MOST_PAYLOAD_BYTES, close_s=timeouts.close_s, curve=address.curve
            )
        case "grpc" | "grpcs":
            from teacherfarm.student.transports.grpc_transport import GrpcTransport

            return GrpcTransport(
                address.place, payload_bytes=MOST_PAYLOAD_BYTES, close_s=timeouts.close_s, tls=address.tls
            )
        case "triton":
            from teacherfarm.student.transports.triton_transport import TritonTransport

            return TritonTransport(address.place, teacher, payload_bytes=MOST_PAYLOAD_BYTES, answer_s=timeouts.answer_s)
        case "local":
            from teacherfarm.student.transports.local_transport import LocalTransport

            return LocalTransport(address.place, teacher)
        case _:
            raise ValueError(f"{address} needs a transport of its own: pass open_transport=")
