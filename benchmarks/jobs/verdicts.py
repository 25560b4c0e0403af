"""What a flood of jobs must not do, and whether it did: figures to a table with verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import quantiles

ACCEPTED_S = 10.0
ENDED_S = 20 * 60.0


@dataclass(slots=True)
class Flood:
    """What was measured. Times in seconds, from the first submission on."""

    jobs: int
    clients: int
    nodes: int
    accepted_s: list[float] = field(default_factory=list)
    """When each submission was answered."""
    refused: list[str] = field(default_factory=list)
    """What others were told."""
    ended_s: float | None = None
    """When the last one ended; None: not within the limit."""
    states: list[str] = field(default_factory=list)
    results: list[int] = field(default_factory=list)
    """Attempts of each job whose result counts."""
    attempts: int = 0
    prompts_s: list[float] = field(default_factory=list)
    """How long the coordinator took to answer each prompt meanwhile."""
    prompts_failed: list[str] = field(default_factory=list)
    quiet_s: list[float] = field(default_factory=list)
    """The same before there were jobs."""


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that must hold."""

    what: str
    must: str
    found: str
    holds: bool


def judge(flood: Flood) -> list[Row]:
    """Every row, whether it holds or not."""
    last = max(flood.accepted_s, default=0.0)
    states = Counter(flood.states)
    told = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none seen"
    ended = flood.ended_s is not None and flood.ended_s <= ENDED_S
    when = "not all within the limit" if flood.ended_s is None else f"{flood.ended_s:.0f} s"
    return [
        Row(
            f"{flood.jobs} jobs from {flood.clients} clients accepted",
            f"all, ≤ {ACCEPTED_S:g} s",
            f"{len(flood.accepted_s)} in {last:.1f} s" + (f"; refused: {flood.refused[0]}" if flood.refused else ""),
            len(flood.accepted_s) == flood.jobs and last <= ACCEPTED_S,
        ),
        Row(
            f"all ended, on {flood.nodes} nodes",
            f"≤ {ENDED_S / 60:g} min",
            f"{when}; {told}",
            ended and states["completed"] == flood.jobs,
        ),
        Row(
            "one result each",
            f"{flood.jobs}",
            f"{flood.results.count(1)}, of {flood.attempts} attempts",
            flood.results.count(1) == flood.jobs == len(flood.results),
        ),
        Row(
            "prompts to the coordinator meanwhile",
            "all answered",
            f"{len(flood.prompts_s)} answered, {len(flood.prompts_failed)} not; {_spread(flood.prompts_s)}"
            f" (before: {_spread(flood.quiet_s)})" + (f"; {flood.prompts_failed[0]}" if flood.prompts_failed else ""),
            bool(flood.prompts_s) and not flood.prompts_failed,
        ),
    ]


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| what | must | found | |", "|---|---|---|---|"]
    lines += [f"| {row.what} | {row.must} | {row.found} | {'ok' if row.holds else '**FAILED**'} |" for row in rows]
    return "\n".join(lines)


def _spread(seconds: Sequence[float]) -> str:
    if len(seconds) < 2:
        return "too few to tell"
    cuts = quantiles(seconds, n=20, method="inclusive")
    return f"p50 {cuts[9]:.2f} s, p95 {cuts[18]:.2f} s, max {max(seconds):.2f} s"
