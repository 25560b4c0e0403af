"""Hears the announcements on a switch, to time what follows them by the kernel's own receive stamps."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from types import TracebackType
from typing import Self

from tests.network import netns
from tests.network.lan import Lan

_SO_TIMESTAMPNS = 35
_ETH_P_IP = 0x0800
_MDNS_PORT = 5353
_SERVICE = b"\x09_tiermesh"


class Announcements:
    """Every mDNS response of a Tiermesh service on the switch of `lan`, as (moment, sender's address)."""

    def __init__(self, lan: Lan) -> None:
        self.heard: list[tuple[float, str]] = []
        self._lan = lan
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        with netns.inside(self._lan.switch):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_IP))
            self._socket.bind(("br0", _ETH_P_IP))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.setblocking(False)
        asyncio.get_running_loop().add_reader(self._socket, self._read)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    async def first(self, address: str, after: float, within_s: float) -> float:
        """The moment of the first announcement from `address` later than `after`."""
        async with asyncio.timeout(within_s):
            while True:
                for at, sender in self.heard:
                    if sender == address and at >= after:
                        return at
                self._news.clear()
                await self._news.wait()

    def _read(self) -> None:
        frame, ancillary, _, _ = self._socket.recvmsg(2048, 128)
        sender = _announcer(frame)
        if sender is None:
            return
        seconds, nanoseconds = struct.unpack("=qq", ancillary[0][2])
        age = time.time() - (seconds + nanoseconds / 1e9)
        self.heard.append((time.monotonic() - age, sender))
        self._news.set()


def _announcer(frame: bytes) -> str | None:
    """Who sent this frame, when it is an mDNS response that names the service."""
    header = (frame[14] & 15) * 4
    udp = 14 + header
    if frame[23] != socket.IPPROTO_UDP or frame[udp + 2 : udp + 4] != _MDNS_PORT.to_bytes(2, "big"):
        return None
    message = frame[udp + 8 :]
    is_response = len(message) > 2 and message[2] & 0x80
    return socket.inet_ntoa(frame[26:30]) if is_response and _SERVICE in message else None
