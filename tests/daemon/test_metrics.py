"""What became of requests: counted once each, by who answered, whatever callers and engines say."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from tiermesh.core.routing import Candidate
from tiermesh.daemon.metrics import MAX_NAMES, USAGE_BYTES, RequestLog, outcome_of, outcome_of_status, usage_in
from tiermesh.daemon.tally import MAX_NODES, Tally
from tiermesh.errors import DeadlineExceeded, EngineFailed, InvalidInput, TiermeshError, Unavailable
from tiermesh.types import Model, NodeId

WALL = 1_800_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock) -> RequestLog:
    return RequestLog(now=clock, wall=lambda: WALL + clock.now)


def candidate(name: str, model: str = "m") -> Candidate:
    return Candidate(NodeId(name * 32), name, Model(model, "d", 1, "e", "warm"), 0, 1, 0.0, False)


def value(log: RequestLog, name: str, **labels: str) -> float:
    return log.registry.get_sample_value(f"tiermesh_{name}", labels) or 0.0


def requests(log: RequestLog) -> dict[tuple[str, ...], float]:
    """All request counters that are not nothing."""
    return {
        tuple(sample.labels[name] for name in ("api", "model", "node", "outcome")): sample.value
        for family in log.registry.collect()
        if family.name == "tiermesh_requests"
        for sample in family.samples
        if sample.name == "tiermesh_requests_total"
    }


def test_an_answer_is_counted_with_its_times_and_tokens(log: RequestLog, clock: Clock) -> None:
    with log.begin("chat") as record:
        assert value(log, "requests_active") == 1
        clock.now += 0.5  # waits
        record.attempt(candidate("a"))
        clock.now += 0.25
        record.first_token()
        clock.now += 2.0
        record.end("ok", {"prompt_tokens": 9, "completion_tokens": 21, "total_tokens": 30})
    assert requests(log) == {("chat", "m", "a", "ok"): 1}
    assert value(log, "requests_active") == 0
    assert value(log, "request_seconds_sum", api="chat") == 2.75
    assert value(log, "first_token_seconds_sum", model="m", node="a") == 0.25
    assert value(log, "tokens_per_second_sum", model="m", node="a") == 10.0
    assert value(log, "tokens_total", model="m", node="a", kind="prompt") == 9
    assert value(log, "tokens_total", model="m", node="a", kind="completion") == 21
    sums = log.tally.nodes[NodeId("a" * 32)]
    assert (sums.ok, sums.took_s, sums.first_token_s, sums.tokens, sums.last_wall) == (1, 2.25, 0.25, 21, WALL + 52.75)


def test_an_answer_that_is_not_streamed_has_no_first_token(log: RequestLog, clock: Clock) -> None:
    record = log.begin("complete")
    record.attempt(candidate("a"))
    clock.now += 2.0
    record.end("ok", {"completion_tokens": 20})
    assert value(log, "first_token_seconds_count", model="m", node="a") == 0
    assert value(log, "tokens_per_second_sum", model="m", node="a") == 10.0


def test_who_failed_first_is_counted_as_failed_and_the_request_by_who_answered(log: RequestLog) -> None:
    record = log.begin("chat")
    record.attempt(candidate("a"))
    record.attempt(candidate("b"))
    record.attempt_failed()
    record.attempt_failed()
    record.attempt(candidate("c"))
    record.end("ok")
    assert requests(log) == {("chat", "m", "c", "ok"): 1}
    assert {sums.name: (sums.ok, sums.failed) for sums in log.tally.nodes.values()} == {
        "a": (0, 1),
        "b": (0, 1),
        "c": (1, 0),
    }
    assert value(log, "attempts_total", model="m", node="a", outcome="failed") == 1
    assert log.tally.whole.requests == log.tally.whole.ok == 1


def test_of_a_stream_that_moved_each_node_is_credited_with_its_own_tokens(log: RequestLog, clock: Clock) -> None:
    record = log.begin("chat")
    record.attempt(candidate("a"))
    record.first_token()
    clock.now += 1.0
    record.attempt_failed(tokens=11)
    record.attempt(candidate("b"))
    record.first_token()
    clock.now += 2.0
    record.end("ok", {"completion_tokens": 32})
    assert value(log, "tokens_total", model="m", node="a", kind="completion") == 11
    assert value(log, "tokens_total", model="m", node="b", kind="completion") == 21
    assert value(log, "tokens_per_second_sum", model="m", node="b") == 10.0
    assert log.tally.whole.tokens == 32


def test_the_end_counts_once(log: RequestLog) -> None:
    with log.begin("chat") as record:
        record.attempt(candidate("a"))
        record.end("ok")
        record.end("failed")
    assert requests(log) == {("chat", "m", "a", "ok"): 1}


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (InvalidInput("x"), "refused"),
        (Unavailable("x"), "busy"),
        (EngineFailed("x"), "failed"),
        (DeadlineExceeded("x"), "timeout"),
        (TiermeshError("x"), "failed"),
        (ZeroDivisionError("x"), "failed"),
        (ConnectionResetError("x"), "cancelled"),
        (asyncio.CancelledError(), "cancelled"),
        (GeneratorExit(), "cancelled"),
    ],
)
def test_an_exception_tells_how_it_ended(log: RequestLog, error: BaseException, outcome: str) -> None:
    with pytest.raises(type(error)), log.begin("chat"):
        raise error
    assert outcome_of(error) == outcome
    assert requests(log) == {("chat", "none", "none", outcome): 1}


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(200, "ok"), (400, "refused"), (422, "refused"), (408, "timeout"), (429, "busy"), (503, "busy"), (500, "failed")],
)
def test_a_status_tells_it_too(status: int, outcome: str) -> None:
    assert outcome_of_status(status) == outcome


def test_a_client_that_leaves_is_nobodys_failure(log: RequestLog) -> None:
    record = log.begin("chat")
    record.attempt(candidate("a"))
    with pytest.raises(asyncio.CancelledError), record:
        raise asyncio.CancelledError
    sums = log.tally.nodes[NodeId("a" * 32)]
    assert (sums.ok, sums.failed, sums.abandoned) == (0, 0, 1)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"completion_tokens": "7"},
        {"completion_tokens": -3},
        {"completion_tokens": None},
        {"prompt_tokens": []},
    ],
)
def test_what_engines_say_of_usage_may_be_nonsense(log: RequestLog, usage: Mapping[str, object] | None) -> None:
    record = log.begin("chat")
    record.attempt(candidate("a"))
    record.end("ok", usage)
    assert value(log, "tokens_total", model="m", node="a", kind="completion") == 0


@pytest.mark.parametrize(
    ("answer", "usage"),
    [
        (b'{"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}}', (5, 7)),
        (b'data: {"usage":{"prompt_tokens":5,"completion_tokens":7}}\n\ndata: [DONE]\n\n', (5, 7)),
        (b'data: {"usage":null}\n\n', (None, None)),
        (b'{"content": "\\"prompt_tokens\\": 5", "usage": {"completion_tokens": 7}}', (None, 7)),
        (b'{"usage": {"prompt_tokens": 5}}' + b" " * USAGE_BYTES, (None, None)),
        (b"", (None, None)),
    ],
)
def test_usage_is_found_at_the_end_of_an_answer(answer: bytes, usage: tuple[int | None, int | None]) -> None:
    found = usage_in(answer)
    assert (found.get("prompt_tokens"), found.get("completion_tokens")) == usage


def test_no_number_of_names_makes_endless_series(log: RequestLog) -> None:
    for number in range(MAX_NAMES + 100):
        record = log.begin("chat")
        record.attempt(candidate("a", f"m{number}"))
        record.end("ok")
    counted = requests(log)
    assert len(counted) == MAX_NAMES + 1
    assert counted["chat", "other", "a", "ok"] == 100


def test_the_nodes_remembered_are_bounded_and_the_longest_unused_goes_first() -> None:
    tally = Tally()

    def attempt(number: int) -> None:
        node = NodeId(f"{number:032x}")
        facts = {"first_token_s": None, "tokens": 0, "timed_tokens": 0, "making_s": 0.0, "wall": 1.0}
        tally.attempted(node, f"n{number}", "ok", took_s=1.0, **facts)  # type: ignore[arg-type]

    for number in range(MAX_NODES):
        attempt(number)
    attempt(0)
    attempt(MAX_NODES)
    assert len(tally.nodes) == MAX_NODES
    names = {sums.name for sums in tally.nodes.values()}
    assert "n0" in names
    assert "n1" not in names
