"""A DNS server as an engine has it: answers for service names and aliases, to containers that share a network.

UDP, A records, time to live 0.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable

Lookup = Callable[[str, str], list[str] | None]
"""(name, the asking container's address) -> addresses, or None for a name that there is not."""

A_RECORD, INTERNET = 1, 1
NO_SUCH_NAME = 3


class NameServer:
    """Listens on port 53 of ``address`` from :meth:`start` to :meth:`close`."""

    def __init__(self, address: str, lookup: Lookup) -> None:
        self._lookup = lookup
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, 53))
        self._thread = threading.Thread(target=self._serve, name=f"names at {address}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        # Wakes the thread: an empty question is its end.
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join(5)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            question, sender = self._socket.recvfrom(4096)
            if not question:
                return
            answer = self._answer(question, sender[0])
            # A container that ended in between has no use for it.
            with contextlib.suppress(OSError):
                self._socket.sendto(answer, sender)

    def _answer(self, question: bytes, sender: str) -> bytes:
        name, end = _name(question, 12)
        kind, _ = struct.unpack_from("!HH", question, end)
        found = self._lookup(name.lower(), sender)
        addresses = list(found or []) if kind == A_RECORD else []
        random.shuffle(addresses)
        flags = 0x8580 | (NO_SUCH_NAME if found is None else 0)
        header = question[:2] + struct.pack("!HHHHH", flags, 1, len(addresses), 0, 0)
        records = b"".join(
            struct.pack("!HHHIH", 0xC00C, A_RECORD, INTERNET, 0, 4) + socket.inet_aton(address) for address in addresses
        )
        return header + question[12 : end + 4] + records


def _name(message: bytes, start: int) -> tuple[str, int]:
    """The dotted name at ``start`` and where it ends."""
    labels, place = [], start
    while length := message[place]:
        labels.append(message[place + 1 : place + 1 + length].decode("ascii", "replace"))
        place += 1 + length
    return ".".join(labels), place + 1
