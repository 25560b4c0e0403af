"""Sockets that notice a dead connection soon."""

from __future__ import annotations

import socket
import sys

UNACKNOWLEDGED_MS = 1500
"""A connection whose data stays unacknowledged this long is dead: after a cut has healed, a new connection works at
once, while an old one waits for its doubled retransmission timer."""


def impatient_socket(addr_info: tuple[object, ...]) -> socket.socket:
    """As aiohttp's `socket_factory`."""
    family, kind, proto = addr_info[0], addr_info[1], addr_info[2]
    sock = socket.socket(family, kind, proto)  # type: ignore[arg-type]
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    give_up_on_silence(sock)
    return sock


def give_up_on_silence(sock: socket.socket) -> None:
    """Have the kernel end a connection whose data stays unacknowledged for `UNACKNOWLEDGED_MS`."""
    if sys.platform == "linux":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
    elif sys.platform == "darwin":
        tcp_rxt_conndroptime = 0x80  # <netinet/tcp.h>; whole seconds
        sock.setsockopt(socket.IPPROTO_TCP, tcp_rxt_conndroptime, -(-UNACKNOWLEDGED_MS // 1000))
