"""What was measured, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.gateway.load import Run
from benchmarks.gateway.rounds import MEMORY_REQUESTS, Plan, Trials, ratio

DIRECT, BARE, LITELLM, OURS = "direct", "bare aiohttp", "LiteLLM", "tiermesh"


@dataclass(frozen=True, slots=True)
class Promise:
    """One line: what, how much was promised, what was measured, and whether it is kept."""

    what: str
    promised: str
    measured: str
    kept: bool


def table(trials: Trials, names: Sequence[str]) -> str:
    """Medians over the rounds; requests/s with the slowest and the fastest."""
    head = ["", "requests/s", "CPU µs a request", "alone p50 ms", "p99 ms", "first event p50 ms", "p99 ms", "chunks/s"]
    rows = [[name, *_cells(trials, name)] for name in names]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def promises(trials: Trials, plan: Plan) -> str:
    """Those whose contenders were measured."""
    lines = ["| promise | promised | measured |", "|---|---|---|"]
    told = [
        f"| {p.what} | {p.promised} | {p.measured} ({'kept' if p.kept else 'missed'}) |" for p in kept(trials, plan)
    ]
    return "\n".join([*lines, *told])


def kept(trials: Trials, plan: Plan) -> Iterator[Promise]:
    """Ours against the others."""
    for other, least in ((LITELLM, 20.0), (BARE, 0.6)):
        if other in trials.busy:
            times = ratio(trials.busy, OURS, other)
            yield Promise(
                f"requests/s over {other}, {plan.busy} connections", f">= {least:g}", f"{times:.2f}", times >= least
            )
    for name, limit, read in (("p50", 1.0, Run.p50_ms), ("p99", 5.0, Run.p99_ms)):
        yield _at_most(f"added latency, 1 connection, {name}, ms", _added(trials.alone, read), limit)
    first = _added(trials.streams, lambda run: run.p50_ms(first=True))
    yield _at_most(f"added wait for a first event, {plan.streams} streams, p50, ms", first, 3.0)
    chunks = chunks_per_s(trials, OURS)
    yield Promise("chunks/s through one node", ">= 10000", f"{chunks:.0f}", chunks >= 10_000)
    wrong = sum(len(run.wrong) for run in trials.streams[OURS])
    yield _at_most("streams with a chunk lost or changed", wrong, 0)
    if OURS in trials.memory:
        half, full = (held / 1e6 for held in trials.memory[OURS])
        yield _at_most(f"memory after {MEMORY_REQUESTS[1]} requests, MB", full, 120)
        yield _at_most(f"growth since {MEMORY_REQUESTS[0]}, MB", full - half, GROWTH_MB)


GROWTH_MB = 2.0
"""Less is the allocator's."""


def _at_most(what: str, measured: float, limit: float) -> Promise:
    return Promise(what, f"<= {limit:g}", f"{measured:.2f}", measured <= limit)


def _added(runs: dict[str, list[Run]], read: Callable[[Run], float]) -> float:
    """By us over direct: the median of the rounds."""
    return median(read(ours) - read(direct) for ours, direct in zip(runs[OURS], runs[DIRECT], strict=True))


def chunks_per_s(trials: Trials, name: str) -> float:
    """While all streams run: what one stream gets, times their number."""
    return median(run.at_once * run.events / sum(run.done_s) for run in trials.streams[name])


def _cells(trials: Trials, name: str) -> Iterator[str]:
    busy, alone, streams = trials.busy[name], trials.alone[name], trials.streams[name]
    speeds = sorted(run.per_s for run in busy)
    yield f"{median(speeds):.0f} [{speeds[0]:.0f}-{speeds[-1]:.0f}]"
    yield f"{median(run.cpu_s / run.requests for run in busy) * 1e6:.0f}"
    yield f"{median(run.p50_ms() for run in alone):.2f}"
    yield f"{median(run.p99_ms() for run in alone):.2f}"
    yield f"{median(run.p50_ms(first=True) for run in streams):.2f}"
    yield f"{median(run.p99_ms(first=True) for run in streams):.2f}"
    yield f"{chunks_per_s(trials, name):.0f}"
