"""The least that a gateway in this language can do: aiohttp's server and client, and nothing between them.

`python -m benchmarks.gateway.bare PORT UPSTREAM`
"""

from __future__ import annotations

import sys

import aiohttp
import uvloop
from aiohttp import web

UPSTREAM = web.AppKey("upstream", str)
HTTP = web.AppKey("http", aiohttp.ClientSession)


async def chat(request: web.Request) -> web.StreamResponse:
    body = await request.read()
    headers = {"Content-Type": "application/json"}
    async with request.app[HTTP].post(request.app[UPSTREAM] + request.path, data=body, headers=headers) as reply:
        if reply.content_type != "text/event-stream":
            return web.Response(status=reply.status, body=await reply.read(), content_type=reply.content_type)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        async for piece in reply.content.iter_any():
            await response.write(piece)
        return response


async def models(request: web.Request) -> web.Response:
    async with request.app[HTTP].get(request.app[UPSTREAM] + request.path) as reply:
        return web.Response(status=reply.status, body=await reply.read(), content_type=reply.content_type)


async def make_app(upstream: str) -> web.Application:
    app = web.Application()
    app[UPSTREAM] = upstream
    app[HTTP] = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(600))
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/models", models)
    return app


def main() -> None:
    port, upstream = int(sys.argv[1]), sys.argv[2]
    loop = uvloop.new_event_loop()
    web.run_app(make_app(upstream), host="127.0.0.1", port=port, access_log=None, print=lambda _: None, loop=loop)


if __name__ == "__main__":
    main()
