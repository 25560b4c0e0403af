"""What the benchmarks of fine-tuning make of what they measured."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from benchmarks.training.plot import draw
from benchmarks.training.rounds import Measured, Step
from benchmarks.training.spikes import APART, KINDS, Injection, alarms, drawn, judged

from tiermesh.protocol.training_events import RolledBack, StepSkipped, TrainingEvent


def measured(name: str, seconds: float) -> Measured:
    rounds = [[Step(1024, seconds * (1 + part / 10), seconds)] for part in range(3)]
    return Measured(name, 0.5, "bf16", rounds, 2 << 30)


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = {one.name: one for one in (measured("tiermesh", 3.0), measured("TRL defaults", 9.0))}
    draw({"equal tokens": found, "short records": found}, "some machine", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_every_kind_of_damage_is_drawn_and_far_enough_apart() -> None:
    found = drawn(seed=3, steps=1000)
    assert {one.kind for one in found} == set(KINDS)
    steps = [one.step for one in found]
    assert all(later - earlier >= APART // 2 for earlier, later in pairwise(steps))
    assert drawn(seed=3, steps=1000) == found
    assert drawn(seed=4, steps=1000) != found


def skipped(step: int) -> TrainingEvent:
    return StepSkipped(step=step, where="spike")


def test_an_alarm_counts_at_the_first_or_the_second_damaged_step() -> None:
    told = [
        skipped(51),  # the very step whose data is noise
        *(skipped(132), RolledBack(step=133, to_step=128)),  # weights: at the first step that shows it, then put back
        skipped(203),  # at the second one
        skipped(285),  # too late
    ]
    spoiled = [Injection("data", 50), Injection("rate", 130), Injection("weights", 200), Injection("weights", 281)]
    assert [(steps, again) for _, steps, again in judged(spoiled, told)] == [(1, 0), (1, 5), (2, 0), (None, 0)]


def test_what_is_told_of_a_clean_run_is_an_alarm() -> None:
    assert [(one.step, one.back_to) for one in alarms([skipped(7), RolledBack(step=8, to_step=1)])] == [
        (7, None),
        (8, 1),
    ]
