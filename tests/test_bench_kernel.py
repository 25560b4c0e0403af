"""What the benchmark makes of what it measured."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from benchmarks.kernel import report
from benchmarks.kernel.answer import Answer
from benchmarks.kernel.moments import LateArrival, SecondTurn, late_line, turn_line
from benchmarks.kernel.prompts import prompts
from benchmarks.kernel.rounds import Trial, Trials, run_rounds


def answer(tokens: int, first_s: float, last_s: float) -> Answer:
    step = (last_s - first_s) / max(1, tokens - 1)
    return Answer("", (), tokens, 9, tuple(first_s + step * index for index in range(tokens)))


class Steady:
    """Answers any number of requests in the same time, and notes what it was asked."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name = name
        self.seconds = seconds
        self.asked: list[tuple[str, ...]] = []

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def ask(self, prompts: Sequence[str], tokens: int) -> list[Answer]:
        self.asked.append(tuple(prompts))
        return [answer(tokens, self.seconds / 10, self.seconds) for _ in prompts]


async def measured(*engines: Steady) -> Trials:
    return await run_rounds(engines, prompts(), rounds=3, counts=[1, 8], tokens=20, say=lambda _: None)


def test_no_question_is_asked_twice() -> None:
    every = list(prompts())
    assert len(set(every)) == len(every) > 500
    assert list(prompts()) == every, "and every run asks the same"


def test_speed_counts_all_tokens_until_the_last_one_came() -> None:
    trial = Trial("e", 2, [("a", answer(10, 0.5, 1.0)), ("b", answer(30, 0.7, 2.0))])
    assert trial.tokens_per_s == 20
    assert trial.first_s == pytest.approx(0.6)


async def test_all_engines_get_the_same_questions_and_none_is_always_first() -> None:
    order: list[str] = []
    engines = [Steady("a", 1.0), Steady("b", 2.0)]
    await run_rounds(engines, prompts(), rounds=2, counts=[1], tokens=4, say=lambda line: order.append(line.split()[5]))
    assert order == ["a", "b", "b", "a"]
    rounds = engines[0].asked[1:]  # after the warm-up
    assert rounds == engines[1].asked[1:]
    assert len(set(itertools.chain.from_iterable(rounds))) == len(rounds) == 2


async def test_a_promise_is_held_against_the_same_rounds() -> None:
    trials = await measured(Steady("tiermesh", 1.0), Steady("llama.cpp", 0.5), Steady("generate bf16", 1.05))
    told = report.promises(trials, amx=True)
    assert "| llama.cpp, 8 at once | 1.0 | 0.50 (missed) |" in told
    assert "| generate bf16, 1 at once | 0.9 | 1.05 (kept) |" in told
    assert "generate_batch" not in told, "what was not measured is not judged"
    assert "(not promised without AMX)" in report.promises(trials, amx=False)


async def test_the_table_has_a_row_for_each_engine() -> None:
    trials = await measured(Steady("tiermesh", 1.0))
    assert report.table(trials, ["tiermesh"], [1, 8]).splitlines()[2] == (
        "| tiermesh | 20.0 [20-20] (100) | 160.0 [160-160] (100) |"
    )


def test_moments_are_told_as_medians() -> None:
    late = [LateArrival(0.1, 2.0, 1.5), LateArrival(0.3, 2.2, 1.9), LateArrival(0.2, 2.1, 1.7)]
    assert "after 200 ms, 1.9 s before the other ends; the other's tokens take 1.70 times" in late_line("e", late)
    assert "after 50 ms, 0.10 of the first turn's 500 ms" in turn_line("e", [SecondTurn(1000, 0.5, 0.05)])
