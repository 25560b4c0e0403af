"""`POST /v1/completions`."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from aiohttp import web

from tiermesh.core.routing import Candidate
from tiermesh.daemon.api.bodies import read_object
from tiermesh.daemon.api.context import CONTEXT
from tiermesh.daemon.api.relay import served_by
from tiermesh.daemon.api.translate_completions import CompletionTelling, chat_bodies, merged
from tiermesh.daemon.api.translated import answered, asking, judged
from tiermesh.daemon.gateway import Ask
from tiermesh.protocol.completions import CompletionRequest
from tiermesh.protocol.validation import validated


class _Make(Protocol):
    def __call__(self, candidate: Candidate, position: int = 0) -> CompletionTelling: ...


def register_completions(app: web.Application) -> None:
    """Add the route."""
    app.router.add_post("/v1/completions", completions)


async def completions(request: web.Request) -> web.StreamResponse:
    """One prompt, streamed or not, or several at once."""
    asked = validated(CompletionRequest, await read_object(request))
    bodies = chat_bodies(asked)
    ident, created = f"cmpl-{uuid.uuid4().hex}", int(request.app[CONTEXT].wall())

    def make(candidate: Candidate, position: int = 0) -> CompletionTelling:
        first = position * (asked.n or 1)
        return CompletionTelling(asked, asked.prompts[position], candidate.model.name, ident, created, first)

    if len(bodies) == 1:
        ask = asking(request, bodies[0], model=asked.model, stream=bool(asked.stream))
        return await answered(request, ask, make)
    return await _all(request, asked, bodies, make)


async def _all(
    request: web.Request, asked: CompletionRequest, bodies: list[dict[str, Any]], make: _Make
) -> web.Response:
    """Every prompt at the same time; one that fails ends the others. The headers name who answered the first."""
    asks = [asking(request, body, model=asked.model, stream=False) for body in bodies]
    try:
        async with asyncio.TaskGroup() as group:
            running = [
                group.create_task(_one(request, ask, partial(make, position=position)))
                for position, ask in enumerate(asks)
            ]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    told = [task.result() for task in running]
    return web.json_response(merged([telling for telling, _ in told]), headers=told[0][1])


async def _one(
    request: web.Request, ask: Ask, make: Callable[[Candidate], CompletionTelling]
) -> tuple[CompletionTelling, Mapping[str, str]]:
    async with request.app[CONTEXT].gateway.chat(ask) as answer:
        telling = make(answer.candidate)
        for piece in judged(answer):
            telling.take(piece)
        return telling, served_by(ask, answer)
