"""A scripted daemon for tests of those who talk to one: the public API, in a thread of its own."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from types import TracebackType
from typing import Any, Self

from aiohttp import web

ID = "a" * 32
OTHER_ID = "b" * 32


class FakeMesh:
    """Use as `with FakeMesh() as mesh`. `requests` are (method, path, headers, body) as they came."""

    def __init__(self, *, token: str | None = None) -> None:
        self.token = token
        self.node_id = ID
        self.name = "alpha"
        self.version = "0.1.0"
        self.skew_s = 0.0
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        self.connections: set[Any] = set()
        self.pieces = ["Par", "is", "."]
        self.ending = "done"
        """How a stream ends: `done`, `error`, `cut` (no last event), `hang`."""
        self.failure: tuple[int, dict[str, Any], dict[str, str]] | None = None
        """Answer everything but /health with this: status, body, headers."""
        self.nodes: list[dict[str, Any]] = []
        """Nodes of `/api/cluster` beside itself."""
        self.policy: dict[str, Any] = {}
        self.health: dict[str, Any] = {}
        """What `/api/health` answers."""
        self.route: dict[str, Any] = {"model": "auto"}
        """What `/api/route` answers."""
        self.diagnosis: dict[str, Any] | None = None
        self.hung_up = threading.Event()
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._runner: web.AppRunner | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(5)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")

    def bodies(self, path: str) -> list[Any]:
        return [body for _, at, _, body in self.requests if at == path]

    def node(self, **facts: Any) -> dict[str, Any]:
        """One entry of `nodes`."""
        return {
            "id": self.node_id,
            "name": self.name,
            "urls": [self.url],
            "state": "up",
            "role": "coordinator",
            "tier": 2,
            "models": [{"name": "fake", "digest": "d", "tier": 2, "engine": "fake", "state": "warm"}],
            "engines": [{"name": "fake", "kind": "openai", "state": "ready"}],
            "hardware": {
                "cores": 8,
                "ram_bytes": 32 * 2**30,
                "gpus": [{"name": "RTX 3090", "memory_bytes": 24 * 2**30}],
            },
            "load": {"active": 1, "slots": 4, "queued": 0},
            "latency_ms": 0.4,
            "last_seen": "2026-11-22T00:00:00+00:00",
            "version": self.version,
        } | facts

    def routes(self, app: web.Application) -> None:
        """Add more."""

    async def _start(self) -> None:
        app = web.Application(middlewares=[self._judge])
        app.router.add_get("/health", self._health)
        app.router.add_get("/api/cluster", self._cluster)
        app.router.add_post("/api/cluster/test", self._diagnose)
        app.router.add_get("/api/health", self._mesh_health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/api/config", self._show_policy)
        app.router.add_post("/api/config", self._set_policy)
        app.router.add_post("/api/complete", self._complete)
        app.router.add_post("/api/nodes/{name}/{order}", self._order)
        app.router.add_post("/api/route", self._route)
        self.routes(app)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    @web.middleware
    async def _judge(self, request: web.Request, handler: Any) -> web.StreamResponse:
        body = await request.json() if request.can_read_body and request.content_type == "application/json" else None
        self.requests.append((request.method, request.path, dict(request.headers), body))
        self.connections.add(request.transport)
        if request.path != "/health":
            if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
                return _error(401, {"type": "unauthenticated", "message": "a token is needed"})
            if self.failure is not None:
                status, error, headers = self.failure
                return _error(status, error, headers)
        response: web.StreamResponse = await handler(request)
        return response

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "status": "ok",
                "model": "fake",
                "version": self.version,
                "node": self.name,
                "node_id": self.node_id,
                "cluster": "test",
                "time": time.time() + self.skew_s,
            }
        )

    async def _cluster(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "protocol": 1,
                "cluster": "test",
                "open": self.token is None,
                "self": self.node_id,
                "ballot": {"term": 3, "node_id": ID},
                "coordinator": {"id": ID, "name": "alpha"},
                "version": 7,
                "nodes": [self.node(role="coordinator" if self.node_id == ID else "member"), *self.nodes],
            }
        )

    async def _mesh_health(self, request: web.Request) -> web.Response:
        return web.json_response(self.health)

    async def _diagnose(self, request: web.Request) -> web.Response:
        node = {"id": self.node_id, "name": self.name}
        fine = {"node": node, "version": self.version, "engines": [], "peers": []}
        return web.json_response(fine | (self.diagnosis or {}))

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "fake", "object": "model"}]})

    async def _show_policy(self, request: web.Request) -> web.Response:
        return web.json_response({"ballot": {"term": 3, "node_id": ID}, "version": 2, "policy": self.policy})

    async def _set_policy(self, request: web.Request) -> web.Response:
        self.policy = await request.json()
        return web.json_response({"ballot": {"term": 3, "node_id": ID}, "version": 3, "policy": self.policy})

    async def _route(self, request: web.Request) -> web.Response:
        return web.json_response(self.route)

    async def _order(self, request: web.Request) -> web.Response:
        name, order = (request.match_info[key] for key in ("name", "order"))
        return web.json_response({"node": {"id": self.node_id, "name": name}, "order": order})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        whole = {
            "content": "".join(self.pieces),
            "tool_calls": None,
            "finish_reason": "stop",
            "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
            "model": "fake",
            "node": self.name,
            "tier": 2,
        }
        if not asked.get("stream"):
            return web.json_response(whole)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in self.pieces:
            await response.write(_event({"type": "delta", "content": piece}))
        match self.ending:
            case "done":
                await response.write(_event({"type": "done", **whole}))
            case "error":
                error = {"type": "engine_failed", "message": "the engine died", "node": "beta"}
                await response.write(_event({"type": "error", "error": error}))
            case "hang":
                await self._hang()
        return response

    async def _hang(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.hung_up.set()


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def _error(status: int, error: dict[str, Any], headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": {"node": "alpha", **error}}, status=status, headers=headers)
