"""A port of this machine that is a container's: bytes go both ways, as through an engine's own proxy."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable


class PublishedPort:
    """Listens from the start, on ``port`` (0 takes a free one). ``target`` is asked at each connection, so that a
    container may come back elsewhere.
    """

    def __init__(self, address: str, port: int, target: Callable[[], tuple[str, int] | None]) -> None:
        self._target = target
        self._listening = socket.create_server((address, port))
        self.port = self._listening.getsockname()[1]
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, name=f"port {port}", daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        target = self._target()
        try:
            far = socket.create_connection(target, timeout=5) if target else None
        except OSError:
            far = None
        if far is None:
            near.close()
            return
        far.settimeout(None)
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open |= {near, far}
        back = threading.Thread(target=_copy, args=(far, near), daemon=True)
        back.start()
        _copy(near, far)
        back.join()
        self._open -= {near, far}
        near.close()
        far.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Until the source has no more; then the target is told so."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 18):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
