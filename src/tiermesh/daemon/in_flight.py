"""How many requests are being worked on, so that a daemon that is to stop knows when it may."""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from tiermesh.adapters.peers import LINK_PATH
from tiermesh.errors import Unavailable


class InFlight:
    """Counts every request but links, which last as long as the mesh does."""

    def __init__(self) -> None:
        self._running = 0
        self._refusing = False
        self._idle = asyncio.Event()
        self._idle.set()

    def refuse(self) -> None:
        """From now on no new work is taken; questions about the mesh are still answered."""
        self._refusing = True

    async def idle(self) -> None:
        """Wait until nothing runs."""
        await self._idle.wait()

    def middleware(self) -> Middleware:
        """Innermost of all: what was refused before never ran."""

        @web.middleware
        async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.path == LINK_PATH:
                return await handler(request)
            if self._refusing and request.method == "POST":
                raise Unavailable("this node is leaving the mesh; ask another one")
            self._enter()
            try:
                return await handler(request)
            finally:
                self._leave()

        return count

    def _enter(self) -> None:
        self._running += 1
        self._idle.clear()

    def _leave(self) -> None:
        self._running -= 1
        if not self._running:
            self._idle.set()
