"""A stream whose node breaks goes on at another one, and its reader sees one stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.daemon.scripted_kernel import LENGTH, Script, ScriptedKernel, kernel_mesh, publish, text_of, token_at
from tests.daemon.still_mesh import StillMesh, until

from tiermesh.core.routing import RouteRequest

CHAT = "/v1/chat/completions"
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
SAME = {"one": "d", "two": "d"}


def ask(**more: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "messages": [{"role": "user", "content": "are you there"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "seed": 5,
        **more,
    }


@dataclass
class Seen:
    """All that a client saw of one stream."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    chunks: list[dict[str, Any]] = field(default_factory=list)
    error: dict[str, Any] | None = None
    dones: int = 0

    @property
    def deltas(self) -> list[dict[str, Any]]:
        return [choice["delta"] for chunk in self.chunks for choice in chunk["choices"]]

    @property
    def text(self) -> str:
        return "".join(delta.get("content") or "" for delta in self.deltas)

    @property
    def reasons(self) -> list[str]:
        return [c["finish_reason"] for chunk in self.chunks for c in chunk["choices"] if c["finish_reason"]]

    @property
    def usages(self) -> list[dict[str, int]]:
        return [chunk["usage"] for chunk in self.chunks if chunk.get("usage")]

    def all_of(self, key: str) -> set[Any]:
        return {chunk[key] for chunk in self.chunks}


async def read(mesh: StillMesh, node: str, body: Mapping[str, Any]) -> Seen:
    seen = Seen()
    async with mesh.http.post(mesh.nodes[node].url + CHAT, json=body) as reply:
        seen.status, seen.headers = reply.status, reply.headers
        async for line in reply.content:
            if not line.startswith(b"data: "):
                continue
            assert not seen.dones, "nothing comes after [DONE]"
            if line.strip() == b"data: [DONE]":
                seen.dones += 1
                continue
            data = json.loads(line[6:])
            if "error" in data:
                seen.error = data["error"]
            else:
                seen.chunks.append(data)
    return seen


def preferred(mesh: StillMesh, kernels: Mapping[str, ScriptedKernel]) -> tuple[ScriptedKernel, ScriptedKernel]:
    """The kernel that would be asked first, and the other."""
    first, second = preferred_all(mesh, kernels)[:2]
    return first, second


def preferred_all(mesh: StillMesh, kernels: Mapping[str, ScriptedKernel]) -> list[ScriptedKernel]:
    """All of them, in the order of the route."""
    return [kernels[c.node_name] for c in mesh.nodes["desk"].gateway.plan(RouteRequest("m")).candidates]


def assert_undisturbed(seen: Seen, body: Mapping[str, Any]) -> None:
    """One stream: every word once, one identity, one end, exact figures."""
    assert (seen.status, seen.error) == (200, None)
    assert seen.text == text_of(body)
    assert seen.dones == 1
    assert seen.reasons == ["stop"]
    assert [len(seen.all_of(key)) for key in ("id", "created", "model", "object")] == [1, 1, 1, 1]
    assert [usage["completion_tokens"] for usage in seen.usages] == [LENGTH]
    assert [delta["role"] for delta in seen.deltas if "role" in delta] == ["assistant"]
    assert all("token_ids" not in choice for chunk in seen.chunks for choice in chunk["choices"])


@pytest.mark.parametrize("position", range(LENGTH + 1))
@pytest.mark.parametrize("asked", ["desk", "worker"])
async def test_wherever_a_stream_breaks_its_reader_sees_one_whole_stream(position: int, asked: str) -> None:
    async with kernel_mesh(SAME) as (mesh, kernels):
        first, second = preferred(mesh, kernels)
        first.script.break_at = position
        where = "desk" if asked == "desk" else next(name for name, kernel in kernels.items() if kernel is first)
        assert_undisturbed(await read(mesh, where, ask()), ask())
        assert len(first.requests) == len(second.requests) == 1


async def test_an_undisturbed_stream_shows_nothing_of_this() -> None:
    async with kernel_mesh(SAME) as (mesh, kernels):
        seen = await read(mesh, "desk", ask())
        assert_undisturbed(seen, ask())
        assert all(delta or choice_ends(chunk) for chunk in seen.chunks for delta in chunk_deltas(chunk))
        assert sum(len(kernel.requests) for kernel in kernels.values()) == 1


def chunk_deltas(chunk: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [choice["delta"] for choice in chunk["choices"]]


def choice_ends(chunk: Mapping[str, Any]) -> bool:
    return any(choice["finish_reason"] for choice in chunk["choices"])


async def test_a_stream_may_break_more_than_once() -> None:
    scripts = {name: Script(break_at=at) for name, at in (("one", 2), ("two", 5), ("three", 9))}
    kernels = dict.fromkeys([*scripts, "four"], "d")
    async with kernel_mesh(kernels, scripts=scripts) as (mesh, made):
        for kernel in made.values():
            kernel.script.break_at = kernel.script.break_at or 7
        assert_undisturbed(await read(mesh, "desk", ask()), ask())


async def test_a_stalled_stream_goes_on_elsewhere() -> None:
    async with kernel_mesh(SAME) as (mesh, kernels):
        mesh.set_policy({"limits": {"stall_timeout_s": 0.1}})
        first, _ = preferred(mesh, kernels)
        first.script.stall_at = 6
        assert_undisturbed(await read(mesh, "desk", ask()), ask())
        await until(lambda: first.active == 0)


async def test_a_stalled_stream_without_another_place_is_waited_for() -> None:
    async with kernel_mesh({"one": "d"}, gateway_options={"silence_s": 0.4}) as (mesh, kernels):
        mesh.set_policy({"limits": {"stall_timeout_s": 0.1, "queue_timeout_s": 0}})
        kernels["one"].script.pace_s = 0.2
        assert_undisturbed(await read(mesh, "desk", ask()), ask())


async def test_a_stream_whose_node_goes_down_goes_on_elsewhere() -> None:
    async with kernel_mesh(SAME, gateway_options={"down_grace_s": 0.05}) as (mesh, kernels):
        first, _ = preferred(mesh, kernels)
        first.script.stall_at = 6
        pending = asyncio.create_task(read(mesh, "desk", ask()))
        await first.stalled.wait()
        mesh.mark(next(name for name, kernel in kernels.items() if kernel is first), "down")
        assert_undisturbed(await pending, ask())


async def test_an_error_in_the_middle_of_a_stream_is_a_break() -> None:
    async with kernel_mesh(SAME) as (mesh, kernels):
        preferred(mesh, kernels)[0].script.error_at = 4
        assert_undisturbed(await read(mesh, "desk", ask()), ask())


async def test_without_a_seed_the_gateway_keeps_one() -> None:
    async with kernel_mesh(SAME) as (mesh, kernels):
        first, second = preferred(mesh, kernels)
        first.script.break_at = 5
        body = ask()
        del body["seed"]
        seen = await read(mesh, "desk", body)
        assert_undisturbed(seen, first.requests[0])
        assert first.requests[0]["seed"] == second.requests[0]["seed"]
        assert second.requests[0]["resume_token_ids"] == [token_at(first.requests[0], at) for at in range(5)]


async def test_who_asked_for_token_ids_gets_each_once() -> None:
    async with kernel_mesh(SAME) as (mesh, kernels):
        preferred(mesh, kernels)[0].script.break_at = 5
        seen = await read(mesh, "desk", ask(return_token_ids=True))
        ids = [token for chunk in seen.chunks for choice in chunk["choices"] for token in choice["token_ids"]]
        assert ids == [*(token_at(ask(), position) for position in range(LENGTH - 1)), 0]


async def test_a_half_sent_call_of_a_tool_goes_on() -> None:
    async with kernel_mesh(SAME) as (mesh, kernels):
        preferred(mesh, kernels)[0].script.break_at = 6
        seen = await read(mesh, "desk", ask(tools=[TOOL]))
        calls = [call for delta in seen.deltas for call in delta.get("tool_calls", ())]
        said = "".join(call["function"]["arguments"] for call in calls)
        assert said == "".join(f"{token_at(ask(), at)} " for at in range(1, LENGTH - 1) if at != 3)
        assert [call["id"] for call in calls if "id" in call] == ["call_1"]
        assert seen.reasons == ["tool_calls"]


async def test_an_answer_cut_by_its_limit_is_as_long_as_it_should_be() -> None:
    async with kernel_mesh(SAME) as (mesh, kernels):
        preferred(mesh, kernels)[0].script.break_at = 4
        seen = await read(mesh, "desk", ask(max_tokens=6))
        assert (seen.text, seen.reasons) == (text_of(ask(), 6), ["length"])
        assert seen.usages[0]["completion_tokens"] == 6


async def test_when_only_the_end_is_missing_it_is_given() -> None:
    """Nobody has to be asked for it."""
    async with kernel_mesh({"one": "d"}) as (mesh, kernels):
        kernels["one"].script.break_at = LENGTH
        seen = await read(mesh, "desk", ask(stream_options=None))
        assert (seen.text, seen.reasons, seen.error, seen.dones) == (text_of(ask()), ["stop"], None, 1)
        assert len(kernels["one"].requests) == 1


@pytest.mark.parametrize(("one", "two"), [("d", "other"), ("d", "x"), ("llama", "llama")])
async def test_other_weights_and_engines_that_cant_go_on_end_it_with_an_error(one: str, two: str) -> None:
    async with kernel_mesh({"one": one, "two": two}) as (mesh, kernels):
        for kernel in kernels.values():
            kernel.script.break_at, kernel.script.breaks = 5, 2
        async with asyncio.timeout(5):  # nobody is waited for who could not go on either
            seen = await read(mesh, "desk", ask())
        assert seen.text == text_of(ask(), 5)
        assert seen.error is not None
        assert seen.error["code"] == "engine_failed"
        assert "no other node can go on" in seen.error["message"]
        assert seen.dones == 1


async def test_a_stream_that_showed_nothing_yet_begins_anew_anywhere() -> None:
    async with kernel_mesh({"one": "llama", "two": "llama"}) as (mesh, kernels):
        first, second = preferred(mesh, kernels)
        first.script.break_at = 0
        assert_undisturbed(await read(mesh, "desk", ask()), ask())
        assert "resume_token_ids" not in second.requests[0]


async def test_whoever_broke_off_after_it_spoke_is_asked_again_when_nobody_else_is_there() -> None:
    async with kernel_mesh({"one": "d"}) as (mesh, kernels):
        kernels["one"].script.break_at = 5
        assert_undisturbed(await read(mesh, "one", ask()), ask())
        assert len(kernels["one"].requests) == 2


async def test_who_refuses_to_go_on_is_passed_over() -> None:
    async with kernel_mesh(SAME | {"three": "d"}) as (mesh, kernels):
        first, second, _ = preferred_all(mesh, kernels)
        first.script.break_at, second.script.refuse = 5, 400
        assert_undisturbed(await read(mesh, "desk", ask()), ask())


@pytest.mark.parametrize("asked", ["desk", "one"])
async def test_a_request_at_which_two_workers_died_goes_to_no_third(asked: str) -> None:
    names = ("one", "two", "three")
    async with kernel_mesh(dict.fromkeys(names, "d")) as (mesh, kernels):
        order = [kernels[c.node_name] for c in mesh.nodes[asked].gateway.plan(RouteRequest("m")).candidates]
        for position, kernel in zip((4, 6, 8), order, strict=True):
            kernel.script = Script(break_at=position, dies=True, breaks=9, pace_s=0.01)
        seen = await read(mesh, asked, ask())
        assert seen.error is not None
        assert seen.error["code"] == "poisoned_request"
        assert sum(len(kernel.requests) for kernel in kernels.values()) == 2
        assert text_of(ask()).startswith(seen.text)
        assert seen.dones == 1


async def test_who_is_busy_is_waited_for() -> None:
    async with kernel_mesh(SAME) as (mesh, kernels):
        first, second = preferred(mesh, kernels)
        first.script.break_at = 5
        second.script.refuse = 503
        pending = asyncio.create_task(read(mesh, "desk", ask()))
        await until(lambda: len(second.requests) > 0)
        second.script.refuse = None
        assert_undisturbed(await pending, ask())


async def test_another_model_goes_on_only_when_the_request_allows_it_and_says_so() -> None:
    async with kernel_mesh({"one": "d", "two": "other"}) as (mesh, kernels):
        kernels["one"].script.break_at, kernels["one"].script.breaks = 5, 2
        seen = await read(mesh, "desk", ask(allow_model_switch=True))
        assert seen.error is None
        first, second = kernels["one"].requests[0], kernels["two"].requests[0]
        assert seen.text == text_of(first, 5) + text_of(second)
        assert second["messages"][-2] == {"role": "assistant", "content": text_of(first, 5)}
        assert "allow_model_switch" not in first | second
        assert "resume_token_ids" not in second
        assert [chunk["model"] for chunk in seen.chunks][:2] == ["m", "m"]
        assert seen.chunks[-1]["model"] == "o"
        assert len(seen.all_of("id")) == 1
        assert seen.usages[0]["completion_tokens"] == 5 + LENGTH
        assert seen.dones == 1


async def test_another_model_that_begins_hears_the_request_itself() -> None:
    async with kernel_mesh({"one": "d", "two": "other"}) as (mesh, kernels):
        kernels["one"].script.break_at, kernels["one"].script.breaks = 0, 2
        seen = await read(mesh, "desk", ask(allow_model_switch=True))
        (second,) = kernels["two"].requests
        assert second["messages"] == ask()["messages"]
        assert (seen.error, seen.text, seen.dones) == (None, text_of(second), 1)
        assert seen.chunks[-1]["model"] == "o"


async def test_half_of_a_json_text_is_ended_by_no_other_model() -> None:
    async with kernel_mesh({"one": "d", "two": "other"}) as (mesh, kernels):
        kernels["one"].script.break_at, kernels["one"].script.breaks = 5, 2
        seen = await read(mesh, "desk", ask(allow_model_switch=True, response_format={"type": "json_object"}))
        assert seen.error is not None
        assert (seen.text, kernels["two"].requests) == (text_of(ask(), 5), [])


async def test_a_client_that_leaves_stops_the_work_where_it_went_on() -> None:
    async with kernel_mesh(SAME) as (mesh, kernels):
        first, second = preferred(mesh, kernels)
        first.script.break_at, second.script.stall_at = 4, 8
        client = asyncio.create_task(read(mesh, "desk", ask()))
        await second.stalled.wait()
        client.cancel()
        await asyncio.gather(client, return_exceptions=True)
        await until(lambda: not mesh.nodes["desk"].gateway.dispatch.attempts)
        await until(lambda: second.active == 0)


@pytest.mark.parametrize("streamed", [False, True])
async def test_whenever_a_client_leaves_nothing_is_held(streamed: bool) -> None:
    """Reserved, asked, waiting, in the stream, on the way to the next one: `kernel_mesh` looks for what is left."""
    async with kernel_mesh(SAME) as (mesh, kernels):
        mesh.set_policy({"routing": {"breaker": {"failures": 1000, "failure_rate": 1.0}}})
        for number in range(70):
            steps = round(1.12**number)  # of the loop: most happens in the first ones
            for kernel in kernels.values():
                kernel.script = Script(break_at=4, slots=2, refuse=None if number % 3 else 503)
            publish(mesh, kernels)
            clients = [asyncio.create_task(read(mesh, node, ask(stream=streamed))) for node in ("desk", "one", "two")]
            for _ in range(steps):
                await asyncio.sleep(0)
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
        await until(lambda: all(kernel.active == 0 for kernel in kernels.values()))
        asked = [body for kernel in kernels.values() for body in kernel.requests]
        assert len(asked) > 20, "some were far enough to be asked"
        assert not streamed or any("resume_token_ids" in body for body in asked), "or to go on elsewhere"


async def test_sixteen_streams_on_one_node_all_survive_it() -> None:
    scripts = {name: Script(slots=16) for name in SAME}
    async with kernel_mesh(SAME, scripts=scripts, gateway_options={"down_grace_s": 0.05}) as (mesh, kernels):
        first, second = preferred(mesh, kernels)
        second.script.slots = 1
        publish(mesh, kernels)
        first.script.pace_s = 0.02
        bodies = [ask(seed=seed) for seed in range(16)]
        streams = [asyncio.create_task(read(mesh, "desk", body)) for body in bodies]
        await until(lambda: first.active >= 8)
        await mesh.nodes[next(name for name, kernel in kernels.items() if kernel is first)].stop_serving()
        for stream, body in zip(streams, bodies, strict=True):
            assert_undisturbed(await stream, body)
