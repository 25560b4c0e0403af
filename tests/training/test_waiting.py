"""A run waits while it is paused or the machine is too hot, ends typed when it stands still or stays too hot, and
begins smaller after a kill for its memory. Real workers where it matters what is put together with what."""

from __future__ import annotations

import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
from benchmarks.training.workers import (
    events,
    losses,
    plan_run,
    run_to_end,
    wait_for,
    weights_digest,
    worker,
    write_texts,
)
from tests.tiny_model import build_folder
from tests.training.assembled import assembled
from tests.training.runs import digest_of

from tiermesh.kernel.training import __main__, watchdog
from tiermesh.kernel.training.events import Events
from tiermesh.kernel.training.orders import Orders
from tiermesh.kernel.training.watchdog import COOL_C, HOT_C, HOT_LOOKS, Watchdog
from tiermesh.protocol.run_folder import DONE, FAILED
from tiermesh.protocol.training_events import (
    Continued,
    Failed,
    Paused,
    Phase,
    Planned,
    StepDone,
    TrainingEvent,
)

STEPS = 8
FIELDS: dict[str, Any] = {
    "seq_len": 64,
    "micro_batch_size": 4,
    "max_steps": STEPS,
    "num_epochs": 100,
    "save_interval": 2,
    "precision": "fp32",
    "learning_rate": 1e-2,
    "lora": {"dropout": 0.0},
    "guard": {"spike_z": None},
}
DEADLINE_S = 200.0
"""For what takes five seconds on a machine with nothing else to do."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("data") / "data.jsonl", 60)


def order_of(told: Sequence[TrainingEvent]) -> list[tuple[str, int]]:
    """Steps and pauses, as they came."""
    return [(event.event, event.step) for event in told if isinstance(event, StepDone | Paused | Continued)]


def steps(first: int) -> list[tuple[str, int]]:
    return [("step", step) for step in range(first, STEPS + 1)]


@pytest.mark.slow
def test_a_paused_worker_takes_no_step_until_it_may_and_ends_the_same(tmp_path: Path, model: Path, data: Path) -> None:
    """Paused by its file, then by a signal; meanwhile another one comes from its beginning to its end."""
    calm = plan_run(tmp_path / "calm", model, data, **FIELDS)
    folder = plan_run(tmp_path / "run", model, data, **FIELDS)
    pause = folder.path / "pause"
    pause.touch()
    with worker(folder) as child:
        assert wait_for(lambda: ("paused", 1) in order_of(events(folder)), child, DEADLINE_S)
        child.send_signal(signal.SIGUSR1)
        pause.unlink()
        run_to_end(calm)
        assert order_of(events(folder)) == [("step", 1), ("paused", 1)]
        child.send_signal(signal.SIGUSR2)
        assert child.wait(DEADLINE_S) == DONE, folder.log.read_text()
    assert order_of(events(folder)) == [("step", 1), ("paused", 1), ("continued", 1), *steps(2)]
    (paused,) = [event for event in events(folder) if isinstance(event, Paused)]
    assert paused.reason == "somebody asked for it"
    assert losses(folder) == losses(calm)
    assert weights_digest(folder) == weights_digest(calm)


class TestHeat:
    @pytest.fixture(autouse=True)
    def _looks_at_each_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(watchdog, "HEAT_LOOK_S", 0.0)

    def temperatures(self, monkeypatch: pytest.MonkeyPatch, *celsius: float) -> None:
        """What is read, one after the other; the last one for ever."""
        read: Iterator[float] = chain(celsius, repeat(celsius[-1]))
        monkeypatch.setattr(watchdog, "temperatures", lambda: {"cpu": next(read)})

    def test_a_hot_run_rests_and_ends_the_same(
        self, tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cool, hot = COOL_C["cpu"], HOT_C["cpu"]
        self.temperatures(monkeypatch, cool)
        with assembled(plan_run(tmp_path / "calm", model, data, **FIELDS)) as (calm, told):
            assert calm.go() == "done"
            assert order_of(told) == steps(1)
        self.temperatures(monkeypatch, cool, *[hot] * HOT_LOOKS, cool + 1, cool)
        with assembled(plan_run(tmp_path / "run", model, data, **FIELDS)) as (run, told):
            assert run.go() == "done"
        at = 1 + HOT_LOOKS
        assert order_of(told) == [*steps(1)[:at], ("paused", at), ("continued", at), *steps(at + 1)]
        assert [event.reason for event in told if isinstance(event, Paused)] == ["the machine is too hot"]
        assert digest_of(run) == digest_of(calm)

    def test_one_that_stays_too_hot_fails_typed(
        self, tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watchdog, "TOO_LONG_S", 0.0)
        self.temperatures(monkeypatch, HOT_C["cpu"])
        folder = plan_run(tmp_path / "run", model, data, **FIELDS)
        assert __main__._run(folder, Orders(folder.path), OPTIONS) == FAILED
        failed = events(folder)[-1]
        assert isinstance(failed, Failed)
        assert failed.kind == "overheated"
        assert order_of(events(folder)) == [*steps(1)[:HOT_LOOKS], ("paused", HOT_LOOKS)]


class Options(Namespace):
    """Of a worker that is told nothing else."""

    def __getattr__(self, name: str) -> None:
        return None


OPTIONS = Options(threads=1, tighten=0)

STALLING = """
import threading
from tiermesh.kernel.training import __main__, watchdog
from tiermesh.kernel.training.run import Run

take_step, watchdog.LOOK_S = Run._take_step, 0.05

def hangs_in_a_library(run):
    if run.progress.step == 4:
        watchdog.MIN_STALL_S = watchdog.STALL_TIMES = 0
        threading.Event().wait()
    return take_step(run)

Run._take_step = hangs_in_a_library
__main__.main()
"""
"""A worker whose fifth step never ends, and whose patience ends then."""


@pytest.mark.slow
def test_a_worker_that_stands_still_ends_typed_and_says_where(tmp_path: Path, model: Path, data: Path) -> None:
    folder = plan_run(tmp_path / "run", model, data, **FIELDS)
    command = [sys.executable, "-c", STALLING, str(folder.path), "--threads", "1"]
    with (
        folder.log.open("ab") as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log) as child,
    ):
        try:
            assert child.wait(DEADLINE_S) == FAILED, folder.log.read_text()
        finally:
            child.kill()
    failed = events(folder)[-1]
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.advice != "") == ("stalled", True)
    assert failed.crash is not None
    assert "hangs_in_a_library" in (folder.crash / failed.crash / "stack.txt").read_text()
    assert (folder.checkpoints / "step-00000004").is_dir()
    assert order_of(events(folder)) == steps(1)[:4]


def test_the_watchdog_hears_of_each_micro_batch_and_all_events(
    tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    class Listening(Watchdog):
        def start(self) -> None:
            seen.append("start")

        def end(self) -> None:
            seen.append("end")

        def alive(self) -> None:
            seen.append("alive")

        def hear(self, event: TrainingEvent) -> None:
            seen.append(
                f"result {event.state}" if isinstance(event, Phase) and event.phase == "result" else event.event
            )

    monkeypatch.setattr(watchdog, "Watchdog", Listening)
    fields = FIELDS | {"micro_batch_size": 1, "gradient_accumulation_steps": 4}
    folder = plan_run(tmp_path / "run", model, data, **fields)
    told = Events(folder.events)
    try:
        assert __main__._work(folder, Orders(folder.path), OPTIONS, told) == DONE
    finally:
        told.close()
    at = [index for index, what in enumerate(seen) if what == "step"]
    assert len(at) == STEPS
    assert all(seen[before:after].count("alive") >= 4 for before, after in zip([0, *at], at, strict=False))
    assert seen.index("start") < at[0]
    assert at[-1] < seen.index("end") < seen.index("result started"), "what follows the steps has no usual time"


@pytest.mark.slow
def test_a_worker_that_is_told_to_take_less_has_the_same_effective_batch(
    tmp_path: Path, model: Path, data: Path
) -> None:
    """Told twice, for two kills in a row."""
    with assembled(plan_run(tmp_path / "calm", model, data, **FIELDS)) as (calm, told):
        assert calm.go() == "done"
        (plain,) = [event for event in told if isinstance(event, Planned)]
    folder = plan_run(tmp_path / "run", model, data, **FIELDS)
    run_to_end(folder, "--tighten", "--tighten")
    (tight,) = [event for event in events(folder) if isinstance(event, Planned)]
    assert (plain.micro_batch_size, tight.micro_batch_size) == (4, 1)
    assert plain.model_copy(update={"at": tight.at, "micro_batch_size": 1}) == tight
    last = [event for event in events(folder) if isinstance(event, StepDone)][-1]
    assert (last.step, last.tokens) == (STEPS, calm.progress.tokens)
    assert last.loss == pytest.approx(calm.progress.loss, abs=1e-3)
