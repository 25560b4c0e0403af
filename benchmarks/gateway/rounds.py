"""Interleaved rounds: every contender gets the same load, one after the other, in an order that turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from benchmarks.gateway.contenders import Contender
from benchmarks.gateway.load import Run, for_seconds, run_requests, run_streams

WARM_UP_S = 1.0
MEMORY_REQUESTS = (50_000, 100_000)
"""Memory is read after so many requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured. `busy` connections for throughput, one for latency, `streams` at once of `events` each."""

    rounds: int
    busy: int
    seconds: float
    streams: int
    events: int
    event_gap_s: float

    @property
    def stream_s(self) -> float:
        """What a stream lasts at the least."""
        return self.events * self.event_gap_s


@dataclass(slots=True)
class Trials:
    """What came of it, by name: one run each round."""

    busy: dict[str, list[Run]] = field(default_factory=dict)
    alone: dict[str, list[Run]] = field(default_factory=dict)
    streams: dict[str, list[Run]] = field(default_factory=dict)
    memory: dict[str, list[int]] = field(default_factory=dict)

    def wrong(self) -> list[str]:
        """Everything that was not answered as it should have been."""
        kinds = (self.busy, self.alone, self.streams)
        found = ((name, problem) for kind in kinds for name, runs in kind.items() for r in runs for problem in r.wrong)
        return [f"{name}: {problem}" for name, problem in found]


def ratio(runs: dict[str, list[Run]], one: str, other: str) -> float:
    """Of requests a second: the median of what the rounds say, each of which compares neighbours in time."""
    return median(a.per_s / b.per_s for a, b in zip(runs[one], runs[other], strict=True))


async def run_rounds(contenders: Sequence[Contender], plan: Plan, say: Callable[[str], None]) -> Trials:
    trials = Trials()
    for number in range(plan.rounds):
        turn = number % len(contenders)
        for contender in [*contenders[turn:], *contenders[:turn]]:
            await run_requests(contender.target, plan.busy, for_seconds(WARM_UP_S))
            busy = await _measured(contender, plan)
            alone = await run_requests(contender.target, 1, for_seconds(plan.seconds))
            streams = await run_streams(
                contender.target, plan.streams, rounds=3, events=plan.events, lasts_s=plan.stream_s
            )
            for kind, run in ((trials.busy, busy), (trials.alone, alone), (trials.streams, streams)):
                kind.setdefault(contender.name, []).append(run)
            say(
                f"round {number + 1}/{plan.rounds}  {contender.name:12} {busy.per_s:8.0f} requests/s, alone "
                f"{alone.p50_ms():.2f} ms, first event {streams.p50_ms(first=True):.2f} ms"
            )
    return trials


async def run_memory(contender: Contender, busy: int, trials: Trials, say: Callable[[str], None]) -> None:
    """What it holds after so many requests."""
    asked = 0
    for requests in MEMORY_REQUESTS:
        run = await run_requests(contender.target, busy, iter(range(requests - asked)))
        asked = requests
        trials.busy[contender.name][-1].wrong += run.wrong
        trials.memory.setdefault(contender.name, []).append(contender.memory_bytes())
        say(f"{contender.name} holds {contender.memory_bytes() / 1e6:.0f} MB after {requests} requests")


async def _measured(contender: Contender, plan: Plan) -> Run:
    before_s = contender.cpu_s()
    run = await run_requests(contender.target, plan.busy, for_seconds(plan.seconds))
    run.cpu_s = contender.cpu_s() - before_s
    return run
