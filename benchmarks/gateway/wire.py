"""Just enough of HTTP/1.1 for the two ends of the benchmark, so that neither is what is measured.

Requests carry `Content-Length`; answers that or chunks.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from typing import cast

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)


def length_of(head: bytes) -> int:
    """The length of the body that follows."""
    found = _LENGTH.search(head)
    return int(found[1]) if found else 0


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, and when it came after its request had been sent."""

    status: int
    body: bytes
    first_s: float
    done_s: float


class Connection(asyncio.Protocol):
    """One connection that is kept; one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._left = b""
        self._asked_at = 0.0
        self._reply: asyncio.Future[Reply] | None = None
        self._first_s = 0.0
        self._reset()

    @classmethod
    async def open(cls, host: str, port: int) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(cls, host, port)
        return connection

    async def ask(self, request: bytes) -> Reply:
        """Raises `ConnectionError` when the other end hangs up before the answer is whole."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionError("the connection is closed")
        self._reset()
        self._reply = asyncio.get_running_loop().create_future()
        self._asked_at = time.perf_counter()
        self._transport.write(request)
        return await self._reply

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(ConnectionError(f"cut off: {exc}"))

    def data_received(self, data: bytes) -> None:
        self._left += data
        if not self._status and not self._read_head():
            return
        if self._left and not self._first_s:
            self._first_s = time.perf_counter() - self._asked_at
        if self._read_chunks() if self._chunked else self._read_length():
            self._finish()

    def _reset(self) -> None:
        self._left = b""
        self._status = self._length = 0
        self._chunked = False
        self._first_s = 0.0
        self._parts: list[bytes] = []

    def _read_head(self) -> bool:
        end = self._left.find(b"\r\n\r\n")
        if end < 0:
            return False
        head, self._left = self._left[:end], self._left[end + 4 :]
        self._status = int(head[9:12])
        self._chunked = _CHUNKED.search(head) is not None
        self._length = length_of(head)
        return True

    def _read_length(self) -> bool:
        if len(self._left) < self._length:
            return False
        self._parts.append(self._left)
        return True

    def _read_chunks(self) -> bool:
        start, left = 0, self._left
        while (line := left.find(b"\r\n", start)) >= 0:
            size = int(left[start:line], 16)
            if len(left) < line + 2 + size + 2:
                break
            if not size:
                return True
            self._parts.append(left[line + 2 : line + 2 + size])
            start = line + 2 + size + 2
        self._left = left[start:]
        return False

    def _finish(self) -> None:
        done_s = time.perf_counter() - self._asked_at
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(Reply(self._status, b"".join(self._parts), self._first_s, done_s))
