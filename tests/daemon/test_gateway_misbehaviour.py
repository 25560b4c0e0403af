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
HELLO = [{"role": "user", "content": "hi"}]
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


def refusal(status: int, **headers: str) -> Misdeed:
    """An error of this status, with these headers."""

    async def refuse(request: web.Request) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response({"error": {"message": "not now"}}, status=status, headers=named)

    refuse.__name__ = f"{status} {headers}"
    return refuse


def whole(body: bytes) -> Misdeed:
    """An answer that ends properly, and is none."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type="application/json")

    answer.__name__ = f"whole {body[:20]!r}"
    return answer


def events(*said: bytes, ended: bool = True) -> Misdeed:
    """A stream that says this much, and then ends, or is cut."""

    async def stream(request: web.Request) -> web.StreamResponse:
        response = await _stream(request)
        for piece in said:
            await response.write(piece)
        if not ended and request.transport is not None:
            request.transport.close()
        return response

    stream.__name__ = f"events {said[-1][:20]!r}"
    return stream


async def nothing_but_a_head(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "9"})
    await response.prepare(request)
    if request.transport is not None:
        request.transport.close()
    return response


async def to_itself(request: web.Request) -> web.StreamResponse:
    raise web.HTTPTemporaryRedirect(request.path)


async def one_line_after_a_word(request: web.Request) -> web.StreamResponse:
    """A word, and then 100 MB of one event."""
    response = await _stream(request)
    await response.write(WORD)
    for _ in range(100):
        await response.write(b"data: " + b"x" * (1024 * 1024))
    return response


WORD = b'data: {"choices": [{"index": 0, "delta": {"content": "word"}, "finish_reason": null}]}\n\n'


async def _stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    return response


def behave(mesh: StillMesh, name: str, misdeed: Misdeed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the engine of this node answer like that."""
    fake = mesh.nodes[name].fake
    assert fake is not None

    async def answer_badly(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        return await misdeed(request)

    monkeypatch.setattr(fake, "_answer", answer_badly)


async def answer(mesh: StillMesh, streamed: bool) -> tuple[Mapping[str, str], bytes]:
    body = {"model": "m", "messages": HELLO, "stream": streamed}
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
        (nothing_but_a_head, False),
        (whole(b""), False),
        (whole(b"{"), False),
        (whole(b"[" * 100_000), False),
        (whole(b'{"choices": []}'), False),
        (whole(b'{"error": {"message": "no"}}'), False),
        (events(b'data: {"choices": [{"del', ended=False), True),
        (events(b'data: {"error": {"message": "no"}}\n\n'), True),
        (events(b"data: " + b"[" * 100_000 + b"\n\n"), True),
        *(
            (misdeed, streamed)
            for streamed in (False, True)
            for misdeed in (
                to_itself,
                refusal(204),
                refusal(304),
                refusal(401),
                refusal(404),
                refusal(429),
                refusal(429, Retry_After="3"),
                refusal(429, Retry_After="9" * 400),
                refusal(429, Retry_After="Wed, 21 Oct 2065 07:28:00 GMT"),
                refusal(500),
                refusal(503),
                refusal(503, Retry_After="-1"),
                refusal(503, Retry_After="soon"),
            )
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None) or ("streamed" if value else "whole"),
)
async def test_who_misbehaves_before_it_answered_is_left_for_another(
    misdeed: Misdeed, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiermesh.daemon.replies.ERROR_S", 0.1)
    async with still_mesh({"desk": None, "one": 1, "two": 1}, {"one": ("m",), "two": ("m",)}) as mesh:
        mesh.set_policy({"limits": {"first_token_timeout_s": 0.2}})
        bad, good = (c.node_name for c in mesh.nodes["desk"].gateway.plan(RouteRequest("m")).candidates)
        behave(mesh, bad, misdeed, monkeypatch)
        headers, body = await answer(mesh, streamed)
        assert (headers["X-Mesh-Node"], headers["X-Mesh-Attempts"]) == (good, "2")
        assert good.encode() in body
        assert body.endswith(b"data: [DONE]\n\n") is streamed


@pytest.mark.parametrize(
    ("retry_after", "told"),
    [
        (None, "1"),
        ("3", "3"),
        ("2.5", "3"),
        ("0", "1"),
        ("soon", "1"),
        ("9" * 12, "3600"),
        ("9" * 400, "1"),
        ("Wed, 21 Oct 2065 07:28:00 GMT", "3600"),
        ("Wed, 21 Oct 2015 07:28:00 GMT", "1"),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("asked", ["desk", "one"])
async def test_when_all_are_busy_the_caller_is_told_until_when(
    asked: str, status: int, retry_after: str | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with still_mesh({"desk": None, "one": 1}, {"one": ("m",)}) as mesh:
        mesh.set_policy({"limits": {"queue_timeout_s": 0}})
        behave(mesh, "one", refusal(status, **({"Retry_After": retry_after} if retry_after else {})), monkeypatch)
        _, answer, headers = await mesh.post(asked, CHAT, {"model": "m", "messages": HELLO})
        assert (answer["error"]["code"], headers["Retry-After"]) == ("unavailable", told)


@pytest.mark.parametrize(
    "misdeed",
    [
        one_line_after_a_word,
        events(WORD, ended=False),
        events(WORD),
        events(WORD, b'data: {"choi', ended=False),
    ],
    ids=lambda value: value.__name__,
)
@pytest.mark.parametrize("asked", ["desk", "one"])
async def test_who_misbehaves_in_the_middle_of_a_stream_ends_it_with_an_error(
    misdeed: Misdeed, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with still_mesh({"desk": None, "one": 1}, {"one": ("m",)}) as mesh:
        behave(mesh, "one", misdeed, monkeypatch)
        body = {"model": "m", "messages": HELLO, "stream": True}
        async with mesh.http.post(mesh.nodes[asked].url + CHAT, json=body) as reply:
            said = await reply.read()
        word, error, done, rest = said.split(b"\n\n")
        assert word + b"\n\n" == WORD
        assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "engine_failed"
        assert (done, rest) == (b"data: [DONE]", b"")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/v1/messages", lambda told: told["type"] == "error" and told["error"]["type"] == "api_error"),
        ("/v1/responses", lambda told: told["type"] == "error" and told["code"] == "engine_failed"),
        ("/v1/completions", lambda told: told["error"]["code"] == "engine_failed"),
        ("/api/chat", lambda told: isinstance(told["error"], str)),
        ("/api/generate", lambda told: isinstance(told["error"], str)),
        ("/api/complete", lambda told: told["type"] == "error" and told["error"]["type"] == "engine_failed"),
    ],
)
async def test_every_dialect_says_in_its_own_words_that_a_stream_broke(
    path: str, says: Callable[[Any], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"prompt": "hi"} if path in ("/v1/completions", "/api/generate") else {"messages": HELLO}
    asked = {"input": "hi"} if path == "/v1/responses" else asked
    asked |= {"max_tokens": 9} if path == "/v1/messages" else {}
    async with still_mesh({"desk": None, "one": 1}, {"one": ("m",)}) as mesh:
        behave(mesh, "one", events(WORD, ended=False), monkeypatch)
        body = {"model": "m", "stream": True, **asked}
        async with mesh.http.post(mesh.nodes["desk"].url + path, json=body) as reply:
            lines = [line for line in (await reply.read()).splitlines() if line.startswith((b"data: {", b"{"))]
        assert b"word" in b"".join(lines[:-1])
        assert says(json.loads(lines[-1].removeprefix(b"data: ")))


@pytest.mark.parametrize("streamed", [False, True])
async def test_who_only_ever_sends_heads_is_given_a_rest(streamed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else is there, so that it is waited for until the request's own time is up."""
    monkeypatch.setattr(public, "Ask", partial(Ask, timeout_s=0.2))
    async with still_mesh({"desk": None, "one": 1}, {"one": ("m",)}) as mesh:
        mesh.set_policy({"routing": {"breaker": {"slow_first_token_s": 0.1}}, "limits": {"queue_timeout_s": 0}})
        behave(mesh, "one", head_only, monkeypatch)
        codes = []
        for _ in range(4):
            _, answer, _ = await mesh.post("desk", CHAT, {"model": "m", "messages": HELLO, "stream": streamed})
            codes.append(answer["error"]["code"])
        assert codes == ["deadline_exceeded"] * 3 + ["unavailable"]


async def test_a_stream_without_end_ends_with_the_requests_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public, "Ask", partial(Ask, timeout_s=2.0))
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
