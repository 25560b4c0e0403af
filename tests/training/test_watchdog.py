"""Silence and heat: times and temperatures are told, nothing waits."""

from __future__ import annotations

import pytest

from tiermesh.errors import Overheated, Stalled
from tiermesh.kernel.training.watchdog import (
    COOL_C,
    FIRST_STALL_S,
    HEAT_LOOK_S,
    HOT_C,
    HOT_LOOKS,
    MIN_STALL_S,
    SAVE_STALL_S,
    STALL_TIMES,
    TOO_LONG_S,
    Heat,
    Thermostat,
    Watchdog,
    temperatures,
)
from tiermesh.protocol.training_events import Continued, Paused, Phase, StepDone, TrainingEvent, Warned


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def step(number: int) -> TrainingEvent:
    return StepDone(step=number, steps=9, epoch=0.0, loss=1.0, learning_rate=1e-4)


def watchdog(step_s: float) -> tuple[Watchdog, Clock]:
    clock = Clock()
    dog = Watchdog(lambda stalled: None, clock=clock)
    for number in range(5):
        clock.now += step_s
        dog.hear(step(number))
    return dog, clock


def test_silence_is_judged_by_the_usual_time_of_a_step() -> None:
    dog, clock = watchdog(step_s=60.0)
    clock.now += STALL_TIMES * 60.0 - 1
    assert dog.overdue() is None
    clock.now += 2
    assert dog.overdue() == STALL_TIMES * 60.0 + 1


def test_quick_steps_may_still_be_silent_for_minutes() -> None:
    dog, clock = watchdog(step_s=0.01)
    clock.now += MIN_STALL_S - 1
    assert dog.overdue() is None
    clock.now += 2
    assert dog.overdue() is not None


def test_before_the_first_step_nothing_is_usual() -> None:
    clock = Clock()
    dog = Watchdog(lambda stalled: None, clock=clock)
    clock.now += FIRST_STALL_S - 1
    assert dog.overdue() is None


def test_whatever_is_told_is_a_sign_of_life_and_a_pause_is_none_of_silence() -> None:
    dog, clock = watchdog(step_s=1.0)
    clock.now += MIN_STALL_S - 1
    dog.hear(Warned(message="something"))
    clock.now += MIN_STALL_S - 1
    assert dog.overdue() is None
    dog.hear(Paused(step=5, reason="somebody asked for it"))
    clock.now += 10 * MIN_STALL_S
    assert dog.overdue() is None
    dog.hear(Continued(step=5))
    clock.now += MIN_STALL_S + 1
    assert dog.overdue() is not None


def test_a_long_evaluation_that_computes_is_no_stall() -> None:
    dog, clock = watchdog(step_s=1.0)
    for _ in range(10):
        clock.now += MIN_STALL_S - 1
        dog.alive()
        assert dog.overdue() is None


def test_a_checkpoint_may_take_as_long_as_a_slow_disk_needs() -> None:
    dog, clock = watchdog(step_s=1.0)
    dog.hear(Phase(phase="save", state="started"))
    clock.now += SAVE_STALL_S - 1
    assert dog.overdue() is None
    clock.now += 2
    assert dog.overdue() is not None
    dog.hear(Phase(phase="save", state="completed"))
    clock.now += MIN_STALL_S + 1
    assert dog.overdue() is not None


def test_the_watching_thread_tells_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setattr("tiermesh.kernel.training.watchdog.LOOK_S", 0.001)
    clock, told, heard = Clock(), list[Stalled](), threading.Event()

    def on_stall(stalled: Stalled) -> None:
        told.append(stalled)
        heard.set()

    dog = Watchdog(on_stall, clock=clock)
    for number in range(3):
        clock.now += 1.0
        dog.hear(step(number))
    dog.start()
    while not heard.wait(0.001):
        clock.now += 20.0  # less than what is taken for a frozen process
    assert len(told) == 1
    assert "a step usually takes 1.0 s" in str(told[0])


HOT, COOL = {"cpu": HOT_C["cpu"]}, {"cpu": COOL_C["cpu"]}


def test_heat_pauses_after_some_looks_and_goes_on_when_it_is_cool() -> None:
    thermostat = Thermostat()
    said = [thermostat.judge(float(look), HOT) for look in range(HOT_LOOKS)]
    assert said == ["go"] * (HOT_LOOKS - 1) + ["pause"]
    assert thermostat.judge(10.0, {"cpu": COOL_C["cpu"] + 1}) == "pause"
    assert thermostat.judge(11.0, COOL) == "go"
    assert thermostat.judge(12.0, HOT) == "go"


def test_heat_that_stays_is_a_failure() -> None:
    thermostat = Thermostat()
    for look in range(HOT_LOOKS):
        thermostat.judge(float(look), {"gpu": HOT_C["gpu"]})
    with pytest.raises(Overheated, match="GPU 89 °C"):
        thermostat.judge(HOT_LOOKS + TOO_LONG_S, {"gpu": 89.0})


def test_a_machine_without_sensors_never_pauses() -> None:
    assert [Thermostat().judge(float(look), {}) for look in range(5)] == ["go"] * 5


def test_sensors_are_looked_at_now_and_then() -> None:
    clock, looks = Clock(), []

    def read() -> dict[str, float]:
        looks.append(clock.now)
        return HOT

    heat = Heat(read, clock=clock)
    assert [heat.is_too_hot() for _ in range(3)] == [False] * 3
    for _ in range(HOT_LOOKS - 1):
        clock.now += HEAT_LOOK_S
        hot = heat.is_too_hot()
    assert hot
    assert len(looks) == HOT_LOOKS
    assert set(temperatures()) <= {"cpu", "gpu"}
