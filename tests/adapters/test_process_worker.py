"""A supervised worker, played by small scripts: started on demand, watched, started again, given up."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tiermesh.adapters import worker as adapter
from tiermesh.adapters.process import Process, ProcessRecord, is_alive, reap
from tiermesh.adapters.worker import Worker, WorkerSpec, WorkerState
from tiermesh.errors import EngineFailed, Unavailable

SERVE = "import pathlib, sys, time; pathlib.Path('up').touch(); time.sleep(600)"
"""`up` in its folder says that it is ready."""


class Stage:
    """A worker in a folder of its own, and everything it reported."""

    def __init__(self, folder: Path, code: str, ready_limit_s: float) -> None:
        self.folder = folder
        self.states: list[WorkerState] = []
        self.records: list[ProcessRecord | None] = []
        spec = WorkerSpec(
            name="the worker",
            argv=[sys.executable, "-c", f"import os; os.chdir({str(folder)!r}); {code}"],
            log=folder / "log",
            is_ready=self._is_ready,
            ready_limit_s=ready_limit_s,
        )
        self.worker = Worker(spec, on_change=self._note, on_record=self.records.append)

    def kill(self) -> None:
        (self.folder / "up").unlink()
        assert self.records[-1] is not None
        assert reap([self.records[-1]])

    async def until(self, condition: Callable[[], bool], limit_s: float = 15.0) -> None:
        async with asyncio.timeout(limit_s):
            while True:
                if condition():
                    return
                await asyncio.sleep(0.01)

    def _note(self) -> None:
        if not self.states or self.states[-1] != self.worker.state:
            self.states.append(self.worker.state)

    async def _is_ready(self) -> bool:
        return (self.folder / "up").exists()


Make = Callable[..., Stage]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    stages: list[Stage] = []

    def _make(code: str, *, ready_limit_s: float = 30.0) -> Stage:
        stages.append(Stage(tmp_path, code, ready_limit_s))
        return stages[-1]

    yield _make
    for stage in stages:
        await stage.worker.close()
        assert not any(record is not None and is_alive(record) for record in stage.records)


async def test_nothing_runs_before_it_is_asked_for(make: Make) -> None:
    stage = make(SERVE)
    assert (stage.worker.state, stage.worker.starts) == ("stopped", 0)
    await stage.worker.ready()
    assert (stage.worker.state, stage.worker.starts) == ("ready", 1)


async def test_all_who_ask_at_once_get_the_same_process(make: Make) -> None:
    stage = make(SERVE)
    await asyncio.gather(*(stage.worker.ready() for _ in range(10)))
    assert stage.worker.starts == 1


async def test_one_that_dies_is_started_again(make: Make) -> None:
    stage = make(SERVE)
    await stage.worker.ready()
    stage.kill()
    await stage.worker.wait_until_lost(10.0)
    assert "signal 9: somebody killed it, or the system did for lack of memory" in stage.worker.failure
    await stage.worker.ready()
    assert (stage.worker.starts, stage.worker.failure) == (2, "")
    assert stage.states == ["starting", "ready", "waiting", "starting", "ready"]


async def test_who_waits_hears_of_a_death_at_the_start_at_once_and_why(make: Make) -> None:
    stage = make("import sys; sys.exit('no such model')")
    with pytest.raises(EngineFailed, match=r"died while it started \(exit 1: no such model\)"):
        await stage.worker.ready()


async def test_it_backs_off_longer_each_time_and_then_gives_up(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "BACKOFF_FIRST_S", 0.001)
    stage = make("raise SystemExit(1)")
    stage.worker.begin()
    await stage.until(lambda: stage.worker.state == "stopped")
    assert stage.worker.starts == adapter.MAX_FAILED_STARTS
    with pytest.raises(EngineFailed):
        await stage.worker.ready()
    assert stage.worker.starts > adapter.MAX_FAILED_STARTS, "somebody who needs it makes it try again"


async def test_after_having_been_ready_it_is_back_soon_however_often_it_dies(make: Make) -> None:
    stage = make(SERVE)
    for _ in range(4):
        await stage.worker.ready()
        stage.kill()
        await stage.worker.wait_until_lost(10.0)
        assert stage.worker._next_start - time.monotonic() <= adapter.BACKOFF_FIRST_S


async def test_a_long_backoff_sends_requests_elsewhere_at_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "BACKOFF_FIRST_S", 20.0)
    stage = make("raise SystemExit(1)")
    stage.worker.begin()
    await stage.until(lambda: stage.worker.state == "waiting")
    with pytest.raises(Unavailable) as refused:
        await stage.worker.ready()
    assert 15.0 < refused.value.retry_after_s <= 20.0


async def test_who_waits_while_it_is_given_up_makes_it_try_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "MAX_FAILED_STARTS", 1)
    monkeypatch.setattr(adapter, "BACKOFF_FIRST_S", 0.9)
    stage = make("raise SystemExit(1)")
    stage.worker.begin()
    await stage.until(lambda: stage.worker.state == "waiting")
    async with asyncio.timeout(15.0):
        with pytest.raises(EngineFailed, match="died while it started"):
            await stage.worker.ready()
    assert stage.worker.starts == 2


async def test_one_that_never_gets_ready_is_ended(make: Make) -> None:
    stage = make("import time; time.sleep(600)", ready_limit_s=0.3)
    with pytest.raises(EngineFailed, match="not ready within"):
        await stage.worker.ready()


async def test_a_program_that_can_not_be_started_is_told(tmp_path: Path) -> None:
    async def never() -> bool:
        return False

    spec = WorkerSpec(name="it", argv=["/no/such/program"], log=tmp_path / "log", is_ready=never)
    worker = Worker(spec, on_change=lambda: None, on_record=lambda _: None)
    with pytest.raises(EngineFailed, match="can't be started"):
        await worker.ready()
    await worker.close()


async def test_closing_ends_it_and_who_waits_is_told(make: Make) -> None:
    stage = make("import time; time.sleep(600)")
    waiting = asyncio.create_task(stage.worker.ready())
    await stage.until(lambda: bool(stage.records))
    await stage.worker.close()
    with pytest.raises(EngineFailed, match="shut down"):
        await waiting
    await stage.worker.close()
    assert stage.worker.state == "closed"
    assert stage.records[-1] is None
    with pytest.raises(EngineFailed):
        await stage.worker.ready()


async def test_a_mistake_of_our_own_fails_those_who_wait_instead_of_keeping_them(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise ValueError("no such option")

    stage = make(SERVE)
    monkeypatch.setattr(Process, "spawn", broken)
    with pytest.raises(EngineFailed, match="can't be run: ValueError: no such option"):
        async with asyncio.timeout(5.0):
            await stage.worker.ready()
    await stage.until(lambda: stage.worker.state == "stopped")
