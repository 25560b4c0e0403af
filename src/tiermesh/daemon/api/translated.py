"""A request in another API's words, carried by the gateway as the chat it is, and its answer told in those words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from aiohttp import web

from tiermesh.core.routing import Candidate, RouteRequest
from tiermesh.daemon.api.callers import caller_of
from tiermesh.daemon.api.context import CONTEXT
from tiermesh.daemon.api.relay import request_id, send, served_by, stream_response
from tiermesh.daemon.api.said import Piece, pieces_in, pieces_of
from tiermesh.daemon.gateway import Answer, Ask
from tiermesh.daemon.sse import error_in
from tiermesh.errors import EngineFailed, InvalidInput, TiermeshError


class Telling(Protocol):
    """One answer in the words of one API.

    `begin`, `take` for each piece, `end` (or `failed`, at any point after `begin`) give the bytes of a stream; after
    `end`, `body` gives the same answer whole. All but `begin` and `failed` may raise `EngineFailed`.
    """

    media_type: str

    def begin(self) -> bytes: ...
    def take(self, piece: Piece) -> bytes: ...
    def end(self) -> bytes: ...
    def failed(self, error: TiermeshError) -> bytes: ...
    def body(self) -> Mapping[str, object]: ...


MakeTelling = Callable[[Candidate], Telling]
"""From whoever answers."""


def asking(request: web.Request, body: Mapping[str, Any], *, model: str, stream: bool) -> Ask:
    """The request as the gateway takes it. `body` is a chat completion's, without `model` and `stream`."""
    how = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    return Ask(
        body={**body, **how},
        route=RouteRequest(model),
        stream=stream,
        request_id=request_id(request),
        caller=caller_of(request),
    )


async def answered(request: web.Request, ask: Ask, make: MakeTelling) -> web.StreamResponse:
    """Have it answered, and tell the answer."""
    async with request.app[CONTEXT].gateway.chat(ask) as answer:
        pieces = judged(answer)
        telling = make(answer.candidate)
        if answer.events is not None:
            return await _stream(request, ask, answer, telling)
        telling.begin()
        for piece in pieces:
            telling.take(piece)
        telling.end()
        return web.json_response(telling.body(), headers=served_by(ask, answer))


def judged(answer: Answer) -> list[Piece]:
    """What a whole answer says; nothing yet for a stream. Raises `InvalidInput` with the engine's verdict."""
    if answer.events is not None:
        return []
    if answer.status != 200:
        raise verdict(answer)
    pieces = pieces_in(answer.body)
    if not pieces:
        raise EngineFailed(f"{answer.candidate.node_name} answered without a choice")
    return pieces


def verdict(answer: Answer) -> InvalidInput:
    """What an engine says of a request that it refused."""
    text = answer.body.decode("utf-8", "replace")
    return InvalidInput(error_in(text) or text or f"refused with HTTP {answer.status}")


async def _stream(request: web.Request, ask: Ask, answer: Answer, telling: Telling) -> web.StreamResponse:
    assert answer.events is not None, "only streams come here"
    head = {**served_by(ask, answer), "Content-Type": telling.media_type}
    async with stream_response(request, head) as response:
        await send(response, telling.begin())
        try:
            async for events in answer.events:
                if told := b"".join([telling.take(piece) for piece in pieces_of(events)]):
                    await send(response, told)
            await send(response, telling.end())
        except TiermeshError as error:
            await send(response, telling.failed(error))
    return response
