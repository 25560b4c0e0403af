"""An OpenAI-compatible server as an engine: Ollama, vLLM, SGLang, llama.cpp, LM Studio, or anything alike.

The server belongs to somebody else: it may come, go and change its models at any time. It is asked for its models
again and again, rarely while it is down, and at once after a request found it gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial

import aiohttp

from tiermesh.adapters.engines import Reply
from tiermesh.adapters.engines.server_kinds import Listing, Server, list_models, recognise
from tiermesh.adapters.prompt import Prompt, written
from tiermesh.adapters.reasons import reason_of
from tiermesh.errors import EngineFailed, Unavailable
from tiermesh.protocol.retry_after import seconds_in
from tiermesh.types import EngineInfo, EngineState, Load, Model, Tier

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 1.0
"""It is on this machine or near it; another candidate is better than waiting longer."""

KEEPALIVE_S = 2.0
"""Idle connections are closed before the server does it (uvicorn: after 5 s), lest a request meets a closing one."""

WATCH_S = 5.0
"""Between two looks at a server that answers: how late a new model may be noticed."""

BACKOFF_S = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Between looks at a server that does not answer; the last one for ever."""

DEFAULT_SLOTS = 4
"""Requests at once where neither the person nor the server says: what Ollama and llama.cpp commonly take."""

MAX_REASON_BYTES = 2048
"""As much of an error page as goes into our own message."""

REASON_S = 1.0
"""A server that has failed and is slow to say why is not waited for: somebody else may answer."""


class OpenAIServer:
    """One server at `url`, with or without `/v1`. `kind` None: found out by asking it. `model` None: all its models.

    `on_change` is called whenever info, models or load are not what they were.
    """

    def __init__(
        self,
        *,
        name: str,
        url: str,
        tier: Tier,
        on_change: Callable[[], None],
        kind: str | None = None,
        model: str | None = None,
        token: str | None = None,
        slots: int | None = None,
        watch_s: float = WATCH_S,
        backoff_s: tuple[float, ...] = BACKOFF_S,
    ) -> None:
        self.name = name
        self.url = url.rstrip("/").removesuffix("/v1")
        self._tier = tier
        self._kind = kind
        self._only = model
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._slots = slots
        self._on_change = on_change
        self._watch_s, self._backoff_s = watch_s, backoff_s
        self._state: EngineState = "starting"
        self._listing = Listing(kind or "openai")
        self._models: tuple[Model, ...] = ()
        self._active = 0
        self._http: aiohttp.ClientSession | None = None
        self._watch: asyncio.Task[None] | None = None
        self._look_now = asyncio.Event()

    @property
    def info(self) -> EngineInfo:
        unknown = self._slots is None and self._listing.slots is None
        return EngineInfo(self.name, self._listing.kind, self._state, slots_unknown=unknown)

    @property
    def models(self) -> tuple[Model, ...]:
        return self._models

    @property
    def load(self) -> Load:
        slots = self._slots or self._listing.slots or DEFAULT_SLOTS
        return Load(active=self._active, slots=slots if self._state == "ready" else 0)

    async def start(self) -> None:
        # limit=0: how many requests run at once is routing's business, and a pool would queue them unseen
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
        )
        self._watch = asyncio.create_task(self._run_watch(), name=f"watch {self.name}")

    async def close(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        if self._http is not None:
            await self._http.close()

    def chat(self, body: Mapping[str, object]) -> AbstractAsyncContextManager[Reply]:
        return self._ask("/v1/chat/completions", body)

    def embed(self, body: Mapping[str, object]) -> AbstractAsyncContextManager[Reply]:
        return self._ask("/v1/embeddings", body)

    def _ask(self, path: str, body: Mapping[str, object]) -> Prompt:
        return Prompt(self.name, partial(self._post, path, body), self._count)

    async def _post(self, path: str, body: Mapping[str, object]) -> aiohttp.ClientResponse:
        if self._http is None or self._state == "down":
            raise EngineFailed(f"{self.name} is down")
        headers = {**self._headers, "Content-Type": "application/json", "Accept-Encoding": "identity"}
        try:
            response = await self._http.post(self.url + path, data=written(body), headers=headers)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            self._lost(f"{self.url} does not answer: {reason_of(error)}")
            self._look_now.set()
            raise EngineFailed(f"{self.name} can't be reached: {reason_of(error)}") from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self._look_now.set()
            raise EngineFailed(f"{self.name} closed the connection: {reason_of(error)}") from error
        if response.status >= 500:
            raise await _failure(self.name, response)
        return response

    async def _run_watch(self) -> None:
        failures = 0
        while True:
            failures = 0 if await self._look() else failures + 1
            wait_s = self._backoff_s[min(failures, len(self._backoff_s)) - 1] if failures else self._watch_s
            self._look_now.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._look_now.wait()

    async def _look(self) -> bool:
        assert self._http is not None, "start() comes first"
        server = Server(self._http, self.url, self._headers)
        try:
            if self._kind is None and self._state != "ready":
                self._listing = Listing(await recognise(server) or "openai")
            listing = await list_models(server, self._listing.kind)
        except EngineFailed as error:
            self._lost(str(error))
            return False
        anew = self._state != "ready"
        self._set("ready", listing)
        if anew:
            names = ", ".join(model.name for model in self._models) or "no model"
            log.info("engine %s (%s) at %s is ready with %s", self.name, listing.kind, self.url, names)
        return True

    def _lost(self, why: str) -> None:
        """The server is down; said once, however it was noticed."""
        if self._state != "down":
            log.warning("engine %s: %s", self.name, why)
        self._set("down", self._listing)

    def _set(self, state: EngineState, listing: Listing) -> None:
        models: tuple[Model, ...] = ()
        if state == "ready":
            models = tuple(
                Model(listed.name, listed.digest, self._tier, self.name, listed.state)
                for listed in listing.models
                if self._only is None or listed.name.removesuffix(":latest") == self._only.removesuffix(":latest")
            )
        before = (self._state, self._listing, self._models)
        self._state, self._listing, self._models = state, listing, models
        if before != (state, listing, models):
            self._on_change()

    def _count(self, more: int) -> None:
        self._active += more
        self._on_change()


async def _failure(name: str, response: aiohttp.ClientResponse) -> EngineFailed | Unavailable:
    """5xx as an error; 503 asks for patience."""
    try:
        async with response, asyncio.timeout(REASON_S):
            said = (await response.content.read(MAX_REASON_BYTES)).decode("utf-8", "replace").strip()
    except (aiohttp.ClientError, OSError, TimeoutError):
        said = ""
    message = f"{name} answered HTTP {response.status}: {said}"
    if response.status == 503:
        return Unavailable(message, retry_after_s=seconds_in(response.headers.get("Retry-After"), time.time()))
    return EngineFailed(message)
