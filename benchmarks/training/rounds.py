"""Contenders measured in turns, and what the rounds say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.training.turns import Contender, Runner, running, turned


@dataclass(frozen=True, slots=True)
class Step:
    """Of one contender. `tokens` are those that are not padding; `cpu_s`: of all its threads, also while they spin."""

    tokens: int
    seconds: float
    cpu_s: float
    guard_s: float = 0.0


@dataclass(slots=True)
class Measured:
    """One contender's rounds."""

    name: str
    prepared_s: float
    precision: str = ""
    rounds: list[list[Step]] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def steps(self) -> list[Step]:
        return [step for steps in self.rounds for step in steps]

    @property
    def speed(self) -> float:
        """Tokens a second, the median over the steps."""
        return median(step.tokens / step.seconds for step in self.steps)

    @property
    def speeds(self) -> list[float]:
        """Of each round, sorted."""
        return sorted(_speed(steps) for steps in self.rounds)

    @property
    def whole_speed(self) -> float:
        """Tokens a second over all steps and the preparation of the data."""
        return sum(step.tokens for step in self.steps) / (sum(step.seconds for step in self.steps) + self.prepared_s)

    @property
    def guard_share(self) -> float:
        """Of the time of the steps, that which the guard took."""
        return sum(step.guard_s for step in self.steps) / sum(step.seconds for step in self.steps)

    def ratios(self, other: Measured) -> list[float]:
        """Our speed over the other's in each round, whose turns were seconds apart."""
        return [_speed(one) / _speed(two) for one, two in zip(self.rounds, other.rounds, strict=True)]


def run_rounds(
    contenders: Sequence[Contender], *, rounds: int, warm_up: int, log: Path, say: Callable[[str], None]
) -> dict[str, Measured]:
    """All of them loaded, then turn by turn. `warm_up` steps of each don't count."""
    found: dict[str, Measured] = {}
    with ExitStack() as stack:
        runners = []
        for contender in contenders:
            runner = stack.enter_context(running(contender, log))
            told = runner.hear()
            found[contender.name] = Measured(contender.name, told["prepared_s"], told.get("precision", ""))
            for _ in range(warm_up):
                runner.step()
            runners.append(runner)
            say(f"{contender.name} is ready")
        for number in range(rounds):
            for runner in turned(runners, number):
                found[runner.contender.name].rounds.append([_step(runner) for _ in range(runner.contender.steps)])
            speeds = ", ".join(f"{name} {_speed(one.rounds[-1]):.0f}" for name, one in found.items())
            say(f"round {number + 1}/{rounds}, tokens/s: {speeds}")
        for runner in runners:
            found[runner.contender.name].peak_bytes = runner.peak_bytes()
    return found


def _step(runner: Runner) -> Step:
    told = runner.step()
    return Step(told["tokens"], told["seconds"], told["cpu_s"], told.get("guard_s", 0.0))


def _speed(steps: Sequence[Step]) -> float:
    return sum(step.tokens for step in steps) / sum(step.seconds for step in steps)
