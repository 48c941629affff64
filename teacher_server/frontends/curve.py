"""CURVE on the ZeroMQ front-end: the server's key pair, the allow-list, and answers to libzmq asking who may in.

libzmq asks over ZAP (RFC 27), by a socket of the ROUTER's own context, before a peer can send anything.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import zmq
from zmq.utils import z85

from teacherfarm.protos.curve_keys import PLAIN, CurvePair, is_readable_by_others, read_allow_list, read_pair

log = logging.getLogger(__name__)

ANYBODY = "any"
"""In place of an allow-list: whoever knows the server's public key."""
ZAP_ADDRESS = "inproc://zeromq.zap.01"
ZAP_VERSION = b"1.0"
DOMAIN = b"teacherfarm"


def make_pair() -> CurvePair:
    """A new pair, whose public key can be pasted anywhere without quotes. That is one of some 7000 keys, and costs an
    attacker's search 13 of 252 bits.
    """
    while True:
        public, secret = (key.decode() for key in zmq.curve_keypair())
        if set(public) <= PLAIN:
            return CurvePair(public=public, secret=secret)


class ServerCurve:
    """The key pair in ``key_file`` and who may in: the keys listed in ``clients`` (a file or a folder), or "any".

    Raises ValueError naming the file that cannot be used, when made and at :meth:`reload`.
    """

    def __init__(self, *, key_file: str, clients: str) -> None:
        self._clients = clients
        self._pair = read_pair(key_file, "curve_key")
        if is_readable_by_others(key_file):
            log.warning("curve_key: other users can read %s: chmod 600", key_file)
        self._allowed = self._read_allowed()
        self._zap: zmq.Socket[bytes] | None = None

    def __repr__(self) -> str:
        who = "anybody with its key" if self._allowed is None else f"{len(self._allowed)} key(s) allowed"
        return f"<ServerCurve {self._pair.public}, {who}>"

    @property
    def public_key(self) -> str:
        """What students need to know: it goes into their addresses."""
        return self._pair.public

    def reload(self) -> None:
        """Read the allow-list again. Where it cannot be used, the former one stays and ValueError says why."""
        self._allowed = self._read_allowed()

    def allows(self, public_key: str) -> bool:
        """Whether a peer with this key may in, as of now."""
        return self._allowed is None or public_key in self._allowed

    def protect(self, socket: zmq.Socket[bytes], context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Make a socket, not yet bound, speak CURVE alone, and answer for it on the running event loop."""
        zap = self._zap = context.socket(zmq.REP)
        zap.linger = 0
        zap.bind(ZAP_ADDRESS)
        asyncio.get_running_loop().add_reader(zap.fileno(), self._answer)
        socket.curve_server = 1
        socket.curve_secretkey = self._pair.secret.encode()
        socket.zap_domain = DOMAIN
        # Refuse everybody, rather than nobody, should nobody answer.
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def close(self) -> None:
        """Answer no more."""
        zap, self._zap = self._zap, None
        if zap is not None:
            asyncio.get_running_loop().remove_reader(zap.fileno())
            zap.close()

    def _read_allowed(self) -> Mapping[str, str] | None:
        if self._clients == ANYBODY:
            return None
        allowed = read_allow_list(self._clients, "curve_clients")
        if not allowed:
            log.warning("curve_clients: %s lists no key: nobody may in", self._clients)
        return allowed

    def _answer(self) -> None:
        """Answer every question that is there: the descriptor tells only of the first."""
        while self._zap is not None:
            try:
                question = self._zap.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._zap.send_multipart(self._judge(question))

    def _judge(self, question: list[bytes]) -> list[bytes]:
        # Version, request, domain, peer's address, routing id, mechanism, credentials: for CURVE one key of 32 bytes.
        version, request = question[0], question[1]
        address, mechanism, credentials = question[3].decode(errors="replace"), question[5], question[6:]
        refused = [ZAP_VERSION, request, b"400", b"not on the allow-list", b"", b""]
        if version != ZAP_VERSION or mechanism != b"CURVE" or len(credentials) != 1 or len(credentials[0]) != 32:
            return refused
        key = z85.encode(credentials[0]).decode()
        if not self.allows(key):
            log.warning("refused a ZeroMQ peer at %s: its key %s is not in --curve-clients", address, key)
            return refused
        who = "" if self._allowed is None else self._allowed[key]
        log.info("a ZeroMQ peer at %s with the key %s (%s)", address, key, who)
        return [ZAP_VERSION, request, b"200", b"", key.encode(), b""]
