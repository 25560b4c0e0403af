"""Looking at this machine: on time, whatever goes wrong, with a bounded memory, and telling only what matters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from tiermesh.core.health import Vitals
from tiermesh.daemon import vitals
from tiermesh.daemon.vitals import FRESH_S, HISTORY, HISTORY_S, VitalsWatch
from tiermesh.types import EngineInfo, Health

LIMIT_S = 10.0


class Machine:
    """What is looked at. Time stands still unless a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.memory_percents: Iterator[int] = iter(())
        self.broken = 0
        self.takes_s = 0.0
        self.looks = 0
        self.busy = False
        self.engines = [EngineInfo("e", "openai", "ready")]
        self.told: list[Health] = []

    def examine(self) -> Vitals:
        self.looks += 1
        self.now += self.takes_s
        if self.broken:
            self.broken -= 1
            raise RuntimeError("no such sensor")
        return Vitals(at=self.now, memory_used_bytes=next(self.memory_percents, 10), memory_bytes=100)

    def watch(self) -> VitalsWatch:
        return VitalsWatch(
            self.examine,
            engines=lambda: self.engines,
            latency_ms=lambda: 7.0,
            busy=lambda: self.busy,
            on_health=self.told.append,
            now=lambda: self.now,
            wall=lambda: self.now,
        )


@asynccontextmanager
async def watching(machine: Machine) -> AsyncIterator[VitalsWatch]:
    watch = machine.watch()
    watch.start()
    try:
        yield watch
    finally:
        await watch.close()
        await watch.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.005)


class Pauses:
    """Stands for the timer: every pause ends at once, and is written down."""

    def __init__(self, machine: Machine, count: int) -> None:
        self.machine = machine
        self.left = count
        self.asked: list[float] = []

    @asynccontextmanager
    async def timeout(self, delay_s: float) -> AsyncIterator[None]:
        self.asked.append(delay_s)
        self.left -= 1
        if self.left > 0:
            self.machine.now += delay_s
            raise TimeoutError
        yield


async def test_the_interval_counts_the_time_that_a_look_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    machine.takes_s = 3.0
    pauses = Pauses(machine, 3)
    monkeypatch.setattr(vitals.asyncio, "timeout", pauses.timeout)  # type: ignore[attr-defined]
    async with watching(machine):
        while pauses.left:
            await asyncio.sleep(0)
    assert pauses.asked == [7.0, 7.0, 7.0]


async def test_a_look_that_takes_longer_than_the_interval_is_followed_by_the_next() -> None:
    machine = Machine()
    machine.takes_s = 11.0
    async with watching(machine):
        await until(lambda: machine.looks >= 3)


async def test_the_watch_survives_any_error(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    machine.takes_s, machine.broken = 11.0, 2
    async with watching(machine) as watch:
        await until(lambda: len(watch.history) >= 1)
    assert [record.levelname for record in caplog.records].count("ERROR") == 2


async def test_work_that_begins_makes_the_next_look_come_sooner() -> None:
    machine = Machine()
    async with watching(machine) as watch:
        await until(lambda: machine.looks == 1)
        machine.now += 6.0  # of the ten to the next look; at work it is five
        machine.busy = True
        watch.worked()
        await until(lambda: machine.looks == 2)


async def test_history_is_bounded_by_number_and_by_age() -> None:
    machine = Machine()
    machine.takes_s = 10.0  # each look is late for the next
    async with watching(machine) as watch:
        await until(lambda: machine.looks > HISTORY + 5)
    history = watch.history
    assert len(history) == HISTORY
    assert [look.vitals.at for look in history] == [history[-1].vitals.at - 10.0 * n for n in reversed(range(HISTORY))]
    machine.now = history[-1].vitals.at + HISTORY_S - 15.0
    assert watch.history == history[-2:]


async def test_who_asks_often_gets_the_same_look_and_fills_no_history() -> None:
    machine = Machine()
    watch = machine.watch()
    first = await watch.look()
    machine.now += FRESH_S / 2
    assert await watch.look() is first
    machine.now += FRESH_S
    assert (await watch.look()).vitals.at == machine.now
    assert (machine.looks, watch.history) == (2, ())


async def test_a_look_knows_engines_and_latency_and_what_they_mean() -> None:
    machine = Machine()
    machine.engines = [EngineInfo("a", "openai", "ready"), EngineInfo("b", "openai", "down")]
    look = await machine.watch().look()
    assert (look.vitals.engines_ready, look.vitals.engines_down, look.vitals.latency_ms) == (1, 1, 7.0)
    assert [alert.message for alert in look.alerts] == ["50 % of the engines are down"]


async def test_only_news_is_told_and_a_change_of_state_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    machine.memory_percents = iter([10, 12, 80, 97, 97, 97, 20, 20, 20, 20])
    watch = machine.watch()
    with caplog.at_level("INFO"):
        for _ in range(10):
            machine.now += 10.0
            await watch.look()
    assert machine.told == [Health(100), Health(60, ("memory!",)), Health(100)]
    assert [record.getMessage() for record in caplog.records] == [
        "this node is degraded (60 of 100): 97 % of the memory is in use",
        "this node is healthy (100 of 100)",
    ]


async def test_those_who_ask_at_once_share_a_look() -> None:
    machine = Machine()
    watch = machine.watch()
    looks = await asyncio.gather(watch.look(), watch.look(), watch.look())
    assert looks[0] is looks[1] is looks[2]
    assert machine.looks == 1
