"""Engines that do what no engine should: each is left for another one, or ends with an error that says so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import pytest
from aiohttp import web
from tests.daemon.still_mesh import StillMesh, still_mesh

from tiermesh.core.routing import RouteRequest
from tiermesh.daemon.api import public
from tiermesh.daemon.ask import Ask

CHAT = "/v1/chat/completions"
Misdeed = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def head_only(request: web.Request) -> web.StreamResponse:
    response = await _stream(request)
    await asyncio.Event().wait()
    return response


async def comments_only(request: web.Request) -> web.StreamResponse:
    response = await _stream(request)
    for _ in range(3):
        await response.write(b": still here\n\n")
    return response


async def empty_stream(request: web.Request) -> web.StreamResponse:
    return await _stream(request)


async def prose(request: web.Request) -> web.StreamResponse:
    response = await _stream(request)
    await response.write(b"data: I am no JSON\n\ndata: [DONE]\n\n")
    return response


async def one_line_without_end(request: web.Request) -> web.StreamResponse:
    """100 MB of one event."""
    response = await _stream(request)
    for _ in range(100):
        await response.write(b"data: " + b"x" * (1024 * 1024))
    return response


async def hundred_megabytes(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(b'{"choices": [], "x": "')
    for _ in range(100):
        await response.write(b"x" * (1024 * 1024))
    return response


async def no_stream(request: web.Request) -> web.StreamResponse:
    return web.json_response({"choices": [{"message": {"content": "whole"}}]})


async def other_json(request: web.Request) -> web.StreamResponse:
    return web.json_response([1, 2, 3])


async def long_reason(request: web.Request) -> web.StreamResponse:
    """An error of 1 MB, which is no reasoned verdict."""
    return web.Response(status=400, text="x" * 1024 * 1024)


async def slow_reason(request: web.Request) -> web.StreamResponse:
    """An error whose reason never comes."""
    response = web.StreamResponse(status=400)
    await response.prepare(request)
    await asyncio.Event().wait()
    return response


async def _stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    return response


async def answer(mesh: StillMesh, streamed: bool) -> tuple[Mapping[str, str], bytes]:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": streamed}
    async with mesh.http.post(mesh.nodes["desk"].url + CHAT, json=body) as reply:
        assert reply.status == 200, await reply.text()
        return reply.headers, await reply.read()


@pytest.mark.parametrize(
    ("misdeed", "streamed"),
    [
        (head_only, True),
        (comments_only, True),
        (empty_stream, True),
        (prose, True),
        (one_line_without_end, True),
        (hundred_megabytes, False),
        (no_stream, True),
        (other_json, False),
        (long_reason, False),
        (slow_reason, False),
    ],
)
async def test_who_misbehaves_before_it_answered_is_left_for_another(
    misdeed: Misdeed, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiermesh.daemon.replies.ERROR_S", 0.1)
    async with still_mesh({"desk": None, "one": 1, "two": 1}, {"one": ("m",), "two": ("m",)}) as mesh:
        mesh.set_policy({"limits": {"first_token_timeout_s": 0.2}})
        bad, good = (c.node_name for c in mesh.nodes["desk"].gateway.plan(RouteRequest("m")).candidates)
        fake = mesh.nodes[bad].fake
        assert fake is not None

        async def answer_badly(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
            return await misdeed(request)

        monkeypatch.setattr(fake, "_answer", answer_badly)
        headers, body = await answer(mesh, streamed)
        assert (headers["X-Mesh-Node"], headers["X-Mesh-Attempts"]) == (good, "2")
        assert good.encode() in body
        assert body.endswith(b"data: [DONE]\n\n") is streamed


async def test_a_stream_without_end_ends_with_the_requests_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public, "Ask", partial(Ask, timeout_s=0.3))
    async with still_mesh({"desk": None, "one": 1}, {"one": ("m",)}) as mesh:
        fake = mesh.nodes["one"].fake
        assert fake is not None

        async def without_end(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
            response = await _stream(request)
            word = json.dumps({"choices": [{"index": 0, "delta": {"content": "word "}}]}).encode()
            while True:
                await response.write(b"data: " + word + b"\n\n")
                await asyncio.sleep(0.001)

        monkeypatch.setattr(fake, "_answer", without_end)
        _, body = await answer(mesh, streamed=True)
        error, done = body.rstrip().split(b"\n\n")[-2:]
        assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "deadline_exceeded"
        assert done == b"data: [DONE]"
        await fake.wait_until("abandoned")
