"""From a gateway's answer to the client's socket."""

from __future__ import annotations

import asyncio
import re
import secrets
import types
from collections.abc import AsyncIterator, Coroutine, Generator, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from typing import Any

from aiohttp import web

from tiermesh.daemon.gateway import Answer, Ask
from tiermesh.protocol import headers

_SANE_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)

STREAM_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""`X-Accel-Buffering`: nginx in front would hold the stream back otherwise."""


REQUEST_ID = web.RequestKey("tiermesh-request-id", str)


def request_id(request: web.Request) -> str:
    """The caller's own id for this request when it is a harmless one, else a new one; the same each time."""
    known: str | None = request.get(REQUEST_ID)
    if known is not None:
        return known
    given = request.headers.get(headers.REQUEST_ID, "")
    request[REQUEST_ID] = told = given if _SANE_ID.fullmatch(given) else secrets.token_hex(16)
    return told


def served_by(ask: Ask, answer: Answer) -> dict[str, str]:
    """Headers that name who did the work, for which request."""
    return {
        headers.REQUEST_ID: ask.request_id,
        headers.NODE: _one_line(answer.candidate.node_name),
        headers.TIER: str(answer.candidate.model.tier),
        headers.MODEL: _one_line(answer.candidate.model.name),
        headers.ATTEMPTS: str(answer.attempts),
        **_waits(answer),
        **_complexity(answer),
    }


TAKE_S = 60.0
"""A client that reads is never this slow to make room for a few bytes more; one whose lid was closed is."""


@asynccontextmanager
async def stream_response(request: web.Request, extra: Mapping[str, str]) -> AsyncIterator[web.StreamResponse]:
    """An event stream that is ended properly when the block is left normally, and cut off otherwise.

    What is cut off can't be mistaken for what is complete.
    """
    response = web.StreamResponse(headers={**STREAM_HEADERS, **extra})
    await response.prepare(request)
    complete = False
    try:
        yield response
        await _taken(response.write_eof())
        complete = True
    finally:
        if not complete:
            hang_up(request)


async def send(response: web.StreamResponse, piece: bytes) -> None:
    """Write a piece. Raises `ConnectionResetError` for a client that keeps the connection and takes nothing: what it
    has asked for holds a place in an engine.

    Nearly every write finds room and is over at once; a clock is set for the others only.
    """
    await _taken(response.write(piece))


async def _taken(writing: Coroutine[Any, Any, None]) -> None:
    try:
        waits_for = writing.send(None)
    except StopIteration:
        return
    try:
        async with asyncio.timeout(TAKE_S):
            await _continued(writing, waits_for)
    except TimeoutError:
        raise ConnectionResetError(f"the client has taken nothing for {TAKE_S:g} s") from None


@types.coroutine
def _continued(running: Coroutine[Any, Any, None], waits_for: object) -> Generator[object, Any, None]:
    """Go on with a coroutine that was stepped once, and waits for this."""
    while True:
        try:
            step = partial(running.send, (yield waits_for))
        except BaseException as error:  # noqa: BLE001 - whatever is thrown in here is meant for it
            step = partial(running.throw, error)
        try:
            waits_for = step()
        except StopIteration:
            return


def _waits(answer: Answer) -> dict[str, str]:
    told = {headers.WAITED: str(round(answer.waited_s * 1000))} if answer.waited_s else {}
    return told | {headers.LOADING: "true"} if answer.loaded else told


def _complexity(answer: Answer) -> dict[str, str]:
    judged = answer.complexity
    return {} if judged is None else {headers.COMPLEXITY: f"{judged.score:.3f}; tier={judged.tier}"}


def hang_up(request: web.Request) -> None:
    """Close the connection without finishing the answer."""
    if request.transport is not None:
        request.transport.abort()


@lru_cache(maxsize=1024)  # a mesh has fewer names
def _one_line(text: str) -> str:
    """What others call their nodes and models may hold signs that no header can."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
