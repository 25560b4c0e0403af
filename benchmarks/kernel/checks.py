"""Are the answers what the model says? Speed with wrong answers is none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.kernel.answer import Answer
from benchmarks.kernel.engines import Piped
from benchmarks.kernel.rounds import Trial

SAME = 1e-3
"""Logits this close are a tie, which the order of additions decides."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one engine's tokens: how many, the share that fp32 would choose, and their gaps to its best logit."""

    answers: int
    tokens: int
    share: float
    mean_gap: float
    worst_gap: float


async def judge(judge: Piped, trials: Iterable[Trial]) -> dict[str, Verdict]:
    """By engine: each token against the fp32 model's logits at its place, computed alone."""
    by_engine = defaultdict[str, list[tuple[str, Answer]]](list)
    for trial in trials:
        by_engine[trial.engine] += trial.answers
    return {engine: _verdict(await judge.judge(answers)) for engine, answers in by_engine.items()}


def _verdict(answers: list[list[float]]) -> Verdict:
    gaps = [gap for answer in answers for gap in answer]
    same = sum(gap <= SAME for gap in gaps)
    return Verdict(len(answers), len(gaps), same / len(gaps), sum(gaps) / len(gaps), max(gaps))
