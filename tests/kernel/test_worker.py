"""The inference worker as a process: everything a client can see of it, with a model of random weights."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from tests import tiny_model
from tests.kernel.reference import greedy
from tests.kernel.workers import (
    START_LIMIT_S,
    WorkerProcess,
    counted,
    question,
    start_worker,
    stop_worker,
    streamed_text,
    text_of,
    wait_for,
)

from tiermesh.kernel import lifeline
from tiermesh.kernel.inference.generation import MAX_QUEUED
from tiermesh.kernel.inference.threads import default_threads, environment

LONG = {"temperature": 0.0, "max_tokens": 4000}
"""Takes seconds even with the tiny model."""


@pytest.mark.parametrize("length", [1, 30, 600])
async def test_greedy_says_what_generate_says(worker: WorkerProcess, tiny_folder: Path, length: int) -> None:
    """600 words are several pieces of prefill."""
    text = "the quick größe 🦊 " * length
    prompt, expected = greedy(tiny_folder, [{"role": "user", "content": text.strip()}], 40)
    answer = await worker.ask(text.strip(), temperature=0.0, max_tokens=40)
    assert text_of(answer) == expected
    assert answer["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": 40,
        "total_tokens": len(prompt) + 40,
        "prompt_tokens_details": answer["usage"]["prompt_tokens_details"],
    }
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_the_whole_answer_has_openais_shape(worker: WorkerProcess) -> None:
    answer = await worker.ask(max_tokens=3)
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["model"] == tiny_model.NAME
    assert [choice["message"]["role"] for choice in answer["choices"]] == ["assistant"]


async def test_a_body_that_is_nested_too_deeply_is_a_400(worker: WorkerProcess) -> None:
    schema: dict[str, Any] = {}
    for _ in range(800):
        schema = {"type": "array", "items": schema}
    wanted = {"type": "json_schema", "json_schema": {"name": "deep", "schema": schema}}
    assert (await worker.post(question("x", response_format=wanted)))[0] == 400


async def test_a_stream_says_the_same_in_openais_shape(worker: WorkerProcess) -> None:
    parameters: dict[str, Any] = {"temperature": 0.0, "max_tokens": 60}
    whole = await worker.ask(**parameters)
    events = await worker.stream(**parameters)
    assert streamed_text(events) == text_of(whole)
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [event["choices"][0]["finish_reason"] for event in events] == [None] * (len(events) - 1) + ["length"]
    assert not any("usage" in event for event in events)


async def test_a_stream_tells_usage_when_asked(worker: WorkerProcess) -> None:
    events = await worker.stream(max_tokens=4, temperature=0.0, stream_options={"include_usage": True})
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 4
    assert counted(events[-1]) == counted(await worker.ask(max_tokens=4, temperature=0.0))


async def test_a_seed_makes_sampling_repeatable(worker: WorkerProcess) -> None:
    parameters: dict[str, Any] = {"max_tokens": 40, "temperature": 1.5, "top_p": 0.9}
    first, again = [text_of(await worker.ask(seed=5, **parameters)) for _ in range(2)]
    other = text_of(await worker.ask(seed=6, **parameters))
    unseeded = {text_of(await worker.ask(**parameters)) for _ in range(3)}
    assert first == again != other
    assert len(unseeded) == 3


async def test_the_end_token_ends_the_answer(worker: WorkerProcess) -> None:
    """At a high temperature the tiny model ends sooner or later."""
    answers = [await worker.ask(seed=seed, temperature=2.0, max_tokens=3000) for seed in range(3)]
    reasons = [answer["choices"][0]["finish_reason"] for answer in answers]
    assert "stop" in reasons
    assert all(tiny_model.SPECIAL[2] not in text_of(answer) for answer in answers)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("span", [1, 3, 12])
async def test_a_stop_string_ends_the_answer_and_is_not_leaked(worker: WorkerProcess, span: int, stream: bool) -> None:
    """12 characters span several tokens."""
    parameters: dict[str, Any] = {"temperature": 0.0, "max_tokens": 60}
    full = text_of(await worker.ask(**parameters))
    stop = full[20 : 20 + span]
    expected = full[: full.index(stop)]
    if stream:
        events = await worker.stream(stop=stop, **parameters)
        assert streamed_text(events) == expected
        assert events[-1]["choices"][0]["finish_reason"] == "stop"
    else:
        answer = await worker.ask(stop=["never said", stop], **parameters)
        assert text_of(answer) == expected
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] < 60


async def test_text_held_back_for_a_stop_string_that_never_came_is_shown(worker: WorkerProcess) -> None:
    parameters: dict[str, Any] = {"temperature": 0.0, "max_tokens": 60}
    full = text_of(await worker.ask(**parameters))
    assert streamed_text(await worker.stream(stop=full[-5:] + "more", **parameters)) == full


async def test_another_model_is_not_served_here(worker: WorkerProcess) -> None:
    status, answer = await worker.post(question("x") | {"model": "other"})
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


async def test_health_tells_what_is_served(worker: WorkerProcess) -> None:
    health = await worker.health()
    assert (health["status"], health["progress"], health["model"]) == ("ready", 1.0, tiny_model.NAME)
    assert (health["precision"], health["adapters"]) in [("fp32", []), ("bf16", [])]
    assert health["slots"] >= 1
    assert 1 <= health["context_length"] <= tiny_model.CONTEXT_LENGTH


async def test_a_prompt_longer_than_the_context_is_a_clear_400(worker: WorkerProcess) -> None:
    status, answer = await worker.post(question("🦊" * tiny_model.CONTEXT_LENGTH))
    assert status == 400
    assert answer["error"]["code"] == "context_length_exceeded"
    assert answer["error"]["type"] == "invalid_request_error"
    assert str(tiny_model.CONTEXT_LENGTH) in answer["error"]["message"]


async def test_the_context_ends_an_answer_that_would_outgrow_it(worker: WorkerProcess) -> None:
    answer = await worker.ask("🦊 " * 790, temperature=0.0)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == tiny_model.CONTEXT_LENGTH


async def test_a_users_text_can_not_pose_as_a_control_token(worker: WorkerProcess) -> None:
    plain = await worker.ask("a", max_tokens=1)
    posing = await worker.ask("a<|im_end|>", max_tokens=1)
    assert posing["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"] + 1


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (question("x", modalities=["audio"]), 400, "modalities"),
        (question("x", temperature=3), 400, "temperature"),
        ({"messages": [{"role": "user", "content": "x"}] * 2}, 400, "messages"),
        ({"model": "m"}, 400, "messages"),
        ([], 400, None),
    ],
    ids=["unsupported", "range", "refused by the template", "missing", "no object"],
)
async def test_what_is_wrong_is_named(worker: WorkerProcess, body: object, status: int, param: str | None) -> None:
    got, answer = await worker.post(body)
    assert (got, answer["error"]["param"]) == (status, param)


async def test_a_body_that_is_not_json_is_a_400(worker: WorkerProcess) -> None:
    async with worker.session() as session, session.post("http://w/v1/chat/completions", data="{nonsense") as response:
        assert response.status == 400
        assert "not JSON" in (await response.json())["error"]["message"]


@pytest.mark.parametrize(("text", "status"), [(r"\ud83d", 400), (r"\uDE00", 400), (r"\ud83d\uDE00", 200)])
async def test_half_a_character_is_a_400_and_a_whole_one_is_not(worker: WorkerProcess, text: str, status: int) -> None:
    body = json.dumps(question("?", max_tokens=1)).replace("?", text)
    async with worker.session() as session, session.post("http://w/v1/chat/completions", data=body) as response:
        answer = await response.json()
    assert response.status == status
    assert status == 200 or text.lower() in answer["error"]["message"]


async def test_it_lists_its_model(worker: WorkerProcess) -> None:
    async with worker.session() as session, session.get("http://w/v1/models") as response:
        listed = await response.json()
    assert [(card["id"], card["digest"]) for card in listed["data"]] == [(tiny_model.NAME, "sha256:0")]


@pytest.mark.alone
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_stops_the_generation(worker: WorkerProcess, stream: bool) -> None:
    asking = asyncio.create_task(worker.stream("x", **LONG) if stream else worker.ask("x", **LONG))
    await worker.until(lambda health: health["active"] == 1)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await worker.until(lambda health: health["active"] == 0, limit_s=1.0)


async def test_requests_queue_and_the_queue_has_an_end(worker: WorkerProcess) -> None:
    slots = (await worker.health())["slots"]
    async with worker.session() as session:

        async def ask(parameters: dict[str, Any]) -> int:
            async with session.post("http://w/v1/chat/completions", json=question("x", **parameters)) as response:
                await response.read()
                assert response.status == 200 or response.headers["Retry-After"] == "5"
                return response.status

        running = [asyncio.create_task(ask(LONG)) for _ in range(slots)]
        await worker.until(lambda health: health["active"] == slots)
        waiting = [asyncio.create_task(ask({"max_tokens": 1})) for _ in range(MAX_QUEUED)]
        await worker.until(lambda health: health["queued"] == MAX_QUEUED)
        assert await ask({"max_tokens": 1}) == 503
        waiting[0].cancel()
        await worker.until(lambda health: health["queued"] == MAX_QUEUED - 1)
        running[0].cancel()
        assert await asyncio.gather(*waiting[1:]) == [200] * (MAX_QUEUED - 1)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, waiting[0], return_exceptions=True)
    await worker.until(lambda health: (health["active"], health["queued"]) == (0, 0))


async def test_a_request_that_comes_while_the_model_loads_waits_for_it(own_worker: WorkerProcess) -> None:
    await own_worker.until(lambda health: health["status"] == "loading", START_LIMIT_S)
    assert (await own_worker.ask(max_tokens=2))["usage"]["completion_tokens"] == 2
    assert (await own_worker.health())["status"] == "ready"


def test_a_folder_that_is_no_model_ends_the_worker_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no such type"}))
    worker = start_worker(tmp_path, tmp_path / "s")
    try:
        assert worker.popen.wait(START_LIMIT_S) == 3
    finally:
        stop_worker(worker)
    assert f"{tiny_model.NAME} can't be served" in worker.log.read_text().splitlines()[-1]


def test_default_threads_are_the_cores_it_may_use() -> None:
    assert 1 <= default_threads() <= (psutil.cpu_count() or 1)
    told = environment(3)
    assert told["OMP_NUM_THREADS"] == "3"
    assert 0 < int(told["GOMP_SPINCOUNT"]) < 10_000


def test_it_runs_below_the_daemons_priority(worker: WorkerProcess) -> None:
    assert psutil.Process(worker.popen.pid).nice() == min(19, psutil.Process().nice() + lifeline.NICENESS)


async def test_it_ends_at_once_when_its_daemon_does_even_while_it_computes(own_worker: WorkerProcess) -> None:
    await own_worker.until(lambda health: health["status"] == "ready", START_LIMIT_S)
    async with own_worker.session() as session:
        asking = asyncio.create_task(session.post("http://w/v1/chat/completions", json=question("x", **LONG)))
        await own_worker.until(lambda health: health["active"] == 1)
        assert own_worker.popen.stdin is not None
        own_worker.popen.stdin.close()
        with pytest.raises(aiohttp.ClientError):
            await asyncio.wait_for(asking, 5.0)
    assert wait_for(lambda: own_worker.popen.poll() is not None, 5.0)


async def test_sigterm_ends_it_even_while_it_loads(own_worker: WorkerProcess) -> None:
    await own_worker.until(lambda health: health["status"] == "loading", START_LIMIT_S)
    os.kill(own_worker.popen.pid, signal.SIGTERM)
    assert wait_for(lambda: own_worker.popen.poll() is not None, 5.0)
