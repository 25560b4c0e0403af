"""The worker's HTTP on a Unix socket: the same routes and errors as the kernel's own, with llama.cpp behind them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from tiermesh.errors import ContextTooLong, EngineFailed, InvalidInput, TiermeshError, Unavailable
from tiermesh.kernel.inference import answers
from tiermesh.kernel.inference.door import errors_answered, json_body, stream_response
from tiermesh.kernel.llamacpp.backend import Backend
from tiermesh.kernel.llamacpp.translation import Abilities, translate

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 8 << 20
"""Several times the largest context in use; the daemon in front has its own, smaller limit."""
QUEUED_PER_SLOT = 4
"""Requests beyond the slots wait inside llama.cpp, which has no bound of its own; past this they are sent elsewhere."""
HOST = "http://llama"
"""Of no meaning on a Unix socket."""


class Front:
    """Serves one model for as long as the process lives."""

    def __init__(self, backend: Backend, *, name: str, digest: str) -> None:
        self._backend = backend
        self._name = name
        self._digest = digest
        self._inside = 0
        self._abilities: Abilities
        # llama.cpp closes idle connections after 5 s, and one that is just being closed would fail its next request.
        connector = aiohttp.UnixConnector(str(backend.socket), limit=0, force_close=True)
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))

    async def run(self, socket: Path) -> None:
        """Listen, and serve for ever."""
        app = web.Application(middlewares=[errors_answered], client_max_size=MAX_BODY_BYTES)
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/v1/models", self._models),
                web.post("/v1/chat/completions", self._chat),
            ]
        )
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await runner.setup()
        self._abilities = await self._look()
        await web.UnixSite(runner, str(socket)).start()
        log.info("%s is ready", self._name)
        await asyncio.Event().wait()

    async def _health(self, _: web.Request) -> web.Response:
        slots = self._backend.slots
        return web.json_response(
            {
                "status": "ready",
                "model": self._name,
                "active": min(self._inside, slots),
                "queued": max(0, self._inside - slots),
                "slots": slots,
                "progress": 1.0,
                "precision": None,
                "context_length": self._backend.context_length,
                "adapters": [],
            }
        )

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response(answers.model_list(self._name, self._digest, adapters=()))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        asked = translate(await json_body(request), self._abilities)
        with self._admitted():
            try:
                # Leaving the context closes the connection, which stops the generation.
                async with self._session.post(f"{HOST}/v1/chat/completions", json=asked) as answer:
                    if answer.status != 200:
                        raise _error(answer.status, await answer.read())
                    if asked["stream"]:
                        return await _stream(request, answer)
                    return web.Response(body=await answer.read(), content_type="application/json")
            except aiohttp.ClientError as error:
                raise EngineFailed(f"llama.cpp broke off its answer: {error}") from error

    async def _look(self) -> Abilities:
        async with self._session.get(f"{HOST}/props") as answer:
            told = (await answer.json()).get("chat_template_caps", {})
        return Abilities(self._backend.context_length, bool(told.get("supports_tools")))

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        if self._inside >= self._backend.slots * (1 + QUEUED_PER_SLOT):
            raise Unavailable(f"{self._name} works on {self._backend.slots} requests and the queue behind them is full")
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1


async def _stream(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    """The same bytes. A stream that breaks is broken off, so that nobody takes it for complete."""
    response = await stream_response(request)
    try:
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
    except aiohttp.ClientError:
        if request.transport is not None:
            request.transport.abort()
        return response
    await response.write_eof()
    return response


def _error(status: int, body: bytes) -> TiermeshError:
    """What llama.cpp refused is the caller's; what it could not do is ours."""
    told = _told(body)
    message = f"llama.cpp: {told.get('message') or f'status {status}'}"
    if told.get("type") == "exceed_context_size_error":
        return ContextTooLong(message, param="messages")
    if status in (400, 422):
        return InvalidInput(message)
    return Unavailable(message) if status == 503 else EngineFailed(message)


def _told(body: bytes) -> Mapping[str, Any]:
    try:
        told = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return told if isinstance(told, dict) else {}
