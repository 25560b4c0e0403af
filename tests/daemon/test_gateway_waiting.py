"""What happens when nobody has room: requests wait, in turn, and are told so; what fails is given a rest."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from tests.daemon.scripted_kernel import ScriptedKernel, kernel_mesh, publish
from tests.daemon.still_mesh import StillMesh, still_mesh, until

from tiermesh.core.routing import RouteRequest

CHAT = "/v1/chat/completions"


def ask(text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


async def waiting_on(mesh: StillMesh, node: str, count: int) -> None:
    await until(lambda: sum(mesh.nodes[node].gateway.dispatch.waiting.lengths().values()) == count)


def hold(mesh: StillMesh, kernel: ScriptedKernel) -> asyncio.Task[Any]:
    """A stream that takes the only slot until it is cancelled."""
    kernel.script.slots, kernel.script.stall_at = 1, 2
    publish(mesh, {"one": kernel})
    return asyncio.create_task(mesh.post("desk", CHAT, ask("hold", stream=True, seed=1)))


async def test_a_request_waits_for_a_free_slot_and_is_told_how_long() -> None:
    async with kernel_mesh({"one": "d"}) as (mesh, kernels):
        holder = hold(mesh, kernels["one"])
        await kernels["one"].stalled.wait()
        second = asyncio.create_task(mesh.post("desk", CHAT, ask()))
        await waiting_on(mesh, "desk", 1)
        assert len(kernels["one"].requests) == 1
        holder.cancel()
        status, _, headers = await second
        assert status == 200
        assert int(headers["X-Mesh-Waited-Ms"]) >= 0
        assert await mesh.post("desk", CHAT, ask()) is not None


async def test_who_did_not_wait_is_told_nothing() -> None:
    async with kernel_mesh({"one": "d"}) as (mesh, _):
        _, _, headers = await mesh.post("desk", CHAT, ask())
        assert not {"X-Mesh-Waited-Ms", "X-Mesh-Loading"} & headers.keys()


async def test_after_the_queues_time_it_is_503_with_retry_after() -> None:
    async with kernel_mesh({"one": "d"}) as (mesh, kernels):
        mesh.set_policy({"limits": {"queue_timeout_s": 0.05}})
        holder = hold(mesh, kernels["one"])
        await kernels["one"].stalled.wait()
        status, answer, headers = await mesh.post("desk", CHAT, ask())
        assert (status, answer["error"]["code"]) == (503, "unavailable")
        assert "Retry-After" in headers
        holder.cancel()


async def test_a_full_queue_refuses_at_once() -> None:
    async with kernel_mesh({"one": "d"}) as (mesh, kernels):
        mesh.set_policy({"limits": {"queue_length": 1}})
        holder = hold(mesh, kernels["one"])
        await kernels["one"].stalled.wait()
        second = asyncio.create_task(mesh.post("desk", CHAT, ask()))
        await waiting_on(mesh, "desk", 1)
        status, answer, _ = await mesh.post("desk", CHAT, ask())
        assert (status, answer["error"]["code"]) == (503, "unavailable")
        assert "wait for m" in answer["error"]["message"]
        holder.cancel()
        assert (await second)[0] == 200


async def test_requests_wait_for_the_node_that_has_the_model_to_come_back() -> None:
    async with kernel_mesh({"one": "d"}) as (mesh, _):
        mesh.mark("one", "down")
        pending = asyncio.create_task(mesh.post("desk", CHAT, ask()))
        await waiting_on(mesh, "desk", 1)
        mesh.mark("one", "up")
        assert (await pending)[0] == 200


async def test_who_allows_another_model_does_not_wait_for_its_own() -> None:
    async with kernel_mesh({"one": "d", "two": "other"}) as (mesh, kernels):
        mesh.mark("one", "down")
        status, _, headers = await mesh.post("desk", CHAT, ask(allow_model_switch=True))
        assert (status, headers["X-Mesh-Model"], "X-Mesh-Waited-Ms" in headers) == (200, "o", False)
        assert "allow_model_switch" not in kernels["two"].requests[0]


async def test_a_model_that_nobody_knows_is_not_waited_for() -> None:
    async with kernel_mesh({"one": "d"}) as (mesh, _):
        status, answer, _ = await mesh.post("desk", CHAT, ask() | {"model": "nobody-has-it"})
        assert (status, answer["error"]["code"]) == (404, "model_not_found")


async def test_callers_take_turns_and_a_high_priority_goes_first() -> None:
    async with kernel_mesh({"one": "d"}) as (mesh, kernels):
        kernel = kernels["one"]
        holder = hold(mesh, kernel)
        await kernel.stalled.wait()
        pending = []

        async def send(text: str, **headers: str) -> None:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            pending.append(asyncio.create_task(mesh.post("desk", CHAT, ask(text), headers=named)))
            await waiting_on(mesh, "desk", len(pending))

        for number in range(3):
            await send(f"a{number}", Authorization="Bearer a")
        await send("b0", Authorization="Bearer b")
        await send("urgent", Authorization="Bearer a", X_Mesh_Priority="high")
        holder.cancel()
        await asyncio.gather(*pending)
        said = [body["messages"][0]["content"] for body in kernel.requests[1:]]
        assert said == ["urgent", "a0", "b0", "a1", "a2"]


async def test_a_priority_that_is_none_is_a_mistake() -> None:
    async with kernel_mesh({"one": "d"}) as (mesh, _):
        status, answer, _ = await mesh.post("desk", CHAT, ask(), headers={"X-Mesh-Priority": "very"})
        assert (status, answer["error"]["param"]) == (400, "X-Mesh-Priority")


async def test_who_is_busy_is_asked_again_when_it_said() -> None:
    async with kernel_mesh({"one": "d"}) as (mesh, kernels):
        kernels["one"].script.refuse = 503
        pending = asyncio.create_task(mesh.post("desk", CHAT, ask()))
        await until(lambda: len(kernels["one"].requests) >= 1)
        kernels["one"].script.refuse = None
        status, _, headers = await pending
        assert status == 200
        assert int(headers["X-Mesh-Attempts"]) >= 2


async def test_who_is_busy_until_now_is_not_asked_again_and_again() -> None:
    async with kernel_mesh({"one": "d"}) as (mesh, kernels):
        mesh.set_policy({"limits": {"queue_timeout_s": 0.5}})
        kernels["one"].script.refuse, kernels["one"].script.retry_after_s = 503, 0.0
        async with asyncio.timeout(5):
            status, _, _ = await mesh.post("one", CHAT, ask())
        assert status == 503
        assert len(kernels["one"].requests) <= 12


async def test_an_engine_with_a_queue_of_its_own_is_never_held_back_for() -> None:
    """Nobody knows how many a plain server takes at once; it is asked, and may say 429."""
    async with still_mesh({"desk": None, "one": 1}, {"one": ("m",)}) as mesh:
        fake = mesh.nodes["one"].fake
        assert fake is not None
        fake.behaviour = "hang"
        tasks = [asyncio.create_task(mesh.post("desk", CHAT, ask())) for _ in range(9)]
        await fake.wait_until("started", 9)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_request_that_had_to_have_its_model_loaded_says_so() -> None:
    async with kernel_mesh({"one": "d"}) as (mesh, kernels):
        kernels["one"].model = replace(kernels["one"].model, state="cold")
        publish(mesh, kernels)
        _, _, headers = await mesh.post("desk", CHAT, ask())
        assert headers["X-Mesh-Loading"] == "true"


async def test_a_candidate_that_keeps_failing_is_given_a_rest() -> None:
    async with still_mesh({"desk": None, "one": 1, "two": 1}, {"one": ("m",), "two": ("m",)}) as mesh:
        preferred = mesh.nodes["desk"].gateway.plan(RouteRequest("m")).candidates[0].node_name
        worst = mesh.nodes[preferred].fake
        assert worst is not None
        worst.behaviour = "500"
        for _ in range(20):
            status, _, _ = await mesh.post("desk", CHAT, ask())
            assert status == 200
        assert len(worst.requests) == 3, "its breaker opens at the third failure in a row"


async def test_a_slow_first_token_is_asked_of_another_node() -> None:
    async with kernel_mesh({"one": "d", "two": "d"}) as (mesh, kernels):
        mesh.set_policy({"limits": {"first_token_timeout_s": 0.1}})
        first, second = mesh.nodes["desk"].gateway.plan(RouteRequest("m")).candidates
        kernels[first.node_name].script.mute = True
        headers = await stream(mesh)
        assert (headers["X-Mesh-Node"], headers["X-Mesh-Attempts"]) == (second.node_name, "2")
        await until(lambda: kernels[first.node_name].active == 0)


async def test_a_model_that_is_being_loaded_is_waited_for() -> None:
    async with kernel_mesh({"one": "d", "two": "d"}) as (mesh, kernels):
        mesh.set_policy({"limits": {"first_token_timeout_s": 0.1}})
        for kernel in kernels.values():
            kernel.script.mute = True
            kernel.model = replace(kernel.model, state="loading")
        publish(mesh, kernels)
        pending = asyncio.create_task(stream(mesh))
        await until(lambda: any(kernel.active for kernel in kernels.values()))
        first, second = sorted(kernels.values(), key=lambda kernel: -kernel.active)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(pending), 0.3)
        assert not second.requests
        first.model, second.script.mute = replace(first.model, state="warm"), False
        publish(mesh, kernels)
        assert (await pending)["X-Mesh-Attempts"] == "2"


async def stream(mesh: StillMesh) -> Mapping[str, str]:
    """The headers of a stream that came whole."""
    async with mesh.http.post(mesh.nodes["desk"].url + CHAT, json=ask(stream=True, seed=3)) as reply:
        assert reply.status == 200
        assert (await reply.read()).endswith(b"data: [DONE]\n\n")
        return reply.headers


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_leaves_the_queue_leaves_nothing(streamed: bool) -> None:
    async with kernel_mesh({"one": "d"}) as (mesh, _):
        mesh.mark("one", "down")
        pending = asyncio.create_task(mesh.post("desk", CHAT, ask(stream=streamed)))
        await waiting_on(mesh, "desk", 1)
        pending.cancel()
        await asyncio.gather(pending, return_exceptions=True)
        await waiting_on(mesh, "desk", 0)


async def test_who_waits_for_somebody_in_particular_holds_nobody_up() -> None:
    """The first one failed at the node that is free, and waits for the one that is full: the others need not."""
    async with kernel_mesh({"one": "d", "two": "d"}) as (mesh, kernels):
        kernels["two"].script.slots, kernels["two"].script.stall_at, kernels["one"].script.refuse = 1, 2, 500
        publish(mesh, kernels)
        holder = asyncio.create_task(stream(mesh))
        await kernels["two"].stalled.wait()
        unlucky = asyncio.create_task(mesh.post("desk", CHAT, ask("unlucky")))
        await waiting_on(mesh, "desk", 1)
        kernels["one"].script.refuse = None
        async with asyncio.timeout(5):
            status, _, headers = await mesh.post("desk", CHAT, ask("lucky"))
        assert (status, headers["X-Mesh-Node"], "X-Mesh-Waited-Ms" in headers) == (200, "one", False)
        holder.cancel()
        assert (await unlucky)[2]["X-Mesh-Node"] == "two"


async def test_a_full_queue_is_nothing_to_a_stream_that_has_begun() -> None:
    async with kernel_mesh({"one": "d", "two": "d"}) as (mesh, kernels):
        mesh.set_policy({"limits": {"queue_length": 0}})
        mesh.mark("two", "down")
        kernels["one"].script.pace_s, kernels["one"].script.break_at, kernels["one"].script.breaks = 0.01, 4, 1
        kernels["one"].script.dies = True
        pending = asyncio.create_task(stream(mesh))
        await until(lambda: any(attempt.begun for attempt in mesh.nodes["desk"].gateway.dispatch.attempts))
        mesh.mark("one", "down")
        await waiting_on(mesh, "desk", 1)
        mesh.mark("two", "up")
        assert (await pending)["X-Mesh-Node"] == "one"
        assert "resume_token_ids" in kernels["two"].requests[0]


async def test_who_allows_another_model_is_not_behind_those_who_dont() -> None:
    async with kernel_mesh({"one": "d", "two": "other"}) as (mesh, _):
        mesh.mark("one", "down")
        patient = asyncio.create_task(mesh.post("desk", CHAT, ask()))
        await waiting_on(mesh, "desk", 1)
        status, _, headers = await mesh.post("desk", CHAT, ask(allow_model_switch=True))
        assert (status, headers["X-Mesh-Model"]) == (200, "o")
        mesh.mark("one", "up")
        assert (await patient)[0] == 200


async def test_a_full_queue_is_full_under_all_of_its_models_names() -> None:
    async with kernel_mesh({"one": "d"}) as (mesh, _):
        mesh.set_policy({"limits": {"queue_length": 1}})
        mesh.mark("one", "down")
        first = asyncio.create_task(mesh.post("desk", CHAT, ask()))
        await waiting_on(mesh, "desk", 1)
        status, _, _ = await mesh.post("desk", CHAT, ask() | {"model": "m:latest"})
        assert status == 503
        mesh.mark("one", "up")
        assert (await first)[0] == 200
