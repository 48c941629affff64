"""TCP between two processes of one machine, without pacing.

BBR, the congestion control of many machines, lets a connection send by a timer at the rate that it believes in. Between
two processes of one machine nothing can be congested, and the timer costs a student a quarter of its crops/s and its
sending thread half as much time again (docs/BENCHMARKS.md, ``wire``). Other machines are reached as the system says.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket

UNPACED = b"reno"
"""In every Linux, and allowed to everybody."""


def stop_pacing(descriptor: int) -> bool:
    """Whether this TCP socket, connected or listening, was one within the machine and sends without pacing from now on;
    a listening one hands that on to whoever connects. All others stay as they are, as does everything where the system
    knows no such choice.
    """
    if not hasattr(socket, "TCP_CONGESTION"):
        return False
    try:
        # Of its own: the owner may close the descriptor, and the system give its number away, at any moment.
        own = os.dup(descriptor)
    except OSError:
        return False
    try:
        link = socket.socket(fileno=own)
    except OSError:
        os.close(own)
        return False
    with link, contextlib.suppress(OSError):
        if _is_local(link):
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, UNPACED)
            return True
    return False


def _is_local(link: socket.socket) -> bool:
    if link.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    own = link.getsockname()[0]
    if is_loopback(own):
        return True
    try:
        return bool(link.getpeername()[0] == own)
    except OSError:
        # It listens, perhaps to other machines.
        return False


def is_loopback(host: str) -> bool:
    """Whether a host's name or address means this very machine, to it alone; False for what is neither."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
