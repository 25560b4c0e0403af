"""One WebSocket with one peer: texts out in order, texts in, and how it ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import aiohttp
from aiohttp import web

from tiermesh.adapters import clock
from tiermesh.adapters.passport import Stamp
from tiermesh.types import Address

QUEUE_LIMIT = 1024
"""Texts waiting for a peer that does not read: past this it is frozen or hopelessly slow, and the link is ended."""

Socket = aiohttp.ClientWebSocketResponse | web.WebSocketResponse


class Link:
    """`address` is where this node dialled; None on a link that the peer opened."""

    def __init__(self, socket: Socket, stamp: Stamp, address: Address | None = None) -> None:
        self.stamp = stamp
        self.address = address
        self.idle_close = False
        """This or the other end closed it because nothing was said."""
        self._socket = socket
        self._outgoing: asyncio.Queue[str] = asyncio.Queue(QUEUE_LIMIT)
        self._last = clock.now()

    def send(self, text: str) -> None:
        """Queue a text; ends the link when the peer has stopped reading."""
        try:
            self._outgoing.put_nowait(text)
        except asyncio.QueueFull:
            self._abort()

    def idle_s(self) -> float:
        """Seconds since anything was said in either direction."""
        return clock.now() - self._last

    async def run(self) -> AsyncGenerator[str, None]:
        """Write what is queued and yield what comes, until the link ends. Call once."""
        writer = asyncio.ensure_future(self._write())
        try:
            async for message in self._socket:
                if message.type is aiohttp.WSMsgType.TEXT:
                    self._last = clock.now()
                    yield message.data
            self.idle_close = self.idle_close or self._socket.close_code == 1000
        finally:
            writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await writer

    async def close(self, code: int) -> None:
        """Send what is queued, then a close frame; bounded, since the peer may be gone."""
        with contextlib.suppress(TimeoutError, ConnectionError, RuntimeError):
            async with asyncio.timeout(0.5):
                while not self._outgoing.empty():
                    await self._socket.send_str(self._outgoing.get_nowait())
                await self._socket.close(code=code)

    async def _write(self) -> None:
        with contextlib.suppress(ConnectionError, RuntimeError):
            while True:
                text = await self._outgoing.get()
                self._last = clock.now()
                await self._socket.send_str(text)

    def _abort(self) -> None:
        transport = self._socket.get_extra_info("socket")
        if transport is not None:
            with contextlib.suppress(OSError):
                transport.shutdown(2)
