"""The public API of one node, over real HTTP: shapes, and a clear 4xx for everything that is wrong."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import openai
import pytest
from aiohttp import web
from tests.daemon.still_mesh import MAX_BODY_BYTES, StillMesh, still_mesh, until

from tiermesh.core.routing import Candidate
from tiermesh.daemon.api import bodies, relay
from tiermesh.daemon.api.bodies import BODY_LIMIT
from tiermesh.daemon.api.complete import CompleteTelling
from tiermesh.daemon.api.said import pieces_of
from tiermesh.daemon.ask import Answer, Ask
from tiermesh.daemon.sse import event
from tiermesh.errors import EngineFailed
from tiermesh.protocol.cluster import ClusterReport, HealthReport
from tiermesh.protocol.complete import CompleteDone, CompleteResponse
from tiermesh.types import Gpu, Hardware, Model, NodeId

JSON = {"Content-Type": "application/json"}
HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
async def mesh() -> AsyncIterator[StillMesh]:
    async with still_mesh({"desk": None, "one": 1}, {"one": ("m", "m+tool", "m+half", "m+400")}) as mesh:
        yield mesh


async def test_health_needs_no_mesh(mesh: StillMesh) -> None:
    status, body, _ = await mesh.get("one", "/health")
    report = HealthReport.model_validate(body)
    assert (status, report.status, report.model, report.node) == (200, "ok", "m", "one")
    _, body, _ = await mesh.get("desk", "/health")
    assert body["model"] is None
    mesh.nodes["desk"].draining = True
    assert (await mesh.get("desk", "/health"))[1]["status"] == "draining"


async def test_the_cluster_has_exactly_the_promised_shape(mesh: StillMesh) -> None:
    hardware = Hardware(cpu_model="Z80", cores=1, gpus=(Gpu("Voodoo", 4 << 20),))
    mesh.mark("one", "down", hardware=hardware)
    status, body, _ = await mesh.get("desk", "/api/cluster")
    assert status == 200
    assert ClusterReport.model_validate(body).model_dump() == body
    assert list(body) == ["protocol", "cluster", "open", "self", "ballot", "coordinator", "version", "nodes"]
    desk, one = body["nodes"]
    assert body["self"] == desk["id"] == body["coordinator"]["id"] == body["ballot"]["node_id"]
    assert (desk["role"], desk["state"], desk["tier"], desk["models"]) == ("coordinator", "up", None, [])
    assert one == {
        "id": mesh.nodes["one"].id,
        "name": "one",
        "urls": [mesh.nodes["one"].url],
        "state": "down",
        "role": "member",
        "tier": 1,
        "models": one["models"],
        "engines": [{"name": "fake", "kind": "openai", "state": "ready", "can_continue": False, "slots_unknown": True}],
        "hardware": {
            "cpu_model": "Z80",
            "cores": 1,
            "ram_bytes": None,
            "disk_free_bytes": None,
            "system": None,
            "machine": None,
            "gpus": [{"name": "Voodoo", "memory_bytes": 4 << 20}],
        },
        "load": {"active": 0, "slots": 4, "queued": 0},
        "latency_ms": 1.0,
        "last_seen": "2027-01-15T07:59:55.000Z",
        "version": "0.0.test",
        "health": {"score": None, "state": "unknown", "alerts": []},
        "training": "",
    }
    model = one["models"][0]
    described = {"name": "m", "digest": "", "tier": 1, "engine": "fake", "state": "warm", "progress": None}
    unsaid = {"can_continue": False, "job": "", "breaker": "closed", "retry_after_s": 0.0}
    assert {**model, "digest": ""} == described | unsaid


async def test_the_cluster_shows_what_breakers_are_open_here(mesh: StillMesh) -> None:
    fake = mesh.nodes["one"].fake
    assert fake is not None
    fake.behaviour = "500"
    async with asyncio.timeout(5):  # nobody else is there to be waited for
        for _ in range(3):
            status, _, _ = await mesh.post("desk", "/v1/chat/completions", {"model": "m", "messages": HELLO})
            assert status >= 500
    models = {model["name"]: model for model in (await mesh.get("desk", "/api/cluster"))[1]["nodes"][1]["models"]}
    assert models["m"]["breaker"] == "open"
    assert 0 < models["m"]["retry_after_s"] <= 10
    assert models["m+400"]["breaker"] == "closed"
    _, body, _ = await mesh.post("desk", "/api/route", {"model": "m", "messages": HELLO})
    assert [(c["node"], c["breaker"]) for c in body["left_out"]] == [("one", "open")]
    assert 0 < body["refusal"]["retry_after_s"] <= 10
    others = (await mesh.get("one", "/api/cluster"))[1]["nodes"][1]["models"]
    assert {model["breaker"] for model in others} == {"closed"}, "each node judges for itself"


async def test_a_draining_node_shows_as_draining(mesh: StillMesh) -> None:
    mesh.mark("one", "up", state="draining")
    _, body, _ = await mesh.get("desk", "/api/cluster")
    assert [node["state"] for node in body["nodes"]] == ["up", "draining"]


async def test_models_are_those_of_nodes_that_are_up(mesh: StillMesh) -> None:
    _, body, _ = await mesh.get("desk", "/v1/models")
    assert [card["id"] for card in body["data"]] == ["auto", "tier:1", "m", "m+400", "m+half", "m+tool"]
    assert (await mesh.get("desk", "/v1/models/m:latest"))[1]["owned_by"] == "one"
    mesh.mark("one", "down")
    assert (await mesh.get("desk", "/v1/models"))[1] == {"object": "list", "data": []}
    status, body, _ = await mesh.get("desk", "/v1/models/m")
    assert (status, body["error"]["code"]) == (404, "model_not_found")


async def test_lists_of_models_have_all_names_that_a_request_may_have(mesh: StillMesh) -> None:
    mesh.set_policy(
        {"routing": {"aliases": {"gpt-4o:latest": "m", "best": "tier:1", "gone": "no-such", "m+tool": "m"}}}
    )
    names = ["auto", "best", "gpt-4o", "m+tool", "tier:1", "m", "m+400", "m+half"]
    _, body, _ = await mesh.get("desk", "/v1/models")
    assert [(card["id"], card["owned_by"]) for card in body["data"]] == [(name, "one") for name in names]
    _, body, _ = await mesh.get("desk", "/api/tags")
    tags = [name if ":" in name else f"{name}:latest" for name in names]
    assert [card["model"] for card in body["models"]] == tags
    for path, listed in [("/v1/chat/completions", names), ("/api/chat", tags)]:
        for name in listed:
            status, _, _ = await mesh.post("desk", path, {"model": name, "messages": HELLO, "stream": False})
            failing = {"m+400": 400, "m+half": 502}
            assert status == failing.get(name.removesuffix(":latest"), 200), name
    assert (await mesh.get("desk", "/v1/models/gpt-4o"))[0] == 200


@pytest.mark.parametrize("asked", ["desk", "one"])
async def test_embeddings_are_routed_like_a_chat(mesh: StillMesh, asked: str) -> None:
    body = {"model": "m:latest", "input": ["four", "sixsix"], "encoding_format": "float"}
    status, answer, headers = await mesh.post(asked, "/v1/embeddings", body)
    assert status == 200
    assert [each["embedding"][0] for each in answer["data"]] == [4.0, 6.0]
    assert (headers["X-Mesh-Node"], headers["X-Mesh-Model"]) == ("one", "m")
    fake = mesh.nodes["one"].fake
    assert fake is not None
    assert fake.requests == [{**body, "model": "m"}]


async def test_embeddings_that_are_asked_for_wrongly_or_refused_say_why(mesh: StillMesh) -> None:
    status, answer, _ = await mesh.post("desk", "/v1/embeddings", {"model": "m", "input": []})
    assert (status, answer["error"]["param"]) == (400, "input")
    status, answer, _ = await mesh.post("desk", "/v1/embeddings", {"model": "m+400", "input": "x"})
    assert (status, answer["error"]["message"]) == (400, "messages: too long for this model")


async def test_complete_gives_the_answer_and_who_gave_it(mesh: StillMesh) -> None:
    status, body, headers = await mesh.post("desk", "/api/complete", {"messages": HELLO})
    assert status == 200
    assert CompleteResponse.model_validate(body).model_dump() == body
    assert body["content"] == "one: hello"
    assert (body["node"], body["tier"], body["model"], body["finish_reason"]) == ("one", 1, "m", "stop")
    assert body["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    assert headers["X-Mesh-Node"] == "one"


async def test_a_name_that_no_header_can_hold_is_shown_without_what_is_wrong(mesh: StillMesh) -> None:
    mesh.mark("one", "up", name="o\r\nSet-Cookie: n\x00\x1b\ud800e")
    status, _, headers = await mesh.post("desk", "/api/complete", {"messages": HELLO})
    assert (status, headers["X-Mesh-Node"]) == (200, "o Set-Cookie: n e")
    assert (await events(mesh, {"messages": HELLO, "stream": True}))[-1]["type"] == "done"


async def test_complete_passes_on_exactly_what_was_given(mesh: StillMesh) -> None:
    settings = {"temperature": 0.0, "max_tokens": 1, "top_p": 0.5, "stop": ["x"], "seed": 7, "tools": [TOOL]}
    settings |= {
        "top_k": 3,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
    }
    settings |= {"tool_choice": "required", "parallel_tool_calls": False, "response_format": {"type": "json_object"}}
    messages = [*HELLO, {"role": "tool", "content": "22", "tool_call_id": "c", "name": "weather"}]
    _, body, _ = await mesh.post("desk", "/api/complete", {"messages": messages, "model": "m", **settings})
    assert body["content"] == "one:"
    fake = mesh.nodes["one"].fake
    assert fake is not None
    assert fake.requests == [{"messages": messages, "model": "m", "stream": False, **settings}]


@pytest.mark.parametrize("streamed", [False, True])
async def test_complete_gives_tool_calls(mesh: StillMesh, streamed: bool) -> None:
    asked = {"messages": HELLO, "model": "m+tool", "tools": [TOOL], "stream": streamed}
    body = (await events(mesh, asked))[-1] if streamed else (await mesh.post("desk", "/api/complete", asked))[1]
    (call,) = body["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Paris"}'}
    assert (call["id"], body["finish_reason"], body["content"]) == ("call_1", "tool_calls", None)


async def test_complete_streams_deltas_and_ends_with_the_whole(mesh: StillMesh) -> None:
    found = await events(mesh, {"messages": HELLO, "stream": True})
    assert [event["type"] for event in found] == ["delta"] * (len(found) - 1) + ["done"]
    assert "".join(event["content"] for event in found[:-1]) == found[-1]["content"] == "one: hello"
    assert CompleteDone.model_validate(found[-1]).usage is not None


async def test_a_broken_complete_stream_ends_with_an_error(mesh: StillMesh) -> None:
    found = await events(mesh, {"messages": HELLO, "model": "m+half", "stream": True})
    assert [event["type"] for event in found] == ["delta", "error"]
    assert (found[-1]["error"]["type"], found[-1]["error"]["node"]) == ("engine_failed", "desk")


async def test_an_engines_verdict_is_a_400_of_complete_too(mesh: StillMesh) -> None:
    for streamed in (False, True):
        body = {"messages": HELLO, "model": "m+400", "stream": streamed}
        status, answer, _ = await mesh.post("desk", "/api/complete", body)
        assert (status, answer["error"]["type"]) == (400, "invalid_request")
        assert "too long" in answer["error"]["message"]


async def events(mesh: StillMesh, body: dict[str, Any]) -> list[dict[str, Any]]:
    async with mesh.http.post(mesh.nodes["desk"].url + "/api/complete", json=body) as reply:
        assert reply.content_type == "text/event-stream"
        return [json.loads(line[6:]) async for line in reply.content if line.strip()]


@pytest.mark.parametrize(
    "pieces",
    [
        [{"delta": {"content": ["parts"]}}],
        [{"delta": {"content": "\ud83d"}}],
        [{"delta": {}, "finish_reason": 7}],
        [{"delta": {"tool_calls": [{"index": 0}, {"index": "1"}]}}],
    ],
)
def test_pieces_that_make_no_answer_are_the_engines_failure(pieces: list[dict[str, Any]]) -> None:
    candidate = Candidate(NodeId("a" * 32), "one", Model("m", "", 1, "fake", "warm"), 0, 4, None, True)

    def put_together() -> bytes:
        telling = CompleteTelling(candidate, str)
        for piece in pieces:
            for each in pieces_of(event(json.dumps({"choices": [piece]}))):
                telling.take(each)
        return telling.end()

    with pytest.raises(EngineFailed, match="can't be read"):
        put_together()


async def test_the_policy_can_be_shown_and_changed(mesh: StillMesh) -> None:
    status, body, _ = await mesh.post("one", "/api/config", {"routing": {"aliases": {"gpt": "m"}}})
    assert (status, body["version"], body["policy"]["routing"]["aliases"]) == (200, 1, {"gpt": "m"})
    assert (await mesh.get("desk", "/api/config"))[1] == body
    status, body, _ = await mesh.post("one", "/api/config", {"routing": {"prefer_locale": True}})
    assert (status, body["error"]["type"]) == (400, "invalid_config")
    assert "prefer_locale" in body["error"]["message"]


def chat(**fields: object) -> bytes:
    return json.dumps({"model": "m", "messages": HELLO} | fields).encode()


async def test_a_body_that_is_not_what_its_headers_say_is_a_400(mesh: StillMesh) -> None:
    url = mesh.nodes["desk"].url + "/api/complete"
    async with mesh.http.post(url, data=chat(), headers=JSON | {"Content-Encoding": "gzip"}, compress=False) as reply:
        error = (await reply.json())["error"]
    assert (reply.status, error["type"]) == (400, "invalid_request")
    assert "gzip" in error["message"]


async def test_a_body_that_does_not_come_is_not_waited_for(mesh: StillMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_S", 0.05)

    async def drip() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async with mesh.http.post(mesh.nodes["desk"].url + "/api/complete", data=drip(), headers=JSON) as reply:
        assert reply.status == 400
        assert "did not come within" in (await reply.json())["error"]["message"]


async def test_bodies_of_all_requests_together_have_a_bound(mesh: StillMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    (one, app) = mesh.nodes["one"], app_of(mesh, "one")
    monkeypatch.setattr(app[BODY_LIMIT], "_most_held", 3000)
    big = {"model": "m", "messages": [{"role": "user", "content": "x" * 2000}]}
    assert one.fake is not None
    one.fake.behaviour = "hang"
    first = asyncio.create_task(mesh.post("one", "/v1/chat/completions", big))
    await one.fake.wait_until("started")
    one.fake.behaviour = ""
    status, answer, headers = await mesh.post("one", "/v1/chat/completions", big)
    assert (status, answer["error"]["code"], "Retry-After" in headers) == (503, "unavailable", True)
    assert (await mesh.post("one", "/v1/chat/completions", {"model": "m", "messages": HELLO}))[0] == 200
    first.cancel()
    await until(lambda: app[BODY_LIMIT]._held == 0)
    assert (await mesh.post("one", "/v1/chat/completions", big))[0] == 200, "one alone always fits"


def app_of(mesh: StillMesh, name: str) -> web.Application:
    runner = mesh.nodes[name].runner
    assert runner is not None
    return runner.app


async def test_a_body_in_chunks_counts_in_the_queue_as_any_other(
    mesh: StillMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    gateway = mesh.nodes["one"].gateway
    asked = gateway.chat

    def watched(ask: Ask) -> AbstractAsyncContextManager[Answer]:
        sizes.append(ask.caller.size_bytes)
        return asked(ask)

    monkeypatch.setattr(gateway, "chat", watched)

    async def chunks() -> AsyncIterator[bytes]:
        yield chat()[:10]
        yield chat()[10:]

    url = mesh.nodes["one"].url + "/v1/chat/completions"
    async with mesh.http.post(url, data=chunks(), headers=JSON) as reply:
        assert (reply.status, sizes) == (200, [len(chat())])


@pytest.mark.parametrize("model", ["m", "m+400", "no-such"])
async def test_errors_too_carry_the_id_of_their_request(mesh: StillMesh, model: str) -> None:
    body = {"model": model, "messages": HELLO}
    _, _, headers = await mesh.post("desk", "/v1/chat/completions", body, headers={"X-Request-Id": "mine-1"})
    assert headers["X-Request-Id"] == "mine-1"
    _, _, headers = await mesh.post("desk", "/v1/chat/completions", body)
    assert len(headers["X-Request-Id"]) == 32


async def test_every_route_but_health_demands_the_token() -> None:
    async with still_mesh({"one": 1}, {"one": ("m",)}, token="secret") as mesh:
        routes = [r for r in app_of(mesh, "one").router.routes() if r.resource is not None and r.method != "HEAD"]
        assert len(routes) > 20
        for route in routes:
            assert route.resource is not None
            path = route.resource.canonical.replace("{id}", "m").replace("{name}", "one")
            async with mesh.http.request(route.method, mesh.nodes["one"].url + path, data=b"{}", headers=JSON) as reply:
                assert reply.status == (200 if path == "/health" else 401), path


async def test_a_client_that_takes_nothing_loses_its_place(mesh: StillMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "TAKE_S", 0.2)
    (engine,) = mesh.nodes["one"].engines.values()
    body = chat(stream=True, messages=[{"role": "user", "content": "word " * 40_000}])
    reader, writer = await asyncio.open_connection("127.0.0.1", int(mesh.nodes["one"].url.rpartition(":")[2]), limit=1)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await reader.readexactly(1)
    assert engine.load.active == 1
    await until(lambda: engine.load.active == 0, 20)
    writer.close()


DEEP = b'{"model": "m", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BIG = chat(messages=[{"role": "user", "content": "x" * (3 * 1024 * 1024)}])

BAD_INPUT = {
    "malformed JSON": (b'{"model": "m", ', 400, None, "line 1"),
    "no body": (b"", 400, None, "not valid JSON"),
    "not an object": (b"[1]", 400, None, "object"),
    "invalid UTF-8": (b'{"model": "\xff"}', 400, None, "UTF-8"),
    "NaN": (b'{"model": "m", "temperature": NaN}', 400, None, "NaN"),
    "infinity by overflow": (b'{"model": "m", "temperature": 1e999}', 400, None, "too large"),
    "an endless number": (b'{"model": ' + b"1" * 10_000 + b"}", 400, None, "11111... is too large a number"),
    "deep nesting": (DEEP, 400, None, "nested"),
    "unknown role": (chat(messages=[{"role": "robot", "content": "x"}]), 400, "messages[0].role", "'user'"),
    "no role": (chat(messages=[*HELLO, {"content": "x"}]), 400, "messages[1].role", "required"),
    "empty messages": (chat(messages=[]), 400, "messages", "must not be empty"),
    "no messages": (b'{"model": "m"}', 400, "messages", "required"),
    "messages of the wrong type": (chat(messages="hello"), 400, "messages", "list"),
    "a message of the wrong type": (chat(messages=["hello"]), 400, "messages[0]", "object"),
    "content of the wrong type": (
        chat(messages=[{"role": "user", "content": 7}]),
        400,
        "messages[0].content",
        "string",
    ),
    "model of the wrong type": (chat(model=7), 400, "model", "string"),
    "temperature as text": (chat(temperature="0.5"), 400, "temperature", "number"),
    "temperature too high": (chat(temperature=3), 400, "temperature", "less than or equal to 2"),
    "max_tokens zero": (chat(max_tokens=0), 400, "max_tokens", "greater than or equal to 1"),
    "max_tokens a boolean": (chat(max_tokens=True), 400, "max_tokens", "integer"),
    "stream as text": (chat(stream="yes"), 400, "stream", "boolean"),
    "stop of numbers": (chat(stop=[1]), 400, "stop", "string"),
    "tools of the wrong type": (chat(tools=["weather"]), 400, "tools[0]", "object"),
    "unknown model": (chat(model="gpt-5"), 404, "model", "there are: m,"),
    "unknown tier": (chat(model="tier:9"), 404, "model", "tier:0, tier:1, tier:2"),
    "3 MiB of text": (BIG, 413, None, str(MAX_BODY_BYTES)),
}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/complete"])
@pytest.mark.parametrize("case", BAD_INPUT)
async def test_bad_input_is_a_4xx_that_names_the_field(mesh: StillMesh, path: str, case: str) -> None:
    body, expected, param, said = BAD_INPUT[case]
    async with mesh.http.post(mesh.nodes["desk"].url + path, data=io.BytesIO(body), headers=JSON) as reply:
        assert reply.content_type == "application/json"
        error = (await reply.json())["error"]
    assert (reply.status, error["param"]) == (expected, param), error
    assert said in error["message"]
    assert param is None or error["message"].startswith(param), error
    if path.startswith("/v1/"):
        assert list(error) == ["message", "type", "param", "code"]
        assert error["type"] == "invalid_request_error"
    else:
        assert (list(error), error["node"]) == (["type", "message", "param", "node"], "desk")
    fake = mesh.nodes["one"].fake
    assert fake is not None
    assert fake.requests == [], "no engine hears of it"
    assert (await mesh.post("desk", path, {"model": "m", "messages": HELLO}))[0] == 200, "and no node is harmed"


async def test_the_largest_body_is_what_the_policy_says_now(mesh: StillMesh) -> None:
    mesh.set_policy({"limits": {"max_body_bytes": 1024}})
    body = {"model": "m", "messages": [{"role": "user", "content": "x" * 1024}]}
    status, answer, _ = await mesh.post("desk", "/api/complete", body)
    assert (status, answer["error"]["type"]) == (413, "body_too_large")
    assert "1024 bytes" in answer["error"]["message"]
    mesh.set_policy({"limits": {"max_body_bytes": 4096}})
    assert (await mesh.post("desk", "/api/complete", body))[0] == 200


async def test_several_mistakes_are_told_at_once(mesh: StillMesh) -> None:
    body = {"messages": [], "temperature": "x", "max_tokens": 0, "seed": "y"}
    _, answer, _ = await mesh.post("desk", "/api/complete", body)
    message = answer["error"]["message"]
    assert all(f"{field}: " in message for field in ("messages", "temperature", "max_tokens"))
    assert "and 1 more" in message


async def test_complete_refuses_fields_that_it_does_not_know(mesh: StillMesh) -> None:
    status, answer, _ = await mesh.post("desk", "/api/complete", {"messages": HELLO, "max_token": 5})
    assert (status, answer["error"]["param"]) == (400, "max_token")


async def test_messages_without_content_are_for_tool_calls_only(mesh: StillMesh) -> None:
    status, answer, _ = await mesh.post("desk", "/api/complete", {"messages": [{"role": "user"}]})
    assert (status, answer["error"]["param"]) == (400, "messages[0]")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "application/octet-stream"]
)
async def test_another_content_type_is_a_415(mesh: StillMesh, content_type: str) -> None:
    url, headers = mesh.nodes["desk"].url + "/api/complete", {"Content-Type": content_type}
    async with mesh.http.post(url, data=chat(), headers=headers) as reply:
        error = (await reply.json())["error"]
    assert (reply.status, error["type"]) == (415, "wrong_content_type")
    assert "application/json" in error["message"]


async def test_an_unknown_route_lists_what_exists(mesh: StillMesh) -> None:
    for method in ("GET", "POST"):
        async with mesh.http.request(method, mesh.nodes["desk"].url + "/api/compete") as reply:
            error = (await reply.json())["error"]
        assert (reply.status, error["type"]) == (404, "not_found")
        assert "POST /api/complete" in error["message"]
        assert "/mesh/" not in error["message"]


async def test_a_wrong_method_says_which_is_right(mesh: StillMesh) -> None:
    async with mesh.http.get(mesh.nodes["desk"].url + "/api/complete") as reply:
        error = (await reply.json())["error"]
    assert (reply.status, error["type"], reply.headers["Allow"]) == (405, "method_not_allowed", "POST")


async def test_an_unexpected_error_is_a_500_that_tells_no_secrets(
    mesh: StillMesh, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mesh.nodes["desk"].gateway.dispatch, "plan", lambda *_: 1 / 0)
    status, body, _ = await mesh.post("desk", "/api/complete", {"messages": HELLO})
    assert (status, body["error"]["type"]) == (500, "internal")
    assert "division" not in body["error"]["message"]
    assert [record.exc_info is not None for record in caplog.records if record.levelname == "ERROR"] == [True]


class TestOpenAIClient:
    """The `openai` package, pointed at a node."""

    @pytest.fixture
    async def client(self, mesh: StillMesh) -> AsyncIterator[openai.AsyncOpenAI]:
        async with openai.AsyncOpenAI(base_url=mesh.nodes["desk"].url + "/v1", api_key="any", max_retries=0) as client:
            yield client

    async def test_it_gets_an_answer(self, client: openai.AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(model="auto", messages=[{"role": "user", "content": "hi"}])
        assert answer.choices[0].message.content == "one: hi"
        assert answer.usage is not None

    async def test_it_streams_with_usage(self, client: openai.AsyncOpenAI) -> None:
        stream = await client.chat.completions.create(
            model="tier:1",
            messages=[{"role": "user", "content": "hi you"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "one: hi you"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 3

    async def test_it_raises_its_own_errors(self, client: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.NotFoundError, match="there are: m,"):
            await client.chat.completions.create(model="nope", messages=[{"role": "user", "content": "hi"}])
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model="m", messages=[])
        assert caught.value.param == "messages"

    async def test_a_broken_stream_raises(self, client: openai.AsyncOpenAI) -> None:
        stream = await client.chat.completions.create(
            model="m+half", messages=[{"role": "user", "content": "hi you"}], stream=True
        )
        with pytest.raises(openai.APIError, match="broke off"):
            async for _ in stream:
                pass

    async def test_it_gets_embeddings(self, client: openai.AsyncOpenAI) -> None:
        vectors = await client.embeddings.create(model="m", input="four", encoding_format="float")
        assert vectors.data[0].embedding == [4.0, 0.5]

    async def test_it_lists_models(self, client: openai.AsyncOpenAI) -> None:
        assert "m" in [model.id async for model in client.models.list()]
        assert (await client.models.retrieve("m")).owned_by == "one"
