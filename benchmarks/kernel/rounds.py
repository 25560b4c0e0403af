"""Interleaved rounds: every engine gets the same questions, one engine after the other, in an order that turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from benchmarks.kernel.answer import Answer, Engine

WARM_UP_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Trial:
    """One engine, asked a number of questions at the same time."""

    engine: str
    requests: int
    answers: list[tuple[str, Answer]]

    @property
    def tokens_per_s(self) -> float:
        """All tokens over the time until the last of them came."""
        return sum(one.completion_tokens for _, one in self.answers) / max(one.last_s for _, one in self.answers)

    @property
    def first_s(self) -> float:
        """The median over the questions."""
        return median(one.first_s for _, one in self.answers)


@dataclass(slots=True)
class Trials:
    """All that were made, by engine and number of requests."""

    made: dict[tuple[str, int], list[Trial]] = field(default_factory=dict)

    def add(self, trial: Trial) -> None:
        self.made.setdefault((trial.engine, trial.requests), []).append(trial)

    def speeds(self, engine: str, requests: int) -> list[float]:
        return sorted(trial.tokens_per_s for trial in self.made[engine, requests])

    def first(self, engine: str, requests: int) -> float:
        return median(trial.first_s for trial in self.made[engine, requests])

    def ratio(self, engine: str, other: str, requests: int) -> float:
        """The median of what the rounds say, each of which compares neighbours in time."""
        pairs = zip(self.made[engine, requests], self.made[other, requests], strict=True)
        return median(one.tokens_per_s / two.tokens_per_s for one, two in pairs)


async def run_rounds(
    engines: Sequence[Engine],
    questions: Iterator[str],
    *,
    rounds: int,
    counts: Sequence[int],
    tokens: int,
    say: Callable[[str], None],
) -> Trials:
    trials = Trials()
    for engine in engines:
        await engine.ask([next(questions), next(questions)], WARM_UP_TOKENS)
    for number in range(rounds):
        for requests in counts:
            asked = [next(questions) for _ in range(requests)]
            for engine in _turned(engines, number):
                began = time.perf_counter()
                trial = Trial(engine.name, requests, list(zip(asked, await engine.ask(asked, tokens), strict=True)))
                trials.add(trial)
                say(
                    f"round {number + 1}/{rounds}  {requests:2} at once  {engine.name:16} {trial.tokens_per_s:6.1f} "
                    f"tokens/s, first token {trial.first_s * 1000:5.0f} ms, took {time.perf_counter() - began:.1f} s"
                )
    return trials


def _turned(engines: Sequence[Engine], by: int) -> list[Engine]:
    by %= len(engines)
    return [*engines[by:], *engines[:by]]
