"""What was measured, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from benchmarks.kernel.checks import Verdict
from benchmarks.kernel.rounds import Trials


def table(trials: Trials, engines: Sequence[str], counts: Sequence[int]) -> str:
    """Medians over the rounds; speeds with the slowest and the fastest round."""
    lines = ["| tokens/s (first token, ms) | " + " | ".join(f"{count} at once" for count in counts) + " |"]
    lines.append("|---" * (len(counts) + 1) + "|")
    lines += [
        f"| {engine} | " + " | ".join(_cell(trials, engine, count) for count in counts) + " |" for engine in engines
    ]
    return "\n".join(lines)


def verdicts(found: Mapping[str, Verdict]) -> str:
    lines = ["| answers | judged | tokens | fp32's own choice | mean gap | largest gap |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {engine} | {one.answers} | {one.tokens} | {one.share:.2%} | {one.mean_gap:.4f} | {one.worst_gap:.2f} |"
        for engine, one in found.items()
    ]
    return "\n".join(lines)


def _cell(trials: Trials, engine: str, count: int) -> str:
    speeds = trials.speeds(engine, count)
    spread = f" [{speeds[0]:.0f}-{speeds[-1]:.0f}]" if len(speeds) > 1 else ""
    return f"{median(speeds):.1f}{spread} ({trials.first(engine, count) * 1000:.0f})"
