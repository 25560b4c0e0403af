"""Servers that run on this machine already, found on their usual ports without being told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping

import aiohttp

from tiermesh.adapters.engines.openai_server import CONNECT_TIMEOUT_S
from tiermesh.adapters.engines.server_kinds import Server, is_kind

USUAL_PORTS: Mapping[str, int] = {"ollama": 11434, "lmstudio": 1234, "llamacpp": 8080}

DETECT_S = 30.0
"""Between two looks: whoever starts Ollama after the daemon waits no longer."""


class Detector:
    """Looks for servers at `places` (kind to URL) now and then; each is told to `on_found` once, when it first answers.

    One that goes away later is the business of its engine.
    """

    def __init__(
        self,
        on_found: Callable[[str, str], Awaitable[None]],
        *,
        known: Iterable[str] = (),
        places: Mapping[str, str] | None = None,
        interval_s: float = DETECT_S,
    ) -> None:
        """`known` are URLs that are engines already; `on_found` gets kind and URL."""
        usual = {kind: f"http://127.0.0.1:{port}" for kind, port in USUAL_PORTS.items()}
        taken = {_normal(url) for url in known}
        places = usual if places is None else places
        self._places = {kind: url for kind, url in places.items() if _normal(url) not in taken}
        self._on_found = on_found
        self._interval_s = interval_s
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Look for the first time, which takes milliseconds where nobody listens, and go on looking."""
        await self._look()
        self._task = asyncio.create_task(self._run(), name="detect engines")

    async def close(self) -> None:
        """Stop looking. May be called twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while self._places:
            await asyncio.sleep(self._interval_s)
            await self._look()

    async def _look(self) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            places = tuple(self._places.items())
            answers = await asyncio.gather(*(is_kind(Server(http, url), kind) for kind, url in places))
        for (kind, url), answered in zip(places, answers, strict=True):
            if answered:
                del self._places[kind]
                await self._on_found(kind, url)


def _normal(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1").replace("//localhost:", "//127.0.0.1:")
