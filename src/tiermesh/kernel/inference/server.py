"""The worker's HTTP on a Unix socket. No torch here: it answers `/health` while the model still loads."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from tiermesh.errors import EngineFailed, InvalidInput, TiermeshError, Unavailable
from tiermesh.kernel.inference import answers, chat
from tiermesh.kernel.inference.sequence import Event, Failed, Finished, FinishReason, Sequence, Text

if TYPE_CHECKING:
    from tiermesh.kernel.inference.generation import Generator
    from tiermesh.kernel.inference.loading import LoadedModel

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 8 << 20
"""Several times the largest context in use; the daemon in front has its own, smaller limit."""
MAX_WAITING_FOR_LOAD = 16
"""As many as the queue behind the model would hold."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the loader hands over."""

    model: LoadedModel
    generator: Generator


class Server:
    """Serves one model. `load` is called once, in a thread of its own; when it raises, `run` does."""

    def __init__(self, *, name: str, digest: str, load: Callable[[], Loaded]) -> None:
        self._name = name
        self._digest = digest
        self._load = load
        self._loaded: asyncio.Future[Loaded] = asyncio.get_running_loop().create_future()
        self._waiting = 0
        # One thread, because a tokenizer is not made to be used by two.
        self._encoding = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode")

    async def run(self, socket: Path) -> None:
        """Listen, load, and serve for ever; raises what `load` raised."""
        runner = web.AppRunner(self._app(), handler_cancellation=True, access_log=None)
        await runner.setup()
        await web.UnixSite(runner, str(socket)).start()
        self._loaded.set_result(await asyncio.to_thread(self._load))
        log.info("%s is ready", self._name)
        await asyncio.Event().wait()

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[_errors], client_max_size=MAX_BODY_BYTES)
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/v1/models", self._models),
                web.post("/v1/chat/completions", self._chat),
            ]
        )
        return app

    async def _health(self, _: web.Request) -> web.Response:
        loaded = self._loaded.result() if self._loaded.done() else None
        return web.json_response(
            {
                "status": "ready" if loaded else "loading",
                "model": self._name,
                "active": loaded.generator.active if loaded else 0,
                "queued": loaded.generator.queued if loaded else self._waiting,
            }
        )

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response(answers.model_list(self._name, self._digest))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        asked = chat.parse(await _json_body(request))
        loaded = await self._wait_until_loaded()
        loop = asyncio.get_running_loop()
        prompt, max_tokens = await loop.run_in_executor(self._encoding, loaded.model.encoder.encode, asked)
        # Bounded by the context: a sequence has no more events than tokens.
        events: asyncio.Queue[Event] = asyncio.Queue()
        sequence = Sequence(
            prompt=prompt,
            sampling=asked.sampling,
            max_tokens=max_tokens,
            stops=asked.stops,
            emit=lambda event: _hand_over(loop, events, event),
        )
        answer = answers.Answer(self._name, len(prompt))
        async with _submitted(loaded.generator, sequence):
            # Nothing is sent before the first token: until then another node may still take over.
            first = await events.get()
            if isinstance(first, Failed):
                raise EngineFailed(first.message)
            if asked.stream:
                return await _stream(request, answer, first, events, include_usage=asked.include_usage)
            return await _whole(answer, first, events)

    async def _wait_until_loaded(self) -> Loaded:
        if self._loaded.done():
            return self._loaded.result()
        if self._waiting >= MAX_WAITING_FOR_LOAD:
            raise Unavailable(f"{self._name} is being loaded and {self._waiting} requests wait for it already")
        self._waiting += 1
        try:
            return await asyncio.shield(self._loaded)
        finally:
            self._waiting -= 1


@asynccontextmanager
async def _submitted(generator: Generator, sequence: Sequence) -> AsyncIterator[None]:
    """Run a sequence for as long as its client listens."""
    generator.submit(sequence)
    try:
        yield
    finally:
        generator.cancel(sequence)


def _hand_over(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event], event: Event) -> None:
    loop.call_soon_threadsafe(events.put_nowait, event)


async def _whole(answer: answers.Answer, event: Event, events: asyncio.Queue[Event]) -> web.Response:
    texts = []
    while True:
        match event:
            case Text(text):
                texts.append(text)
            case Finished(reason, completion_tokens):
                return _json_response(answer.whole("".join(texts), reason, completion_tokens))
            case Failed(message):
                raise EngineFailed(message)
        event = await events.get()


async def _stream(
    request: web.Request, answer: answers.Answer, event: Event, events: asyncio.Queue[Event], *, include_usage: bool
) -> web.StreamResponse:
    """A stream that fails is broken off, so that nobody takes it for complete."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)
    await response.write(answers.event(answer.chunk({"role": "assistant", "content": ""})))
    while True:
        match event:
            case Text(text):
                if text:
                    await response.write(answers.event(answer.chunk({"content": text})))
            case Finished(reason, completion_tokens):
                await response.write(_stream_end(answer, reason, completion_tokens, include_usage=include_usage))
                await response.write_eof()
                return response
            case Failed():
                if request.transport is not None:
                    request.transport.abort()
                return response
        event = await events.get()


def _stream_end(answer: answers.Answer, reason: FinishReason, completion_tokens: int, *, include_usage: bool) -> bytes:
    last = answers.event(answer.chunk({}, reason))
    usage = answers.event(answer.usage_chunk(completion_tokens)) if include_usage else b""
    return last + usage + answers.DONE


async def _json_body(request: web.Request) -> object:
    try:
        return json.loads(await request.text())
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the body is not JSON: {error}") from error


def _json_response(body: answers.Json, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    text = json.dumps(body, ensure_ascii=False)
    return web.Response(text=text, status=status, content_type="application/json", headers=headers)


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except TiermeshError as error:
        headers = {"Retry-After": f"{error.retry_after_s:.0f}"} if isinstance(error, Unavailable) else None
        return _json_response(answers.error_body(error), error.http_status, headers)
