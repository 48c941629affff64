"""What listens on a port: it is greeted in each protocol, and told apart by its first bytes. Plain sockets."""

from __future__ import annotations

import socket
import ssl
from typing import Literal

Speaker = Literal["zmq", "zmq with CURVE", "grpc", "tls", "http", "something else"]

CONNECT_S = 3.0
GREETING_S = 0.4
ANSWER_S = 2.0
ZMTP_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
ZMTP_VERSION = b"\x03"
MECHANISM = slice(12, 32)
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
SETTINGS_FRAME = 4
TLS_ALERT = 0x15


def who_speaks(host: str, port: int) -> Speaker:
    """Raises OSError where nothing takes a connection."""
    with socket.create_connection((host, port), timeout=CONNECT_S) as connection:
        # A ZeroMQ server greets first; everybody else waits for the client.
        first = _receive(connection, len(ZMTP_SIGNATURE), GREETING_S)
        if first[:1] == ZMTP_SIGNATURE[:1]:
            # No further: at another mechanism than its own it would hang up without naming it.
            connection.sendall(ZMTP_SIGNATURE + ZMTP_VERSION)
            greeting = first + _receive(connection, MECHANISM.stop - len(first), ANSWER_S)
            return "zmq with CURVE" if greeting[MECHANISM].rstrip(b"\0") == b"CURVE" else "zmq"
    with socket.create_connection((host, port), timeout=CONNECT_S) as connection:
        connection.sendall(HTTP2_PREFACE)
        answer = _receive(connection, 9, ANSWER_S)
    if len(answer) >= 4 and answer[3] == SETTINGS_FRAME and answer[:1] == b"\0":
        return "grpc"
    if answer.startswith((b"HTTP/", b"<!DOC", b"<html")):
        return "http"
    return "tls" if answer[:1] == bytes([TLS_ALERT]) or _speaks_tls(host, port) else "something else"


def certificate_days_left(host: str, port: int, ca: str, cert: str, key: str, now_s: float) -> float | None:
    """Days until the server's certificate expires, or None where it cannot be had. It must be one to be trusted."""
    try:
        context = ssl.create_default_context(cafile=ca or None)
        if cert:
            context.load_cert_chain(cert, key)
        context.set_alpn_protocols(["h2"])
        with socket.create_connection((host, port), timeout=CONNECT_S) as connection:
            with context.wrap_socket(connection, server_hostname=host) as encrypted:
                ends = (encrypted.getpeercert() or {}).get("notAfter")
    except OSError:
        return None
    return (ssl.cert_time_to_seconds(ends) - now_s) / 86400 if isinstance(ends, str) else None


def _speaks_tls(host: str, port: int) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # It is only asked what it speaks; nothing is said to it.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((host, port), timeout=CONNECT_S) as connection:
            with context.wrap_socket(connection, server_hostname=host):
                return True
    except ssl.SSLError as error:
        # An alert is TLS, too: it asks for a certificate, or for another version.
        return "ALERT" in str(error)
    except OSError:
        return False


def _receive(connection: socket.socket, num_bytes: int, within_s: float) -> bytes:
    connection.settimeout(within_s)
    received = b""
    try:
        while len(received) < num_bytes and (more := connection.recv(num_bytes - len(received))):
            received += more
    except OSError:
        return received
    return received
