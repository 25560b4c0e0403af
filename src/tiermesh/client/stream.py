"""An answer while it is being said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from types import TracebackType
from typing import Self

from tiermesh.client.answers import decoded, error_of
from tiermesh.errors import EngineFailed, TiermeshError
from tiermesh.protocol.complete import CompleteDone, CompleteResponse

EVENT_LIMIT_BYTES = 64 * 1024 * 1024
"""The last event repeats the whole answer; no answer of a language model is longer than this."""

END_S = 0.5
"""The answer is whole: a body that does not end soon is worth less than the time."""


class Stream:
    """Iterate for the pieces of text. Leaving early (`async with`, or `close`) stops the generation.

    Raises the error that the mesh reports, `EngineFailed` when the stream is cut: it never just ends.
    """

    def __init__(self, chunks: AsyncIterator[bytes], url: str) -> None:
        self._url = url
        self._result: CompleteResponse | None = None
        self._pieces = self._read(chunks)

    @property
    def result(self) -> CompleteResponse:
        """The whole answer, who gave it and what it cost; only after the last piece."""
        if self._result is None:
            raise RuntimeError("the stream has not been read to its end")
        return self._result

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        return await anext(self._pieces)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up; the mesh stops generating. May be called twice."""
        await self._pieces.aclose()

    async def _read(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[str, None]:
        try:
            async for event in _events(chunks):
                match event.get("type"):
                    case "delta":
                        yield str(event["content"])
                    case "done":
                        self._result = decoded(CompleteDone, event)
                        await _read_out(chunks)
                        return
                    case "error":
                        raise error_of(event)
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()
        raise EngineFailed(f"the answer of {self._url} broke off before its end")


async def _read_out(chunks: AsyncIterator[bytes]) -> None:
    """The end of the body, which comes on the heels of the last event: only then the connection can be used again."""
    with suppress(TimeoutError, TiermeshError):
        async with asyncio.timeout(END_S):
            async for _ in chunks:
                pass


async def _events(chunks: AsyncIterator[bytes]) -> AsyncIterator[dict[str, object]]:
    """The `data:` lines of a server-sent event stream, decoded; everything else is ignored."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield json.loads(line.removeprefix(b"data:"))
        if len(rest) > EVENT_LIMIT_BYTES:
            raise EngineFailed(f"an event of the stream is larger than {EVENT_LIMIT_BYTES} bytes")
