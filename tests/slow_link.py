"""A link of a given delay and rate between two network namespaces, in user space, for kernels without netem.

``python -m tests.slow_link NAMESPACE ADDRESS NAMESPACE ADDRESS`` makes a TUN device in each and carries packets between
them until it is told to end. It says "up", and at its end how many bytes went each way.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections import deque

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
CLONE_NEWNET = 0x40000000
MTU = 65_000
"""Large, so that a gigabit a second is some two thousand packets."""
QUEUE_BYTES = 4 << 20
"""More than a round trip's worth; beyond it packets are dropped, as a router would."""


class Direction:
    """Packets on their way: they leave one after the other at ``rate``, and arrive ``delay_s`` later."""

    def __init__(self, into: int, *, delay_s: float, bytes_per_s: float) -> None:
        self._into = into
        self._delay_s = delay_s
        self._bytes_per_s = bytes_per_s
        self._packets: deque[tuple[float, bytes]] = deque()
        self._queued_bytes = 0
        self._free_s = 0.0
        self.carried_bytes = 0

    @property
    def due_s(self) -> float:
        """When the next packet arrives."""
        return self._packets[0][0] if self._packets else float("inf")

    def take(self, packet: bytes, now_s: float) -> None:
        """A packet enters."""
        if self._queued_bytes + len(packet) > QUEUE_BYTES:
            return
        self._queued_bytes += len(packet)
        self._free_s = max(now_s, self._free_s) + len(packet) / self._bytes_per_s
        self._packets.append((self._free_s + self._delay_s, packet))

    def deliver(self, now_s: float) -> None:
        """Packets that are due leave."""
        while self._packets and self._packets[0][0] <= now_s:
            _, packet = self._packets.popleft()
            self._queued_bytes -= len(packet)
            self.carried_bytes += len(packet)
            try:
                os.write(self._into, packet)
            except OSError:
                # The device is going down with its namespace.
                return


def carry(ends: tuple[int, int], *, delay_s: float, bytes_per_s: float) -> tuple[int, int]:
    """Carry packets between two TUN devices until SIGTERM; the bytes carried each way."""
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
    there, back = (Direction(end, delay_s=delay_s, bytes_per_s=bytes_per_s) for end in reversed(ends))
    ways = {ends[0]: there, ends[1]: back}
    while not stopping:
        wait_s = min(there.due_s, back.due_s, time.monotonic() + 0.2) - time.monotonic()
        readable, _, _ = select.select(ends, [], [], max(0.0, wait_s))
        for end in readable:
            try:
                while True:
                    ways[end].take(os.read(end, MTU + 64), time.monotonic())
            except BlockingIOError:
                pass
        for way in (there, back):
            way.deliver(time.monotonic())
    return there.carried_bytes, back.carried_bytes


def open_tun(namespace: str, address: str, peer: str) -> int:
    """A TUN device with a point-to-point ``address`` in a namespace; this process then is in that namespace."""
    with open(f"/run/netns/{namespace}") as handle:
        if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {namespace}")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    # A host may have several.
    made = fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"link%d", IFF_TUN | IFF_NO_PI))
    name = struct.unpack("16sH22x", made)[0].rstrip(b"\0").decode()
    for command in (
        ["address", "add", address, "peer", peer, "dev", name],
        ["link", "set", name, "mtu", str(MTU), "up"],
    ):
        subprocess.run(["ip", *command], check=True)
    return device


def main() -> None:
    """Carry until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("places", nargs=4, metavar="NAMESPACE|ADDRESS")
    parser.add_argument("--round-trip-ms", type=float, default=10.0)
    parser.add_argument("--mbit", type=float, default=1000.0)
    options = parser.parse_args()
    one, address, other, peer = options.places
    ends = (open_tun(one, address, peer), open_tun(other, peer, address))
    print("up", flush=True)
    carried = carry(ends, delay_s=options.round_trip_ms / 2000, bytes_per_s=options.mbit * 1e6 / 8)
    print(*carried, flush=True)


if __name__ == "__main__":
    sys.exit(main())
