"""What a caller sees of the gateway: whoever can answer does; nothing hangs, and nothing is cut silently."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from prometheus_client import generate_latest
from tests.daemon.still_mesh import StillMesh, still_mesh, until

from tiermesh.adapters.engines import Reply
from tiermesh.core.routing import RouteRequest
from tiermesh.daemon.api import public
from tiermesh.daemon.ask import Ask
from tiermesh.errors import WorkerDied

CHAT = "/v1/chat/completions"


def ask(model: str = "auto", text: str = "are you there", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


def content(answer: dict[str, Any]) -> str:
    said = answer["choices"][0]["message"]["content"]
    assert isinstance(said, str)
    return said


@pytest.fixture
async def mesh() -> AsyncIterator[StillMesh]:
    """`desk` has no engine; `one` and `two` have both `m` and each a model of its own."""
    models = {"one": ("m", "only-one"), "two": ("m", "only-two")}
    async with still_mesh({"desk": None, "one": 1, "two": 2}, models) as mesh:
        yield mesh


def make_worse(mesh: StillMesh, behaviour: str) -> tuple[str, str]:
    """Have the node that routing prefers misbehave; gives its name and the other's."""
    route = mesh.nodes["desk"].gateway.plan(RouteRequest("m"))
    first, second = (candidate.node_name for candidate in route.candidates)
    fake = mesh.nodes[first].fake
    assert fake is not None
    fake.behaviour = behaviour
    return first, second


async def test_a_node_without_an_engine_answers_through_another_and_says_who(mesh: StillMesh) -> None:
    status, answer, headers = await mesh.post("desk", CHAT, ask("only-one"))
    assert (status, content(answer)) == (200, "one: are you there")
    assert [headers[f"X-Mesh-{x}"] for x in ("Node", "Tier", "Model", "Attempts")] == ["one", "1", "only-one", "1"]


async def test_a_tier_is_its_default_model_and_the_engine_is_asked_by_the_models_own_name(mesh: StillMesh) -> None:
    _, answer, headers = await mesh.post("desk", CHAT, ask("tier:2", chat_template_kwargs={"thinking": False}))
    assert content(answer).startswith("two:")
    fake = mesh.nodes["two"].fake
    assert fake is not None
    (body,) = fake.requests
    assert body["model"] == headers["X-Mesh-Model"] == "m"
    assert body["chat_template_kwargs"] == {"thinking": False}, "fields that we don't know are the engine's business"
    assert "engine" not in body


@pytest.mark.parametrize("behaviour", ["500", "503", "429", "401", "404", "reset", "garbage", "half", "break"])
async def test_a_failing_candidate_is_replaced_silently(mesh: StillMesh, behaviour: str) -> None:
    _, second = make_worse(mesh, behaviour)
    status, answer, headers = await mesh.post("desk", CHAT, ask("m"))
    assert (status, content(answer)) == (200, f"{second}: are you there")
    assert headers["X-Mesh-Attempts"] == "2"


@pytest.mark.parametrize("behaviour", ["500", "503", "429", "401", "reset", "garbage", "errorevent"])
async def test_a_stream_that_never_began_is_replaced_silently(mesh: StillMesh, behaviour: str) -> None:
    _, second = make_worse(mesh, behaviour)
    text, error = await stream(mesh, "desk", ask("m", stream=True))
    assert (text, error) == (f"{second}: are you there", None)


@pytest.mark.parametrize("behaviour", ["half", "break", "short"])
@pytest.mark.parametrize("asked", ["desk", "worker"])
async def test_a_stream_that_breaks_ends_with_an_error_event(mesh: StillMesh, behaviour: str, asked: str) -> None:
    first, _ = make_worse(mesh, behaviour)
    text, error = await stream(mesh, first if asked == "worker" else "desk", ask("m", stream=True))
    assert text == f"{first}:"
    assert error is not None
    assert error["type"] == "server_error"
    assert error["code"] == "engine_failed"


async def test_a_verdict_on_the_request_is_the_callers_and_is_not_tried_elsewhere(mesh: StillMesh) -> None:
    first, second = make_worse(mesh, "400")
    status, answer, headers = await mesh.post("desk", CHAT, ask("m"))
    assert (status, headers["X-Mesh-Node"]) == (400, first)
    assert "too long" in answer["error"]["message"]
    other = mesh.nodes[second].fake
    assert other is not None
    assert other.requests == []


@pytest.mark.parametrize("asked", ["desk", "one"])
async def test_a_request_that_kills_two_workers_is_not_sent_to_a_third(asked: str) -> None:
    names = ("one", "two", "three")
    async with still_mesh({"desk": None, **dict.fromkeys(names, 1)}, dict.fromkeys(names, ("m",))) as mesh:
        deaths = [die_of(mesh, name) for name in names]
        status, answer, _ = await mesh.post(asked, CHAT, ask("m"))
        assert (status, answer["error"]["code"]) == (422, "poisoned_request")
        assert sum(map(len, deaths)) == 2
        deaths[0].clear()
        status, answer, _ = await mesh.post(asked, "/api/complete", {"messages": ask()["messages"], "model": "m"})
        assert (status, answer["error"]["type"]) == (422, "poisoned_request")


async def test_a_worker_that_dies_once_is_chance(mesh: StillMesh) -> None:
    first, second = make_worse(mesh, "")
    died = die_of(mesh, first)
    _, answer, headers = await mesh.post("desk", CHAT, ask("m"))
    assert (content(answer), headers["X-Mesh-Attempts"], len(died)) == (f"{second}: are you there", "2", 1)


def die_of(mesh: StillMesh, name: str) -> list[object]:
    """Have a node's worker die of every request; gives the list of those."""
    died: list[object] = []

    @asynccontextmanager
    async def chat(body: object) -> AsyncIterator[Reply]:
        died.append(body)
        raise WorkerDied(f"the worker of {name} died")
        yield

    mesh.nodes[name].engines["fake"].chat = chat  # type: ignore[method-assign]
    return died


async def test_when_all_stay_busy_the_answer_is_503_with_the_shortest_wait(mesh: StillMesh) -> None:
    mesh.set_policy({"limits": {"queue_timeout_s": 0.05}})
    for name, behaviour in (("one", "429"), ("two", "503")):
        fake = mesh.nodes[name].fake
        assert fake is not None
        fake.behaviour = behaviour
    status, answer, headers = await mesh.post("desk", CHAT, ask("m"))
    assert (status, headers["Retry-After"]) == (503, "3")
    assert answer["error"]["code"] == "unavailable"
    assert "one:" in answer["error"]["message"]
    assert "two:" in answer["error"]["message"]


async def test_when_all_fail_the_answer_says_what_each_said(mesh: StillMesh) -> None:
    for name in ("one", "two"):
        fake = mesh.nodes[name].fake
        assert fake is not None
        fake.behaviour = "500"
    status, answer, _ = await mesh.post("desk", CHAT, ask("m"))
    assert status == 502
    assert answer["error"]["message"].count("CUDA error") == 2


async def test_a_dead_node_among_the_candidates_costs_nobody_an_answer(mesh: StillMesh) -> None:
    first, second = make_worse(mesh, "")
    await mesh.nodes[first].stop_serving()
    for _ in range(5):
        status, answer, _ = await mesh.post("desk", CHAT, ask("m"))
        assert (status, content(answer)) == (200, f"{second}: are you there")


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_pending_candidate_whose_node_goes_down_is_left_at_once(mesh: StillMesh, streamed: bool) -> None:
    first, second = make_worse(mesh, "hang")
    fake = mesh.nodes[first].fake
    assert fake is not None
    pending = asyncio.create_task(stream(mesh, "desk", ask("m", stream=True)) if streamed else post_text(mesh))
    await fake.wait_until("started")
    began = time.monotonic()
    mesh.mark(first, "down")
    text, error = await pending
    assert (text, error) == (f"{second}: are you there", None)
    assert time.monotonic() - began < 1.9, "sooner than a talking one"
    await fake.wait_until("abandoned")


async def test_a_node_that_appeared_while_another_failed_is_asked_too(mesh: StillMesh) -> None:
    first, second = make_worse(mesh, "hang")
    mesh.mark(second, "down")
    pending = asyncio.create_task(post_text(mesh))
    fake = mesh.nodes[first].fake
    assert fake is not None
    await fake.wait_until("started")
    mesh.mark(second, "up")
    mesh.mark(first, "down")
    assert await pending == (f"{second}: are you there", None)


async def post_text(mesh: StillMesh) -> tuple[str, None]:
    _, answer, _ = await mesh.post("desk", CHAT, ask("m"))
    return content(answer), None


async def test_a_silent_stream_ends_with_an_error_when_its_node_goes_down() -> None:
    async with still_mesh({"desk": None, "one": 1}, {"one": ("m",)}, gateway_options={"down_grace_s": 0.05}) as mesh:
        fake = mesh.nodes["one"].fake
        assert fake is not None
        fake.behaviour = "stall"
        pending = asyncio.create_task(stream(mesh, "desk", ask("m", stream=True)))
        await fake.wait_until("started")
        await until(lambda: mesh.nodes["one"].engines["fake"].load.active == 1)
        mesh.mark("one", "down")
        text, error = await pending
        assert text in ("", "one:"), "depending on whether the first event was there before the news"
        assert error is not None
        assert "went down" in error["message"]


async def test_a_silent_stream_ends_with_an_error_after_the_stall_time() -> None:
    async with still_mesh({"one": 1}, {"one": ("m+stall",)}, gateway_options={"silence_s": 0.05}) as mesh:
        text, error = await stream(mesh, "one", ask("m+stall", stream=True))
        assert text == "one:"
        assert error is not None
        assert "silent" in error["message"]


async def test_a_talking_stream_outlives_a_wrong_view() -> None:
    async with still_mesh({"desk": None, "one": 1}, {"one": ("m+slow",)}) as mesh:
        fake = mesh.nodes["one"].fake
        assert fake is not None
        pending = asyncio.create_task(stream(mesh, "desk", ask("m+slow", text="a b c d", stream=True)))
        await until(lambda: any(attempt.begun for attempt in mesh.nodes["desk"].gateway.dispatch.attempts))
        mesh.mark("one", "down")
        assert await pending == ("one: a b c d", None)


async def test_a_request_ends_with_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public, "Ask", partial(Ask, timeout_s=1.0))
    async with still_mesh({"desk": None, "one": 1}, {"one": ("m+hang",)}) as mesh:
        status, answer, _ = await mesh.post("desk", CHAT, ask("m+hang"))
        assert (status, answer["error"]["code"]) == (504, "deadline_exceeded")
        fake = mesh.nodes["one"].fake
        assert fake is not None
        await fake.wait_until("abandoned")


@pytest.mark.parametrize("asked", ["desk", "one"])
@pytest.mark.parametrize("behaviour", ["hang", "stall"])
async def test_a_client_that_leaves_stops_the_work_on_the_far_node(asked: str, behaviour: str) -> None:
    async with still_mesh({"desk": None, "one": 1}, {"one": (f"m+{behaviour}",)}) as mesh:
        fake = mesh.nodes["one"].fake
        assert fake is not None
        client = asyncio.create_task(stream(mesh, asked, ask(f"m+{behaviour}", stream=True)))
        await fake.wait_until("started")
        client.cancel()
        await asyncio.gather(client, return_exceptions=True)
        await fake.wait_until("abandoned")
        await until(lambda: not mesh.nodes[asked].gateway.dispatch.attempts)
        await until(lambda: mesh.nodes["one"].engines["fake"].load.active == 0)


async def test_a_prompt_near_the_limit_passes_whatever_its_script(mesh: StillMesh) -> None:
    """Between nodes it may grow: JSON escapes what is not ASCII."""
    text = "🦊" * (2 * 1024 * 1024 // 4 - 100)
    async with mesh.http.post(
        mesh.nodes["desk"].url + CHAT,
        data=io.BytesIO(json.dumps(ask("only-one", text), ensure_ascii=False).encode()),
        headers={"Content-Type": "application/json"},
    ) as reply:
        assert content(await reply.json()) == f"one: {text}"


async def test_an_answer_carries_the_id_of_its_request(mesh: StillMesh) -> None:
    for given, kept in (("req-1", True), ("x" * 200, False), ("<script>", False)):
        _, _, headers = await mesh.post("desk", CHAT, ask("m"), headers={"X-Request-Id": given})
        assert (headers["X-Request-Id"] == given) is kept


async def test_chunks_pass_through_byte_by_byte(mesh: StillMesh) -> None:
    fake = mesh.nodes["one"].fake
    assert fake is not None
    body = ask("only-one", text="ümläut 🦊", stream=True)
    async with mesh.http.post(f"{fake.url}{CHAT}", json=body) as reply:
        direct = await reply.read()
    async with mesh.http.post(f"{mesh.nodes['desk'].url}{CHAT}", json=body) as reply:
        assert reply.content_type == "text/event-stream"
        assert await reply.read() == direct


async def test_requests_just_sent_count_before_the_view_knows_them(mesh: StillMesh) -> None:
    """Eight at once for two equal nodes: four each, though the view calls both idle all the time."""
    for name in ("one", "two"):
        fake = mesh.nodes[name].fake
        assert fake is not None
        fake.delay_s = 0.3
    answers = await asyncio.gather(*(mesh.post("desk", CHAT, ask("m")) for _ in range(8)))
    assert sorted(headers["X-Mesh-Node"] for _, _, headers in answers) == ["one"] * 4 + ["two"] * 4


async def test_the_policy_decides_on_aliases_and_strictness(mesh: StillMesh) -> None:
    mesh.set_policy({"routing": {"aliases": {"gpt-4o": "only-two"}, "fallback_strategy": "strict"}})
    _, answer, _ = await mesh.post("desk", CHAT, ask("gpt-4o"))
    assert content(answer).startswith("two:")
    status, answer, _ = await mesh.post("desk", CHAT, ask("tier:0"))
    assert status == 503
    assert "strict" in answer["error"]["message"]


async def test_a_node_that_drains_gets_no_work(mesh: StillMesh) -> None:
    mesh.set_policy({"limits": {"queue_timeout_s": 0.05}})
    mesh.nodes["two"].draining = True
    status, answer, _ = await mesh.post("desk", CHAT, ask("m"))
    assert (status, content(answer)) == (200, "one: are you there")
    status, answer, _ = await mesh.post("desk", CHAT, ask("only-two"))
    assert status == 503
    assert "leaving" in answer["error"]["message"]


async def test_the_peer_plane_never_routes_on(mesh: StillMesh) -> None:
    headers = mesh.nodes["desk"].passport.headers
    status, answer, _ = await mesh.post("two", "/mesh/v1/generate", ask("only-one"), headers=headers)
    assert (status, answer["error"]["type"]) == (404, "model_not_found")


async def stream(mesh: StillMesh, node: str, body: dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
    """The text of a stream, and the error event that ended it; asserts that it was ended properly."""
    text, error, done = "", None, False
    async with mesh.http.post(mesh.nodes[node].url + CHAT, json=body) as reply:
        if reply.status != 200:
            return "", (await reply.json())["error"]
        async for line in reply.content:
            if not line.startswith(b"data: "):
                continue
            assert not done, "nothing comes after [DONE]"
            if line.strip() == b"data: [DONE]":
                done = True
                continue
            data = json.loads(line[6:])
            error = data.get("error", error)
            for choice in data.get("choices", ()):
                text += choice["delta"].get("content") or ""
    assert done
    return text, error


async def test_names_that_callers_make_up_are_no_labels_of_metrics(mesh: StillMesh) -> None:
    for number in range(20):
        await mesh.post("desk", CHAT, ask(f"made-up-{number}"), headers={"X-Request-Id": f"made-up-{number}"})
    await mesh.post("desk", CHAT, ask("m"))
    text = generate_latest(mesh.nodes["desk"].gateway._log.registry).decode()
    assert "made-up" not in text
    assert 'tiermesh_requests_total{api="/v1/chat/completions",model="none",node="none",outcome="refused"} 20.0' in text
