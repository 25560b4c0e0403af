"""Server-sent events without rebuilding them: bytes pass as they came, cut only where one event ends.

What is forwarded can therefore be followed by an event of our own, whatever happens to the source in between.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator

from tiermesh.errors import EngineFailed, WorkerDied

MAX_EVENT_BYTES = 4 * 1024 * 1024
"""One event is a few hundred bytes; a tool call sent whole may be more. Past this it is no event stream."""

DONE = b"data: [DONE]\n\n"

_DONE_LINE = re.compile(rb"^data: ?\[DONE\]", re.MULTILINE)
_FINISHED = re.compile(rb'"finish_reason" ?: ?"')


async def whole_events(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Pass an OpenAI chat stream on; every piece ends where an event ends, and the last one with `[DONE]`.

    Raises `EngineFailed` when the stream ends before the model has finished, or is no such stream.
    """
    kept, finished = b"", False
    try:
        async for chunk in chunks:
            kept += chunk
            end = _last_boundary(kept)
            if end:
                piece, kept = kept[:end], kept[end:]
                finished = finished or _FINISHED.search(piece) is not None
                yield piece
                if _DONE_LINE.search(piece):
                    return
            elif len(kept) > MAX_EVENT_BYTES:
                raise EngineFailed(f"an event of more than {MAX_EVENT_BYTES} bytes")
        if not finished:
            raise EngineFailed("the stream ended before the answer did")
        yield DONE
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()


def data_of(piece: bytes) -> list[str]:
    """The `data` of every event in a piece that `whole_events` gave."""
    found = []
    for event in piece.decode("utf-8", "replace").replace("\r\n", "\n").split("\n\n"):
        lines = [line[5:].removeprefix(" ") for line in event.split("\n") if line.startswith("data:")]
        if lines:
            found.append("\n".join(lines))
    return found


def event(data: str) -> bytes:
    """One event; `data` has no line break."""
    return b"data: " + data.encode() + b"\n\n"


def error_in(data: str) -> str | None:
    """What an error event says, or None when this is none. Servers differ: an object with a message, or a text."""
    if '"error"' not in data:
        return None
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError):
        return None
    error = parsed.get("error") if isinstance(parsed, dict) else None
    if not error:
        return None
    return str(error.get("message") or error) if isinstance(error, dict) else str(error)


def failure(data: str, problem: str) -> EngineFailed:
    """What an error event means for whoever has to find another candidate."""
    return WorkerDied(problem) if f'"{WorkerDied.type}"' in data else EngineFailed(problem)


def _last_boundary(data: bytes) -> int:
    line_feeds = data.rfind(b"\n\n")
    returns = data.rfind(b"\r\n\r\n")
    return max(line_feeds + 2 if line_feeds >= 0 else 0, returns + 4 if returns >= 0 else 0)
