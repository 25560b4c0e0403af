"""The gateway's benchmark: what it asks, what it takes for right, and what it makes of its figures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from benchmarks.gateway.exchange import answer, asked, events_of, question, text_of
from benchmarks.gateway.load import Run, Target, problem_of, run_requests, run_streams
from benchmarks.gateway.report import kept
from benchmarks.gateway.rounds import Plan, Trials
from benchmarks.gateway.upstream import Upstream
from benchmarks.gateway.wire import Reply

PLAN = Plan(rounds=1, busy=2, seconds=1, streams=2, events=3, event_gap_s=0.001)


@pytest.fixture
async def target() -> AsyncIterator[Target]:
    server = await asyncio.get_running_loop().create_server(lambda: Upstream(0.001), "127.0.0.1", 0)
    async with server:
        yield Target(name="direct", host="127.0.0.1", port=server.sockets[0].getsockname()[1])


@pytest.mark.parametrize("events", [None, 5])
def test_a_question_is_known_however_it_is_rewritten(events: int | None) -> None:
    body = json.loads(question(7, events=events))
    for rewritten in (json.dumps(body), json.dumps(body, separators=(",", ":")), json.dumps(body, sort_keys=True)):
        assert asked(rewritten.encode()) == (7, events)


def test_every_answer_names_its_question_and_no_two_are_alike() -> None:
    assert "question 7." in text_of(answer(7))
    assert text_of(b"".join(events_of(7, 3))) == " 7:0 7:1 7:2"
    assert answer(7) != answer(8)


@pytest.mark.parametrize(
    ("status", "body", "exact", "right"),
    [
        (200, answer(1), True, True),
        (200, answer(2), True, False),
        (500, answer(1), True, False),
        (200, answer(1) + b" ", True, False),
        (200, json.dumps(json.loads(answer(1)), indent=1).encode(), False, True),
        (200, answer(2), False, False),
    ],
)
def test_an_answer_is_right_byte_by_byte_or_for_those_who_rebuild_it_in_its_text(
    status: int, body: bytes, exact: bool, right: bool
) -> None:
    assert (problem_of(Reply(status, body, 0.1, 0.1), answer(1), exact=exact) is None) is right


async def test_load_on_the_upstream_itself_finds_nothing_wrong(target: Target) -> None:
    requests = await run_requests(target, 2, iter(range(20)))
    streams = await run_streams(target, 2, rounds=2, events=3, lasts_s=0.003)
    assert (requests.requests, requests.wrong) == (20, [])
    assert (streams.requests, streams.events, streams.wrong) == (4, 20, [])


def test_a_promise_is_judged_by_neighbours_in_time() -> None:
    trials = Trials()
    for name, per_s, wait_s in (("direct", 100, 0.001), ("bare aiohttp", 100, 0.001), ("tiermesh", 50, 0.0015)):
        run = Run(took_s=1.0, first_s=[wait_s] * per_s, done_s=[wait_s] * per_s, events=per_s * 100, at_once=2)
        trials.busy[name] = trials.alone[name] = trials.streams[name] = [run]
    told = {promise.what: promise for promise in kept(trials, PLAN)}
    bare = told["requests/s over bare aiohttp, 2 connections"]
    assert (bare.measured, bare.kept) == ("0.50", False)
    assert told["added latency, 1 connection, p50, ms"].kept
    assert told["chunks/s through one node"].kept
