"""Server-sent events without rebuilding them: bytes pass as they came, cut only where one event ends.

What is forwarded can therefore be followed by an event of our own, whatever happens to the source in between.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from typing import Any

from tiermesh.errors import EngineFailed, WorkerDied

MAX_EVENT_BYTES = 4 * 1024 * 1024
"""One event is a few hundred bytes; a tool call sent whole may be more. Past this it is no event stream."""

DONE = b"data: [DONE]\n\n"

_DONE_LINE = re.compile(rb"^data: ?\[DONE\]", re.MULTILINE)
_FINISHED = re.compile(rb'"finish_reason" ?: ?"[^"]')
# A quote inside a JSON string is escaped, so this matches between values only.


class Finish:
    """Have all answers of a stream come to their end? Of one, a pattern tells; of several, the chunks are read."""

    __slots__ = ("_alone", "_left", "_seen")

    def __init__(self, choices: int = 1) -> None:
        self._alone = choices == 1
        self._left = choices
        self._seen: set[str] = set()

    @property
    def reached(self) -> bool:
        """Of every one of them."""
        return not self._left

    def take(self, piece: bytes) -> bool:
        """The next whole events; gives `reached`."""
        if self._left and _FINISHED.search(piece):
            if self._alone:
                self._left = 0
            else:
                self._count(piece)
        return not self._left

    def note(self, choices: Iterable[Mapping[str, Any]]) -> None:
        """Choices of a chunk that was read already."""
        for choice in choices:
            if self._left and choice.get("finish_reason") and (index := str(choice.get("index"))) not in self._seen:
                self._seen.add(index)
                self._left -= 1

    def _count(self, piece: bytes) -> None:
        for data in data_of(piece):
            with contextlib.suppress(ValueError, RecursionError, LookupError, TypeError, AttributeError):
                self.note(json.loads(data)["choices"])


async def whole_events(chunks: AsyncIterator[bytes], choices: int = 1) -> AsyncGenerator[bytes, None]:
    """Pass an OpenAI chat stream on; every piece ends where an event ends, and the last one with `[DONE]`.

    Raises `EngineFailed` when the stream ends before all `choices` have, or is no such stream.
    """
    finish = Finish(choices)
    kept: list[bytes] = []
    """Of an event that is not whole yet; joined once, however small its parts."""
    size, seam = 0, b""
    try:
        async for chunk in chunks:
            end = _last_boundary(seam + chunk) - len(seam)
            if end > 0:
                piece = b"".join((*kept, chunk[:end])) if kept or end < len(chunk) else chunk
                rest = chunk[end:]
                kept, size, seam = [rest] if rest else [], len(rest), rest[-3:]
                finish.take(piece)
                yield piece
                if _DONE_LINE.search(piece):
                    return
            else:
                kept.append(chunk)
                size, seam = size + len(chunk), (seam + chunk)[-3:]
                if size > MAX_EVENT_BYTES:
                    raise EngineFailed(f"an event of more than {MAX_EVENT_BYTES} bytes")
        if not finish.reached:
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
