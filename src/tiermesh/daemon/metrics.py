"""What became of every request that this node carried: counters and histograms for Prometheus, sums for people.

    with log.begin(api) as record:          # one a request, whoever answers it
        record.attempt(candidate)           # one a candidate that is tried; ends the one before as failed
        record.first_token()                # the first byte of an answer has come
        record.end("ok", usage)             # whatever leaves the block without it is judged by its exception

Names come from callers and other nodes, so labels are bounded: a model is labelled as the node that serves it calls
it, never as a caller spelt it, and past `MAX_NAMES` all further ones are `other`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Literal, Protocol, Self

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tiermesh.adapters import clock
from tiermesh.daemon.series import Histogram, counter_family, histogram_family
from tiermesh.daemon.tally import Tally
from tiermesh.errors import TiermeshError
from tiermesh.types import Model, NodeId

Outcome = Literal["ok", "refused", "busy", "failed", "timeout", "cancelled"]
"""Answered; the caller's own mistake (4xx); no room (429, 503); broken (5xx, or a stream that broke off); out of time
(504); the client left."""

Trial = Literal["ok", "failed", "abandoned"]
"""What became of one attempt at one node. A reasoned 4xx is an answer: the node did what it should."""

TRIALS: Mapping[Outcome, Trial] = {
    "ok": "ok",
    "refused": "ok",
    "busy": "failed",
    "failed": "failed",
    "timeout": "failed",
    "cancelled": "abandoned",
}

MAX_NAMES = 500
"""Different models, and different nodes, that get labels of their own: five times the largest daily mesh. Each costs
some tens of time series."""

OTHER = "other"
NOBODY = "none"
"""Label of a node or model when no candidate was tried."""

LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""From an answer of a mock to the longest that a request may take."""

FIRST_TOKEN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120)
"""Two minutes: a large cold model from a slow disk."""

USAGE_BYTES = 8192
"""Of an answer's end: usage comes last, or is followed by some timings."""

_TOKENS = re.compile(rb'"(prompt_tokens|completion_tokens)"\s?:\s?(\d{1,12})')

SPEED_BUCKETS = (1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000)
"""Tokens a second of one request: from an overloaded small machine to a small model on a large GPU."""


class Candidate(Protocol):
    """Whom a request is sent to: `core.routing.Candidate`."""

    @property
    def node(self) -> NodeId: ...
    @property
    def node_name(self) -> str: ...
    @property
    def model(self) -> Model: ...


class RequestLog:
    """Owner of the figures about requests. All methods are called on the daemon's loop; none waits or raises."""

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        *,
        now: Callable[[], float] = clock.now,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self.tally = Tally()
        self._now = now
        self._wall = wall
        self._meters = _Meters()
        self.registry.register(self._meters)

    def begin(self, api: str) -> Record:
        """A request has come by `api`, a route of ours."""
        self._meters.active += 1
        return Record(self, self._meters, api, self._now())

    def now(self) -> float:
        """Seconds, monotonic."""
        return self._now()

    def wall(self) -> float:
        """Unix seconds."""
        return self._wall()


class Record:
    """One request. `end` counts once; what is told after it is ignored."""

    __slots__ = (
        "_api",
        "_attempt_at",
        "_begun_at",
        "_candidate",
        "_first_at",
        "_kept",
        "_line",
        "_log",
        "_meters",
        "_over",
    )

    def __init__(self, log: RequestLog, meters: _Meters, api: str, now: float) -> None:
        self._log = log
        self._meters = meters
        self._api = api
        self._begun_at = now
        self._line: _Line | None = None
        """Of the last candidate that was tried."""
        self._candidate: Candidate | None = None
        """The one that is at it now."""
        self._attempt_at = now
        self._first_at: float | None = None
        self._kept = 0
        """Tokens of the answer that earlier candidates made."""
        self._over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._over:
            self.end("ok" if error is None else outcome_of(error))

    def attempt(self, candidate: Candidate) -> None:
        """This candidate is tried now, or goes on with the stream; the one before has failed."""
        self.attempt_failed()
        self._candidate, self._attempt_at, self._first_at = candidate, self._log.now(), None
        self._line = self._meters.line(candidate)

    def attempt_failed(self, tokens: int = 0) -> None:
        """The candidate at hand has failed; the request may wait or go elsewhere. `tokens` of its answer are kept."""
        if self._candidate is not None:
            self._close("failed", 0, tokens, self._log.now(), self._log.wall())
            self._kept += tokens

    def first_token(self) -> None:
        """The candidate at hand has begun to answer."""
        if self._first_at is None and self._line is not None:
            self._first_at = self._log.now()
            self._line.first_token.observe(self._first_at - self._attempt_at)

    def end(self, outcome: Outcome, usage: Mapping[str, object] | None = None) -> None:
        """The request is over. `usage` is OpenAI's, as an engine sent it: anything in it may be wrong or missing."""
        if self._over:
            return
        self._over = True
        now = self._log.now()
        self._meters.active -= 1
        wall = self._log.wall()
        self._meters.finished(self._api, self._line, outcome, now - self._begun_at)
        self._log.tally.finished(outcome, now - self._begun_at, wall)
        if self._candidate is not None:
            prompt, completion = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
            self._close(TRIALS[outcome], prompt, max(0, completion - self._kept), now, wall)

    def _close(self, trial: Trial, prompt: int, completion: int, now: float, wall: float) -> None:
        line, candidate, took_s = self._line, self._candidate, now - self._attempt_at
        assert line is not None
        assert candidate is not None
        self._candidate = None
        line.trials[trial] += 1
        line.prompt += prompt
        first_s = None if self._first_at is None else self._first_at - self._attempt_at
        # The first token came at the beginning of the time that is measured; without that moment, prompt and all.
        made = completion - 1 if first_s is not None and completion > 1 else completion
        making_s = took_s - (first_s or 0.0) if made != completion else took_s
        if completion:
            line.completion += completion
            if making_s > 0:
                line.speed.observe(made / making_s)
        self._log.tally.attempted(
            candidate.node,
            candidate.node_name,
            trial,
            took_s=took_s,
            first_token_s=first_s,
            tokens=completion,
            timed_tokens=made,
            making_s=making_s,
            wall=wall,
        )


def outcome_of(error: BaseException) -> Outcome:
    """How a request ended that ended with `error`."""
    if isinstance(error, (asyncio.CancelledError, GeneratorExit, ConnectionError)):
        return "cancelled"
    return outcome_of_status(error.http_status) if isinstance(error, TiermeshError) else "failed"


def outcome_of_status(status: int) -> Outcome:
    """The same by HTTP status."""
    if status in (429, 503):
        return "busy"
    if status in (408, 504):
        return "timeout"
    return "ok" if status < 400 else "refused" if status < 500 else "failed"


class _Line:
    """The figures of one model on one node."""

    __slots__ = ("completion", "first_token", "labels", "prompt", "speed", "trials")

    def __init__(self, model: str, node: str) -> None:
        self.labels = (model, node)
        self.trials: dict[Trial, int] = dict.fromkeys(TRIALS.values(), 0)
        self.first_token = Histogram(FIRST_TOKEN_BUCKETS)
        self.speed = Histogram(SPEED_BUCKETS)
        self.prompt = self.completion = 0


class _Meters(Collector):
    """All figures about requests, for one registry."""

    def __init__(self) -> None:
        self.active = 0
        self._requests: dict[tuple[str, ...], int] = {}
        self._latencies: dict[tuple[str, ...], Histogram] = {}
        self._lines: dict[tuple[str, ...], _Line] = {}
        self._models, self._nodes = _Names(), _Names()

    def line(self, candidate: Candidate) -> _Line:
        """Where attempts at a candidate are counted."""
        labels = (self._models.label(candidate.model.name), self._nodes.label(candidate.node_name))
        found = self._lines.get(labels)
        if found is None:
            found = self._lines[labels] = _Line(*labels)
        return found

    def finished(self, api: str, line: _Line | None, outcome: Outcome, took_s: float) -> None:
        """A request that came by `api` is over; `line` is of the last candidate that was tried."""
        model, node = line.labels if line is not None else (NOBODY, NOBODY)
        labels = (api, model, node, outcome)
        self._requests[labels] = self._requests.get(labels, 0) + 1
        latency = self._latencies.get((api,))
        if latency is None:
            latency = self._latencies[api,] = Histogram(LATENCY_BUCKETS)
        latency.observe(took_s)

    def collect(self) -> Iterator[Metric]:
        """All of it, now."""
        lines, of_a_line = self._lines, ("model", "node")
        trials = {(*labels, trial): count for labels, line in lines.items() for trial, count in line.trials.items()}
        tokens = {(*labels, "prompt"): line.prompt for labels, line in lines.items()}
        tokens |= {(*labels, "completion"): line.completion for labels, line in lines.items()}
        yield GaugeMetricFamily("tiermesh_requests_active", "Requests that this node is carrying.", self.active)
        yield counter_family(
            "tiermesh_requests",
            "Requests that this node carried, by who answered.",
            ("api", *of_a_line, "outcome"),
            self._requests,
        )
        yield counter_family("tiermesh_attempts", "Attempts at candidates.", (*of_a_line, "outcome"), trials)
        yield counter_family("tiermesh_tokens", "Tokens.", (*of_a_line, "kind"), tokens)
        yield histogram_family("tiermesh_request_seconds", "From question to last byte.", ("api",), self._latencies)
        yield histogram_family(
            "tiermesh_first_token_seconds",
            "From attempt to first byte of the answer.",
            of_a_line,
            {labels: line.first_token for labels, line in lines.items()},
        )
        yield histogram_family(
            "tiermesh_tokens_per_second",
            "Tokens a second of one answer, after its first one.",
            of_a_line,
            {labels: line.speed for labels, line in lines.items()},
        )


class _Names:
    """The first `MAX_NAMES` names that come by."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def label(self, name: str) -> str:
        if name not in self._known:
            if len(self._known) >= MAX_NAMES:
                return OTHER
            self._known.add(name)
        return name


def usage_in(answer: bytes) -> dict[str, int]:
    """What the end of an answer, or the last piece of a stream, says of its tokens; found by pattern, not parsed.

    A quote inside a JSON string is escaped, so nothing that a model wrote is taken for a figure.
    """
    return {name.decode(): int(count) for name, count in _TOKENS.findall(answer, max(0, len(answer) - USAGE_BYTES))}


def _count(usage: Mapping[str, object] | None, name: str) -> int:
    value = None if usage is None else usage.get(name)
    return value if isinstance(value, int) and value > 0 else 0
