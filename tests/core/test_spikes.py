"""The detector on synthetic losses: what a run must notice, and what it must leave alone."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator

import pytest

from tiermesh.core.spikes import Detector, Sensitivity, Verdict

STEPS = 1000
FALSE_ALARMS_PER_RUN = 1
SEEDS = range(20)


def clean(seed: int, *, noise: float, start: float = 6.0, end: float = 1.5) -> Iterator[tuple[float, float]]:
    """A falling loss and gradient norms, both with skewed noise, as small batches of text have."""
    chance = random.Random(seed)
    for step in range(STEPS):
        trend = end + (start - end) * math.exp(-step / 80)
        yield trend * chance.lognormvariate(0, noise), chance.lognormvariate(math.log(0.4 + trend / 4), 2 * noise)


@pytest.mark.parametrize("noise", [0.02, 0.08, 0.15])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_thousand_clean_steps_raise_at_most_one_alarm(seed: int, noise: float) -> None:
    detector = Detector()
    verdicts = [detector.judge(*figures) for figures in clean(seed, noise=noise)]
    assert sum(verdict is not Verdict.GOOD for verdict in verdicts) <= FALSE_ALARMS_PER_RUN
    assert Verdict.SPIKE not in verdicts


@pytest.mark.parametrize("figure", ["loss", "norm"])
@pytest.mark.parametrize("at", [15, 40, 300, 900])
@pytest.mark.parametrize("seed", range(5))
def test_a_spike_is_suspect_at_once_and_certain_at_the_second_step(seed: int, at: int, figure: str) -> None:
    detector = Detector()
    found = []
    for step, (loss, norm) in enumerate(clean(seed, noise=0.08)):
        if step in (at, at + 1):
            loss, norm = (loss * 4, norm) if figure == "loss" else (loss, norm * 50)
        found.append(detector.judge(loss, norm))
    assert found[at : at + 2] == [Verdict.SUSPECT, Verdict.SPIKE]


@pytest.mark.parametrize("figure", ["loss", "norm"])
def test_the_first_of_two_does_not_hide_the_second(figure: str) -> None:
    """Both lie seven and a half deviations above the mean: enough, and not by much."""
    chance, detector = random.Random(1), Detector()
    for _ in range(300):
        detector.judge(2 + chance.gauss(0, 0.2), math.exp(chance.gauss(0, 0.3)))
    high = (3.5, 1.0) if figure == "loss" else (2.0, math.exp(2.25))
    assert [detector.judge(*high), detector.judge(*high)] == [Verdict.SUSPECT, Verdict.SPIKE]


def test_one_outlier_is_never_a_spike() -> None:
    detector = Detector()
    verdicts = [detector.judge(9.0 if step == 60 else 2.0 + 0.01 * (step % 5), 1.0) for step in range(100)]
    assert verdicts[60] is Verdict.SUSPECT
    assert Verdict.SPIKE not in verdicts


def test_a_level_that_stays_is_taken_for_normal_in_time() -> None:
    detector = Detector()
    verdicts = [detector.judge(2.0 if step < 50 else 4.0, 1.0) for step in range(100)]
    assert verdicts[50] is Verdict.SUSPECT
    assert set(verdicts[75:]) == {Verdict.GOOD}


def test_nothing_is_judged_while_it_warms_up() -> None:
    detector = Detector(Sensitivity(warm_up_steps=10))
    assert {detector.judge(2.0**step, 1.0) for step in range(10)} == {Verdict.GOOD}


def test_small_rises_of_a_quiet_series_are_ordinary() -> None:
    detector = Detector()
    assert {detector.judge(1.0 + 0.4 * (step == 90), 1.0) for step in range(100)} == {Verdict.GOOD}


def test_its_state_survives_a_checkpoint() -> None:
    figures = list(clean(3, noise=0.1))
    first, second = Detector(), Detector()
    figures[99] = (40.0, 1.0)  # what is suspect then is still held
    for one in figures[:100]:
        first.judge(*one)
    second.take(json.loads(json.dumps(first.to_dict())))
    figures[150] = (40.0, 1.0)
    assert [first.judge(*one) for one in figures[100:]] == [second.judge(*one) for one in figures[100:]]
