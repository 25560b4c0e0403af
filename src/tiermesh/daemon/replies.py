"""Is what an engine sends an answer, a verdict on the request, or a reason to ask somebody else?

An answer and a verdict are returned; everything else raises `EngineFailed`, or `Unavailable` when it may pass soon.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

from tiermesh.adapters.engines import Reply
from tiermesh.daemon.sse import data_of, error_in, failure
from tiermesh.errors import EngineFailed, Unavailable, WorkerDied
from tiermesh.protocol import quick_json
from tiermesh.protocol.retry_after import seconds_in

MAX_ANSWER_BYTES = 32 * 1024 * 1024
"""An answer that is not streamed is held in memory until it is whole."""

MAX_ERROR_BYTES = 64 * 1024
"""As much of an error's body as is read; a longer one is no reasoned verdict."""

ERROR_S = 5.0
"""For an error's body to come once its head has."""

NOT_THE_CALLERS = frozenset({401, 403, 404, 408, 409, 426})
"""4xx that speak of the engine or the way to it: a wrong key of ours, a model that is gone, another cluster."""


async def first_event(source: AsyncIterator[bytes]) -> bytes:
    """The first piece of a stream that says anything: an engine that starts with an error, or with no JSON, has not
    answered, and comments only keep the connection."""
    async for piece in source:
        told = data_of(piece)
        for data in told:
            if (problem := error_in(data)) is not None:
                raise failure(data, problem)
        if told:
            _check_json(told[0])
            return piece
    raise EngineFailed("an empty stream")


async def read_answer(reply: Reply, holds: str) -> bytes:
    """A whole answer: a JSON object with a list named `holds`, which has something in it."""
    body = await _read(reply, MAX_ANSWER_BYTES)
    try:
        answer = quick_json.read(body)
    except (ValueError, RecursionError):
        raise EngineFailed("answered 200 with something that is not JSON") from None
    if not isinstance(answer, dict) or not isinstance(answer.get(holds), list) or not answer[holds]:
        problem = error_in(body.decode("utf-8", "replace"))
        raise EngineFailed(problem or f"answered 200 with something that has no {holds}")
    return body


async def read_verdict(reply: Reply) -> bytes:
    """The body of a verdict on the request itself. Raises when it is a failure of the candidate."""
    try:
        async with asyncio.timeout(ERROR_S):
            body = await _read(reply, MAX_ERROR_BYTES)
    except TimeoutError:
        raise EngineFailed(f"HTTP {reply.status} and no reason within {ERROR_S:g} s") from None
    if reply.status in (429, 503):
        raise Unavailable(_told(reply, body), retry_after_s=seconds_in(reply.headers.get("Retry-After"), time.time()))
    if reply.status == WorkerDied.http_status and _type(body) == WorkerDied.type:
        raise WorkerDied(_told(reply, body))
    if reply.status in NOT_THE_CALLERS or not 400 <= reply.status < 500:
        raise EngineFailed(_told(reply, body))
    return body


async def _read(reply: Reply, limit: int) -> bytes:
    parts, size = [], 0
    async for chunk in reply.chunks:
        parts.append(chunk)
        size += len(chunk)
        if size > limit:
            raise EngineFailed(f"an answer of more than {limit} bytes")
    return b"".join(parts)


def _check_json(data: str) -> None:
    try:
        told = json.loads(data) if data != "[DONE]" else None
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise EngineFailed("a stream whose events are no JSON objects")


def _type(body: bytes) -> object:
    """What kind of error another node speaks of."""
    try:
        return json.loads(body)["error"]["type"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return None


def _told(reply: Reply, body: bytes) -> str:
    text = body.decode("utf-8", "replace")
    return f"HTTP {reply.status}: {(error_in(text) or text)[:300]}"
