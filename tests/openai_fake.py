"""A scripted OpenAI-compatible server, for tests: in-process (`async with FakeOpenAI(...)`) or as a program.

`python -m tests.openai_fake --name a --model m` prints its URL as the first line and runs until it is killed.

Every answer is `<name>: <last message>`, so a test sees who answered. What goes wrong is chosen by the model's name
(`FakeOpenAI.behaviour` and `--behaviour` set the same for every model):

- before the head: `m+500`, `m+429`, `m+503`, `m+400`, `m+401`, `m+404`; `m+reset` closes, `m+hang` says nothing;
- after it: `m+half` closes in the middle of a JSON body or an SSE event, `m+break` between two events; `m+stall` goes
  silent after the first event; `m+short` ends properly, but too early; `m+errorevent` sends an error as first event;
- `m+garbage` answers 200 with no JSON; `m+slow` takes 0.05 s a word; `m+tool` calls the first of the request's tools.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any, NoReturn

from aiohttp import web

SLOW_WORD_S = 0.05
ERRORS = {
    "400": (400, "messages: too long for this model", {}),
    "401": (401, "wrong key", {}),
    "404": (404, "no such model", {}),
    "429": (429, "slow down", {"Retry-After": "7"}),
    "500": (500, "CUDA error: out of luck", {}),
    "503": (503, "still loading", {"Retry-After": "3"}),
}


class _HungUp(asyncio.CancelledError):
    """The connection is gone, on purpose or not; aiohttp stays quiet about a cancelled handler."""


class FakeOpenAI:
    """One server. `requests`: the chat bodies it got. `started`, `finished`, `abandoned`, `hung_up`:
    what became of them."""

    def __init__(
        self, name: str = "fake", *models: str, delay_s: float = 0.0, token: str | None = None, behaviour: str = ""
    ) -> None:
        self.name = name
        self.models = list(models) or ["fake-model"]
        self.delay_s = delay_s
        self.token = token
        self.behaviour = behaviour
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.started = 0
        self.finished = 0
        self.abandoned = 0
        self.hung_up = 0
        self.changed = asyncio.Event()
        self.app = web.Application(client_max_size=64 * 1024 * 1024)
        self.app.router.add_get("/v1/models", self._list)
        self.app.router.add_post("/v1/chat/completions", self._chat)
        self.app.router.add_post("/v1/embeddings", self._embed)
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listen; gives the base URL, without `/v1`."""
        self._runner = web.AppRunner(self.app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        bound = self._runner.addresses[0]
        self.url = f"http://[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"http://{bound[0]}:{bound[1]}"
        return self.url

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> FakeOpenAI:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def wait_until(self, what: str, count: int = 1, timeout_s: float = 5.0) -> None:
        """Wait until `started`, `finished` or `abandoned` has reached `count`."""
        async with asyncio.timeout(timeout_s):
            while getattr(self, what) < count:
                self.changed.clear()
                await self.changed.wait()

    def _count(self, what: str) -> None:
        setattr(self, what, getattr(self, what) + 1)
        self.changed.set()

    async def _list(self, request: web.Request) -> web.StreamResponse:
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return _error("401")
        data = [{"id": model, "object": "model", "created": 0, "owned_by": self.name} for model in self.models]
        return web.json_response({"object": "list", "data": data})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return _error("401")
        body = await request.json()
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        self._count("started")
        try:
            response = await self._answer(request, body)
        except _HungUp:
            self._count("hung_up")
            raise
        except (asyncio.CancelledError, ConnectionError):
            self._count("abandoned")
            raise _HungUp from None
        self._count("finished")
        return response

    async def _embed(self, request: web.Request) -> web.StreamResponse:
        """The first number of each vector is the length of its text."""
        body = await request.json()
        self.requests.append(body)
        behaviour = self.behaviour or str(body["model"]).partition("+")[2]
        if behaviour in ERRORS:
            return _error(behaviour)
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        data = [
            {"object": "embedding", "index": index, "embedding": [float(len(text)), 0.5]}
            for index, text in enumerate(texts)
        ]
        usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
        return web.json_response({"object": "list", "data": data, "model": body["model"], "usage": usage})

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        behaviour = self.behaviour or str(body["model"]).partition("+")[2]
        await asyncio.sleep(self.delay_s)
        if behaviour in ERRORS:
            return _error(behaviour)
        if behaviour == "hang":
            await asyncio.Event().wait()
        if behaviour == "reset":
            _hang_up(request)
        words = _words(self.name, body)
        if body.get("stream"):
            return await self._stream(request, body, words, behaviour)
        if behaviour == "garbage":
            return web.Response(text="<html>it works</html>", content_type="text/html")
        if behaviour == "slow":
            await asyncio.sleep(SLOW_WORD_S * len(words))
        message: dict[str, Any] = {"role": "assistant", "content": "".join(words)}
        if behaviour == "tool":
            message = {"role": "assistant", "content": None, "tool_calls": [_tool_call(body)]}
        whole = {
            "id": "chatcmpl-fake",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": _finish_reason(behaviour)}],
            "usage": _usage(body, words),
        }
        if behaviour in ("half", "break"):
            return await _half(request, json.dumps(whole).encode())
        return web.json_response(whole)

    async def _stream(
        self, request: web.Request, body: dict[str, Any], words: list[str], behaviour: str
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if behaviour == "errorevent":
            await response.write(b'data: {"error": {"message": "no memory", "type": "server_error"}}\n\n')
            return response
        if behaviour == "garbage":
            await response.write(b"<html>it works</html>")
            return response
        if behaviour == "tool":
            for piece in _tool_call_pieces(body):
                delta = {"tool_calls": [piece]}
                await response.write(_event(body, [{"index": 0, "delta": delta, "finish_reason": None}]))
            words = []
        for position, word in enumerate(words):
            said = {"role": "assistant", "content": word} if position == 0 else {"content": word}
            event = _event(body, [{"index": 0, "delta": said, "finish_reason": None}])
            if position == 1 and behaviour == "half":
                await response.write(event[: len(event) // 2])
                _hang_up(request)
            if position == 1 and behaviour == "break":
                _hang_up(request)
            if position == 1 and behaviour == "stall":
                await asyncio.Event().wait()
            if position == 1 and behaviour == "short":
                return response
            await response.write(event)
            if behaviour == "slow":
                await asyncio.sleep(SLOW_WORD_S)
        await response.write(_event(body, [{"index": 0, "delta": {}, "finish_reason": _finish_reason(behaviour)}]))
        if (body.get("stream_options") or {}).get("include_usage"):
            await response.write(_event(body, [], usage=_usage(body, words)))
        await response.write(b"data: [DONE]\n\n")
        return response


def _words(name: str, body: dict[str, Any]) -> list[str]:
    content = body["messages"][-1].get("content") or ""
    said = content if isinstance(content, str) else " ".join(str(part.get("text", "")) for part in content)
    words = [f"{name}:", *(f" {word}" for word in said.split())]
    return words[: int(body.get("max_tokens") or len(words))]


def _finish_reason(behaviour: str) -> str:
    return "tool_calls" if behaviour == "tool" else "stop"


def _tool_call(body: dict[str, Any]) -> dict[str, Any]:
    name = body["tools"][0]["function"]["name"]
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": '{"city": "Paris"}'}}


def _tool_call_pieces(body: dict[str, Any]) -> list[dict[str, Any]]:
    whole = _tool_call(body)
    first = {"index": 0, **whole, "function": {"name": whole["function"]["name"], "arguments": ""}}
    arguments = whole["function"]["arguments"]
    return [first, *({"index": 0, "function": {"arguments": part}} for part in (arguments[:5], arguments[5:]))]


def _usage(body: dict[str, Any], words: list[str]) -> dict[str, int]:
    prompt = sum(len(str(message.get("content") or "").split()) for message in body["messages"])
    return {"prompt_tokens": prompt, "completion_tokens": len(words), "total_tokens": prompt + len(words)}


def _event(body: dict[str, Any], choices: list[dict[str, Any]], **more: object) -> bytes:
    chunk = {
        "id": "chatcmpl-fake",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": body["model"],
        "choices": choices,
        **more,
    }
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def _error(behaviour: str) -> web.Response:
    status, message, headers = ERRORS[behaviour]
    error = {"message": message, "type": "fake_error", "param": None, "code": None}
    return web.json_response({"error": error}, status=status, headers=headers)


async def _half(request: web.Request, whole: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(whole))})
    await response.prepare(request)
    await response.write(whole[: len(whole) // 2])
    _hang_up(request)


def _hang_up(request: web.Request) -> NoReturn:
    if request.transport is not None:
        request.transport.close()
    raise _HungUp


async def _serve(arguments: argparse.Namespace) -> None:
    fake = FakeOpenAI(arguments.name, *arguments.model, delay_s=arguments.delay, behaviour=arguments.behaviour)
    print(await fake.start(arguments.host, arguments.port), flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="A scripted OpenAI-compatible server.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--name", default="fake")
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--behaviour", default="", help="500, 429, 503, 400, reset, hang, half, break, stall, ...")
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
