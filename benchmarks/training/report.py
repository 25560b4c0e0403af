"""What was measured, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.training.rounds import Measured

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Row:
    """One promise: what was measured, and whether it holds."""

    number: int
    what: str
    must: str
    measured: str
    kept: bool

    def __str__(self) -> str:
        return f"| {self.number} | {self.what} | {self.must} | {self.measured} | {'kept' if self.kept else 'MISSED'} |"


def table(rows: Sequence[Row]) -> str:
    """With verdicts."""
    return "\n".join(["| # | what | must reach | measured | verdict |", "|---|---|---|---|---|", *map(str, rows)])


def speeds(found: Mapping[str, Measured]) -> str:
    """Each contender's figures: medians over steps, with the slowest and the fastest round."""
    lines = [
        "| | tokens/s | rounds | seconds a step | of processors | steps | data prepared in | peak memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        steps = one.steps
        figures = [f"{one.speed:.0f}", f"{one.speeds[0]:.0f}-{one.speeds[-1]:.0f}"]
        figures += [f"{median(step.seconds for step in steps):.2f}"]
        figures += [f"{median(step.cpu_s for step in steps):.2f}", f"{len(steps)}"]
        figures += [f"{one.prepared_s:.1f} s", f"{one.peak_bytes / MIB:,.0f} MiB"]
        shown = f"{name} ({one.precision})" if one.precision else name
        lines.append(f"| {shown} | {' | '.join(figures)} |")
    return "\n".join(lines)


def ratios(found: Mapping[str, Measured], ours: str) -> str:
    """Of each round, ours over the others."""
    lines = []
    for name, one in found.items():
        if name != ours:
            every = found[ours].ratios(one)
            lines.append(f"{ours} over {name}, by round: {' '.join(f'{ratio:.2f}' for ratio in every)}")
    return "\n\n".join(lines)


def by_processor(found: Mapping[str, Measured], ours: str) -> str:
    """The others' processor time a token over ours: what the ratios come to where nobody else wants the processors.
    Means something when idle threads sleep."""
    mine = median(step.cpu_s / step.tokens for step in found[ours].steps)
    every = (
        f"{name} {median(step.cpu_s / step.tokens for step in one.steps) / mine:.2f} x"
        for name, one in found.items()
        if name != ours
    )
    return f"processor time a token, over {ours}'s: {', '.join(every)}"


def at_least(number: int, what: str, must: float, every: Sequence[float]) -> Row:
    """The median of the rounds' ratios is to reach `must`."""
    reached = median(every)
    return Row(number, what, f">= {must} x", f"{reached:.2f} x [{min(every):.2f}-{max(every):.2f}]", reached >= must)


def at_most(number: int, what: str, must: float, reached: float, text: str) -> Row:
    """What is to stay below."""
    return Row(number, what, text.format(f"<= {must:g}"), text.format(f"{reached:.2f}"), reached <= must)


def numbers(found: Mapping[str, Measured]) -> Iterator[tuple[str, dict[str, object]]]:
    """For whoever wants to reckon on."""
    for name, one in found.items():
        steps = [[step.tokens, step.seconds, step.cpu_s, step.guard_s] for step in one.steps]
        yield name, {"prepared_s": one.prepared_s, "peak_bytes": one.peak_bytes, "steps": steps}
