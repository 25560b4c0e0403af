"""What was measured, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.kernel.checks import Verdict
from benchmarks.kernel.rounds import Trials

OURS = "tiermesh"
TOGETHER = 8
"""The number of requests that throughput is promised for."""


@dataclass(frozen=True, slots=True)
class Promise:
    """Our speed over another engine's. `only_amx`: elsewhere it is told, not promised."""

    other: str
    requests: int
    at_least: float
    only_amx: bool = False


PROMISES = (
    Promise("llama.cpp", TOGETHER, 1.0, only_amx=True),
    Promise("generate_batch", TOGETHER, 6.0),
    Promise("generate fp32", 1, 0.9),
    Promise("generate bf16", 1, 0.9),
)


def table(trials: Trials, engines: Sequence[str], counts: Sequence[int]) -> str:
    """Medians over the rounds; speeds with the slowest and the fastest round."""
    lines = ["| tokens/s (first token, ms) | " + " | ".join(f"{count} at once" for count in counts) + " |"]
    lines.append("|---" * (len(counts) + 1) + "|")
    rows = ([engine, *(_cell(trials, engine, count) for count in counts)] for engine in engines)
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def promises(trials: Trials, *, amx: bool) -> str:
    """Those whose engines were measured."""
    return "\n".join(["| tiermesh over | promised | measured |", "|---|---|---|", *_promises(trials, amx=amx)])


def verdicts(found: Mapping[str, Verdict]) -> str:
    """How right the answers are: each token held against fp32's logits at its place."""
    lines = ["| answers | judged | tokens | fp32's own choice | mean gap | largest gap |", "|---|---|---|---|---|---|"]
    for engine, one in found.items():
        figures = f"{one.answers} | {one.tokens} | {one.share:.2%} | {one.mean_gap:.4f} | {one.worst_gap:.2f}"
        lines.append(f"| {engine} | {figures} |")
    return "\n".join(lines)


def _promises(trials: Trials, *, amx: bool) -> Iterator[str]:
    for one in PROMISES:
        if {(OURS, one.requests), (one.other, one.requests)} <= trials.made.keys():
            ratio = trials.ratio(OURS, one.other, one.requests)
            kept = "kept" if ratio >= one.at_least else "missed"
            judged = kept if amx or not one.only_amx else "not promised without AMX"
            yield f"| {one.other}, {one.requests} at once | {one.at_least} | {ratio:.2f} ({judged}) |"


def _cell(trials: Trials, engine: str, count: int) -> str:
    speeds = trials.speeds(engine, count)
    spread = f" [{speeds[0]:.0f}-{speeds[-1]:.0f}]" if len(speeds) > 1 else ""
    return f"{median(speeds):.1f}{spread} ({trials.first(engine, count) * 1000:.0f})"
