"""One prompt on its way over HTTP, to an engine or to another node. Plain classes, since every prompt passes here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from io import BytesIO
from typing import Self

import aiohttp

from tiermesh.adapters.engines import Reply
from tiermesh.adapters.reasons import reason_of
from tiermesh.errors import EngineFailed
from tiermesh.protocol import quick_json

LARGE_BYTES = 256 * 1024
"""Bodies from this size on are sent in pieces, so that others get their turn in between."""

END_S = 0.02
"""Between the last event of a stream and the end of its body; a new connection costs less than a longer wait."""

_LAST_EVENT = (b"[DONE]\n\n", b"[DONE]\r\n\r\n")


def written(body: Mapping[str, object]) -> bytes | BytesIO:
    """`body` as JSON, as aiohttp takes it best."""
    text = quick_json.encode(body)
    return text if len(text) < LARGE_BYTES else BytesIO(text)


class Prompt:
    """A context: entering it asks, by `post`, and gives the head of the answer; leaving it stops the work there.

    `count` is told +1 and -1; `name` is who answers. Entering raises what `post` does.
    """

    __slots__ = ("_chunks", "_count", "_name", "_post", "_response")

    def __init__(
        self,
        name: str,
        post: Callable[[], Awaitable[aiohttp.ClientResponse]],
        count: Callable[[int], None] | None = None,
    ) -> None:
        self._name = name
        self._post = post
        self._count = count
        self._response: aiohttp.ClientResponse | None = None
        self._chunks: _Chunks | None = None

    async def __aenter__(self) -> Reply:
        if self._count is not None:
            self._count(+1)
        try:
            response = self._response = await self._post()
        except BaseException:
            self._end()
            raise
        self._chunks = _Chunks(self._name, response.content)
        return Reply(response.status, response.content_type, self._chunks, response.headers)

    async def __aexit__(self, *_: object) -> None:
        try:
            if self._chunks is not None:
                await self._chunks.end()
        finally:
            self._end()

    def _end(self) -> None:
        if self._response is not None:
            self._response.close()  # what is still being generated is wanted by nobody
        if self._count is not None:
            self._count(-1)


class _Chunks:
    """A body as it arrives."""

    __slots__ = ("_content", "_done", "_name")

    def __init__(self, name: str, content: aiohttp.StreamReader) -> None:
        self._name = name
        self._content = content
        self._done = False
        """Has all been said, though the end of the body may not have come?"""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk = await self._content.readany()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise EngineFailed(f"{self._name} broke off: {reason_of(error)}") from error
        if not chunk:
            raise StopAsyncIteration
        self._done = chunk.endswith(_LAST_EVENT)
        return chunk

    async def end(self) -> None:
        """Wait for the end of a stream whose last event has come: its connection can then be used again."""
        if self._done and not self._content.is_eof():
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                async with asyncio.timeout(END_S):
                    await self._content.readany()
