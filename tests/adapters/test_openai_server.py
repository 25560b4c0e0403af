"""A server as an engine: watched, counted, recognised by what it says of itself, and never trusted to stay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer, TestServer
from tests.openai_fake import FakeOpenAI

from tiermesh.adapters.engines import openai_server
from tiermesh.adapters.engines.openai_server import DEFAULT_SLOTS, OpenAIServer
from tiermesh.errors import EngineFailed, Unavailable

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


class Changes:
    """Counts what an engine tells, and waits for a state of it."""

    def __init__(self) -> None:
        self.count = 0
        self._event = asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
        self._event.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                self._event.clear()
                await self._event.wait()


@asynccontextmanager
async def running(url: str, changes: Changes | None = None, **options: Any) -> AsyncIterator[OpenAIServer]:
    """An engine that watches quickly; entered when its first look is over."""
    changes = changes or Changes()
    quick: dict[str, Any] = {"watch_s": 0.02, "backoff_s": (0.02,)}
    engine = OpenAIServer(name="e", url=url, tier=1, on_change=changes, **(quick | options))
    await engine.start()
    try:
        await changes.until(lambda: engine.info.state != "starting")
        yield engine
    finally:
        await engine.close()
        await engine.close()


@asynccontextmanager
async def pages(**by_path: Any) -> AsyncIterator[str]:
    """A server that answers each path (`api_tags` for `/api/tags`) with fixed JSON."""

    async def answer(request: web.Request) -> web.Response:
        key = request.path.strip("/").replace("/", "_")
        return web.json_response(by_path[key]) if key in by_path else web.Response(status=404)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def cards(*names: str, **more: object) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": name, "object": "model", **more} for name in names]}


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_it_serves_what_the_server_lists(suffix: str) -> None:
    async with FakeOpenAI("f", "m", "n") as fake, running(fake.url + suffix) as engine:
        assert (engine.info.kind, engine.info.state) == ("openai", "ready")
        assert [(m.name, m.tier, m.engine, m.state) for m in engine.models] == [
            ("m", 1, "e", "warm"),
            ("n", 1, "e", "warm"),
        ]
        assert engine.load.slots == DEFAULT_SLOTS


async def test_equal_names_on_equal_servers_have_equal_digests_and_others_differ() -> None:
    async with FakeOpenAI("f", "m", "n") as a, FakeOpenAI("g", "m") as b, running(a.url) as one, running(b.url) as two:
        assert one.models[0].digest == two.models[0].digest != one.models[1].digest
    async with pages(v1_models=cards("m", root="/other/weights")) as url, running(url) as three:
        assert three.models[0].digest != two.models[0].digest


async def test_one_model_only_when_asked_for() -> None:
    async with FakeOpenAI("f", "m:latest", "n") as fake, running(fake.url, model="m", slots=9) as engine:
        assert [m.name for m in engine.models] == ["m:latest"]
        assert engine.load.slots == 9


async def test_models_that_come_and_go_are_noticed() -> None:
    changes = Changes()
    async with FakeOpenAI("f", "m") as fake, running(fake.url, changes) as engine:
        fake.models = ["n"]
        await changes.until(lambda: [m.name for m in engine.models] == ["n"])


async def test_models_that_answer_no_chat_are_left_out() -> None:
    names = ["m", "nomic-embed-text", "bge-m3:latest", "whisper-1", "tts-1", "mxbai-rerank", "qwen3-embedding:8b"]
    async with FakeOpenAI("f", *names) as fake, running(fake.url) as engine:
        assert [m.name for m in engine.models] == ["m"]


async def test_a_server_that_goes_and_comes_back_is_down_in_between() -> None:
    changes = Changes()
    fake = FakeOpenAI("f", "m")
    await fake.start()
    port = int(fake.url.rpartition(":")[2])
    async with running(fake.url, changes) as engine:
        await fake.close()
        await changes.until(lambda: engine.info.state == "down")
        assert (engine.models, engine.load.slots) == ((), 0)
        with pytest.raises(EngineFailed):
            async with engine.chat(BODY):
                pass
        await fake.start(port=port)
        await changes.until(lambda: engine.info.state == "ready")
        assert [m.name for m in engine.models] == ["m"]
        await fake.close()


async def test_a_request_that_finds_the_server_gone_makes_the_engine_look_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    changes = Changes()
    async with FakeOpenAI("f", "m") as fake, running(fake.url, changes, watch_s=60) as engine:
        await fake.close()
        with pytest.raises(EngineFailed):
            async with engine.chat(BODY):
                pass
        await changes.until(lambda: engine.info.state == "down")
        assert caplog.messages == [f"engine {engine.info.name}: {fake.url} does not answer: connection refused"]


async def test_requests_are_counted_while_they_run_and_passed_on_unchanged() -> None:
    body = {**BODY, "temperature": 0.0, "odd": {"field": None}}
    async with FakeOpenAI("f", "m") as fake, running(fake.url) as engine:
        async with engine.chat(body) as reply:
            assert engine.load.active == 1
            assert (reply.status, reply.content_type) == (200, "application/json")
            assert b"f: hi" in b"".join([chunk async for chunk in reply.chunks])
        assert engine.load.active == 0
        assert fake.requests == [body]


async def test_leaving_stops_the_generation() -> None:
    async with FakeOpenAI("f", "m+stall") as fake, running(fake.url) as engine:
        async with engine.chat({**BODY, "model": "m+stall", "stream": True}) as reply:
            assert (await anext(reply.chunks)).startswith(b"data: ")
        await fake.wait_until("abandoned")
        assert engine.load.active == 0


async def test_verdicts_pass_and_failures_raise() -> None:
    async with FakeOpenAI("f", "m") as fake, running(fake.url) as engine:
        for behaviour in ("400", "429"):
            fake.behaviour = behaviour
            async with engine.chat(BODY) as reply:
                assert reply.status == int(behaviour)
        for behaviour, said in (("500", "CUDA error"), ("reset", "closed the connection")):
            fake.behaviour = behaviour
            with pytest.raises(EngineFailed, match=said):
                async with engine.chat(BODY):
                    pass
        fake.behaviour = "503"
        with pytest.raises(Unavailable) as caught:
            async with engine.chat(BODY):
                pass
        assert caught.value.retry_after_s == 3
        fake.behaviour = "half"
        async with engine.chat(BODY) as reply:
            with pytest.raises(EngineFailed, match="broke off"):
                [chunk async for chunk in reply.chunks]
        assert (engine.info.state, engine.load.active) == ("ready", 0)


async def test_the_servers_own_token_is_shown_to_it() -> None:
    async with FakeOpenAI("f", "m", token="s3") as fake:
        async with running(fake.url, token="s3") as engine, engine.chat(BODY) as reply:
            assert reply.status == 200
        async with running(fake.url) as engine:
            assert engine.info.state == "down"


async def test_ollama_gives_its_own_digests_and_says_what_is_in_memory() -> None:
    tags = {"models": [{"name": "m:latest", "digest": "ab" * 32}, {"name": "n:8b", "digest": "cd" * 32}]}
    running_now = {"models": [{"name": "n:8b"}]}
    listed = cards("m:latest", "n:8b")
    async with pages(api_tags=tags, api_ps=running_now, v1_models=listed) as url, running(url) as engine:
        assert engine.info.kind == "ollama"
        assert [(m.digest, m.state) for m in engine.models] == [
            ("sha256:" + "ab" * 32, "cold"),
            ("sha256:" + "cd" * 32, "warm"),
        ]


async def test_lm_studio_says_what_can_chat_and_what_is_loaded() -> None:
    told = {
        "data": [
            {"id": "m", "type": "llm", "state": "loaded", "quantization": "Q4_K_M"},
            {"id": "n", "type": "vlm", "state": "not-loaded", "quantization": "Q8_0"},
            {"id": "o", "type": "embeddings", "state": "loaded"},
        ]
    }
    async with pages(api_v0_models=told, v1_models=cards("m", "n", "o")) as url, running(url) as engine:
        assert engine.info.kind == "lmstudio"
        assert [(m.name, m.state) for m in engine.models] == [("m", "warm"), ("n", "cold")]


async def test_llamacpp_says_how_many_requests_it_takes() -> None:
    listed = cards("m", meta={"n_params": 7})
    async with pages(props={"total_slots": 2}, v1_models=listed) as url, running(url) as engine:
        assert (engine.info.kind, engine.load.slots) == ("llamacpp", 2)


async def test_vllm_is_known_by_its_models_owner() -> None:
    async with pages(v1_models=cards("m", owned_by="vllm")) as url, running(url) as engine:
        assert engine.info.kind == "vllm"


@pytest.mark.parametrize("page", [[], {"data": "none"}, {"error": "x"}, "text", None])
async def test_a_server_that_talks_nonsense_is_down(page: object) -> None:
    async with pages(v1_models=page) as url, running(url) as engine:
        assert engine.info.state == "down"


async def test_entries_that_make_no_sense_are_skipped() -> None:
    page = {"data": [{"id": "m"}, {"id": 7}, "n", {}]}
    async with pages(v1_models=page) as url, running(url) as engine:
        assert [m.name for m in engine.models] == ["m"]


async def test_a_daemon_of_a_mesh_is_no_engine() -> None:
    async def listing(request: web.Request) -> web.Response:
        return web.json_response(cards("m"), headers={"X-Mesh-Node": "desk"})

    app = web.Application()
    app.router.add_get("/v1/models", listing)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with running(f"http://127.0.0.1:{runner.addresses[0][1]}") as engine:
        assert engine.info.state == "down"
    await runner.cleanup()


async def test_a_failed_server_that_does_not_say_why_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_server, "REASON_S", 0.02)
    async with FakeOpenAI("x", "m") as fake, running(fake.url, watch_s=60) as engine:
        server = RawTestServer(_fail_and_stall)
        async with server:
            engine.url = str(server.make_url("")).rstrip("/")
            async with asyncio.timeout(5):
                with pytest.raises(EngineFailed, match="HTTP 500"):
                    async with engine.chat(BODY):
                        pass


async def _fail_and_stall(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse(status=500)
    await response.prepare(request)
    await asyncio.Event().wait()
    return response


async def test_streams_read_to_their_last_event_share_one_connection() -> None:
    callers = set()

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})

    async def chat(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        callers.add(request.transport.get_extra_info("peername"))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: [DONE]\n\n")
        return response

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/chat/completions", chat)
    async with TestServer(app) as server, running(str(server.make_url("/")), kind="openai") as engine:
        for _ in range(3):
            async with engine.chat(BODY) as reply:
                assert await anext(aiter(reply.chunks)) == b"data: [DONE]\n\n"
    assert len(callers) == 1
