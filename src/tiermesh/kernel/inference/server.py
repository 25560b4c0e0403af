"""The worker's HTTP on a Unix socket. No torch here: it answers `/health` while the model still loads."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web
from pydantic import Field

from tiermesh.errors import EngineFailed, InvalidInput, NameTaken, Unavailable, UnknownModel
from tiermesh.kernel.inference import answers, chat
from tiermesh.kernel.inference.door import errors_answered, json_body, json_response, stream_response
from tiermesh.kernel.inference.telling import Telling, telling
from tiermesh.kernel.inference.transcript import Part, gathered
from tiermesh.protocol.openai import EmbeddingRequest
from tiermesh.protocol.validation import Wire, validated

if TYPE_CHECKING:
    from tiermesh.kernel.inference.generation import Generator
    from tiermesh.kernel.inference.loading import LoadedModel

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 8 << 20
"""Several times the largest context in use; the daemon in front has its own, smaller limit."""
MAX_WAITING_FOR_LOAD = 16
"""As many as the queue behind the model would hold."""
MAX_TEXTS = 256
"""Texts in one request for embeddings; each waits for its turn between the steps of the others' answers."""
ANY_MODEL = "auto"
"""What a request that names no model asks for."""
MAX_ADAPTERS = 64
"""All of them are kept in memory, whoever uses them: some MB each beside a small model."""


class _Adapter(Wire):
    """`POST /adapters`."""

    name: str = Field(min_length=1)
    path: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the loader hands over."""

    model: LoadedModel
    generator: Generator


class Server:
    """Serves one model and `adapters` on it, by name, but for those that the loader refuses.

    `load` is called once, in a thread of its own; when it raises, `run` does.
    """

    def __init__(self, *, name: str, digest: str, load: Callable[[], Loaded], adapters: Sequence[str] = ()) -> None:
        self._progress = 0.0
        self._name = name
        self._digest = digest
        self._load = load
        self._adapters = {name: name for name in adapters}
        """What the generator knows each by: a name may come again, with other weights."""
        self._came = 0
        self._changing = asyncio.Lock()
        self._refused: Mapping[str, str] = {}
        self._loaded: asyncio.Future[Loaded] = asyncio.get_running_loop().create_future()
        self._waiting = 0
        # One thread, because a tokenizer is not made to be used by two.
        self._encoding = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode")

    def loading(self, progress: float) -> None:
        """Told by the loader, from its own thread: how much is done, 0 to 1."""
        self._progress = progress

    async def run(self, socket: Path) -> None:
        """Listen, load, and serve for ever; raises what `load` raised."""
        runner = web.AppRunner(self._app(), handler_cancellation=True, access_log=None)
        await runner.setup()
        await web.UnixSite(runner, str(socket)).start()
        loaded = await asyncio.to_thread(self._load)
        self._refused = loaded.model.refused_adapters
        self._adapters = {name: key for name, key in self._adapters.items() if name not in self._refused}
        self._loaded.set_result(loaded)
        log.info("%s is ready", self._name)
        await asyncio.Event().wait()

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[errors_answered], client_max_size=MAX_BODY_BYTES)
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/v1/models", self._models),
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/embeddings", self._embeddings),
                web.post("/adapters", self._add_adapter),
                web.delete("/adapters/{name:.+}", self._drop_adapter),
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
                "slots": loaded.generator.slots if loaded else 0,
                "progress": 1.0 if loaded else self._progress,
                "precision": loaded.model.precision if loaded else None,
                "context_length": loaded.model.encoder.context_length if loaded else None,
                "adapters": list(self._adapters),
            }
        )

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response(answers.model_list(self._name, self._digest, self._adapters))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        asked = chat.parse(await json_body(request))
        self._adapter(asked.model)  # A name that nobody has need not wait; an adapter may be refused by then.
        loaded = await self._wait_until_loaded()
        loop = asyncio.get_running_loop()
        encoded = await loop.run_in_executor(self._encoding, loaded.model.encoder.encode, asked)
        adapter = self._adapter(asked.model)  # No await until it is submitted: whoever goes meanwhile is missed.
        name = self._name if adapter is None else asked.model
        answer = answers.Answer(name, len(encoded.prompt), asked.token_ids, encoded.bytes_of)
        async with telling(loaded.generator, asked, encoded, adapter) as tellings:
            if asked.stream:
                return await _stream(request, answer, tellings[0], asked)
            return await _whole(answer, tellings)

    async def _embeddings(self, request: web.Request) -> web.Response:
        asked = validated(EmbeddingRequest, await json_body(request))
        chat.refuse_unknown(asked.model_extra or {})
        if asked.model not in (self._name, ANY_MODEL):
            raise UnknownModel(f"model: {self._name} makes embeddings here, {asked.model} does not", param="model")
        loaded = await self._wait_until_loaded()
        loop = asyncio.get_running_loop()
        encode = loaded.model.encoder.encode_texts
        rows = await loop.run_in_executor(self._encoding, encode, self._name, asked.input)
        if len(rows) > MAX_TEXTS:
            raise InvalidInput(f"input: at most {MAX_TEXTS} texts", param="input")
        vectors = [await asyncio.wrap_future(loaded.generator.embed(row)) for row in rows]
        if asked.dimensions not in (None, len(vectors[0])):
            raise InvalidInput(f"dimensions: {self._name} has {len(vectors[0])}", param="dimensions")
        as_base64 = asked.encoding_format == "base64"
        return json_response(answers.embeddings(self._name, vectors, sum(map(len, rows)), as_base64=as_base64))

    def _adapter(self, model: str) -> str | None:
        """The generator's name for it; None for the base model, which is also what is served to who names none."""
        if model in (self._name, ANY_MODEL):
            return None
        if model in self._refused:
            raise UnknownModel(f"model: {model} is not served here: {self._refused[model]}", param="model")
        if model not in self._adapters:
            raise UnknownModel(f"model: {model} is not served here; {self._name} is", param="model")
        return self._adapters[model]

    async def _add_adapter(self, request: web.Request) -> web.Response:
        """Those who are answered now notice nothing of it."""
        asked = validated(_Adapter, await json_body(request))
        loaded = await self._wait_until_loaded()
        async with self._changing:
            if asked.name in (self._name, ANY_MODEL) or asked.name in self._adapters:
                raise NameTaken(f"name: {asked.name} is served here already", param="name")
            if len(self._adapters) >= MAX_ADAPTERS:
                raise InvalidInput(f"{self._name} has {MAX_ADAPTERS} adapters already; remove one first", param="name")
            fitted = await asyncio.to_thread(loaded.model.fit, Path(asked.path), self._digest)
            self._came += 1
            key = f"{asked.name}\n{self._came}"  # no name that was given at the start holds a line break
            await asyncio.wrap_future(loaded.generator.install(key, fitted))
            self._adapters[asked.name] = key
            self._refused = {name: why for name, why in self._refused.items() if name != asked.name}
        log.info("the adapter %s is served from %s", asked.name, asked.path)
        return json_response({"name": asked.name})

    async def _drop_adapter(self, request: web.Request) -> web.Response:
        """Nobody gets it any more; who is answered by it now is answered to the end."""
        name = request.match_info["name"]
        loaded = await self._wait_until_loaded()
        if name not in self._adapters:
            raise UnknownModel(f"name: no adapter {name} is served here", param="name")
        loaded.generator.remove(self._adapters.pop(name))
        log.info("the adapter %s is served no longer", name)
        return json_response({"name": name})

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


async def _whole(answer: answers.Answer, tellings: Sequence[Telling]) -> web.Response:
    parts = [gathered([part async for part in told.parts()]) for told in tellings]
    usage = answer.usage(sum(told.tokens for told in tellings), tellings[0].cached_tokens)
    return json_response(answer.whole(parts, usage))


async def _stream(request: web.Request, answer: answers.Answer, told: Telling, asked: chat.Chat) -> web.StreamResponse:
    """A stream that fails is broken off, so that nobody takes it for complete."""
    async with aclosing(told.parts() if asked.token_ids else told.shown_parts()) as parts:
        # Nothing is sent before the first token: until then another node may still take over.
        part = await anext(parts)
        response = await stream_response(request)
        if not asked.resumed:
            await response.write(answers.event(answer.chunk(Part(), first=True)))
        try:
            await response.write(answers.event(answer.chunk(part)))
            async for part in parts:
                await response.write(answers.event(answer.chunk(part)))
        except EngineFailed:
            if request.transport is not None:
                request.transport.abort()
            return response
    usage = answer.usage_chunk(answer.usage(told.tokens, told.cached_tokens))
    await response.write((answers.event(usage) if asked.include_usage else b"") + answers.DONE)
    await response.write_eof()
    return response
