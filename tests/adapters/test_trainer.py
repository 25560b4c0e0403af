"""A training worker, from outside: followed, stopped, told apart, started again."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.training_fake import PROGRAM, starts, write_script

from tiermesh.adapters import death_report, process_memory, trainer
from tiermesh.adapters.run_events import EventTail, add_event
from tiermesh.adapters.trainer import Ending, Launch, Mode, Trainer
from tiermesh.core.worker_death import cgroup_name
from tiermesh.errors import RunBusy
from tiermesh.protocol.run_folder import RunFolder
from tiermesh.protocol.training_events import TrainingEvent, Warned

STEP = {"event": "step", "step": 7, "steps": 9, "epoch": 0.5, "loss": 1.0, "learning_rate": 1e-4}
COMPLETED = {"event": "completed", "step": 9, "result": "result"}
FAILED = {"event": "failed", "kind": "bad_data", "message": "12 records are bad"}
STOPPED = {"event": "stopped", "step": 7, "checkpoint": "step-00000007"}
TRAINING = {"event": "phase", "phase": "train", "state": "started"}


class Watched:
    """A trainer on a scripted worker, and what it told."""

    def __init__(self, folder: Path, **launch: Any) -> None:
        self.run_folder = RunFolder(folder)
        self.told: list[TrainingEvent] = []
        self.trainer = Trainer(Launch(folder=self.run_folder, program=PROGRAM, threads=1, **launch), self.told.append)

    async def run(self) -> Ending:
        return await asyncio.wait_for(self.trainer.run(), 30)

    async def until(self, name: str) -> None:
        async with asyncio.timeout(30):
            while name not in self.names():
                await asyncio.sleep(0.01)

    def names(self) -> list[str]:
        return [event.event for event in self.told]

    def recorded(self) -> list[str]:
        return [event.event for event in EventTail(self.run_folder.events, from_start=True).read()]


@pytest.fixture
def run(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "run")


ENDINGS: list[tuple[str, list[dict[str, Any]], str, str]] = [
    ("done", [{"say": STEP}, {"say": COMPLETED}], "done", "done after 9 steps"),
    ("typed failure", [{"say": FAILED}, {"exit": 3}], "failed", "12 records are bad"),
    ("stopped", [{"say": STOPPED}, {"exit": 75}], "stopped", "stopped after step 7"),
    ("success without a word", [], "crashed", "exit 0"),
    ("failure without a word", [{"print": "no such file"}, {"exit": 3}], "crashed", "exit 3): no such file"),
    ("uncaught", [{"print": "KeyError: 3"}, {"exit": 1}], "crashed", "exit 1): KeyError: 3"),
    ("segmentation fault", [{"signal": signal.SIGSEGV}], "crashed", "signal 11"),
    ("killed", [{"signal": signal.SIGKILL}], "killed", "somebody killed the worker"),
]


@pytest.mark.parametrize(("script", "how", "reason"), [row[1:] for row in ENDINGS], ids=[row[0] for row in ENDINGS])
async def test_endings_are_told_apart(run: Watched, script: list[dict[str, Any]], how: str, reason: str) -> None:
    write_script(run.run_folder.path, script)
    ending = await run.run()
    assert (ending.how, reason in ending.reason) == (how, True), ending
    assert len(starts(run.run_folder.path)) == 1
    assert run.recorded() == run.names()
    assert run.names()[-1] in ("completed", "failed", "stopped")


async def test_what_a_killed_worker_could_not_say_is_added(run: Watched) -> None:
    write_script(run.run_folder.path, [{"say": TRAINING}, {"say": STEP}, {"tear": '{"event":"st'}, {"signal": 9}])
    await run.run()
    assert run.recorded() == ["phase", "step", "phase", "failed"]
    assert run.told[-2].model_dump()["state"] == "interrupted"
    failed = run.told[-1].model_dump()
    assert failed["step"] == 7
    place = run.run_folder.crash / failed["crash"]
    report = json.loads((place / "report.json").read_text())
    assert (report["kind"], report["returncode"]) == ("killed", -9)
    assert "interrupted" in (place / "events.jsonl").read_text().splitlines()[-1]
    assert (place / "worker.log").exists()


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, "disk_full"), (errno.EDQUOT, "disk_full"), (errno.EIO, None)]
)
async def test_a_disk_that_is_full_is_the_failure_where_nobody_could_write_it_down(
    run: Watched, monkeypatch: pytest.MonkeyPatch, number: int, kind: str | None
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tiermesh.adapters.trainer.add_event", refuse)
    write_script(run.run_folder.path, [{"say": STEP}, {"exit": 1}])
    if kind is None:
        with pytest.raises(OSError, match=os.strerror(number)):
            await run.run()
        return
    ending = await run.run()
    assert (ending.how, run.names()[-1]) == ("failed", "failed")
    told = run.told[-1].model_dump()
    assert (told["kind"], told["step"]) == (kind, 7)
    assert "no space is left" in ending.reason
    assert "free some space" in told["advice"]


async def test_reports_of_deaths_are_bounded(run: Watched) -> None:
    write_script(run.run_folder.path, [{"signal": 9}])
    for _ in range(death_report.KEPT + 2):
        await run.run()
    assert len(list(run.run_folder.crash.iterdir())) == death_report.KEPT


async def test_a_kill_for_memory_starts_it_again_with_less(run: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_memory.MemoryWatch, "system_kills", lambda _: 1)
    write_script(run.run_folder.path, [{"say": STEP}, {"signal": 9}], [{"say": COMPLETED}])
    assert (await run.run()).how == "done"
    assert run.names() == ["step", "restarted", "completed"]
    first, second = starts(run.run_folder.path)
    assert second == [*first, "--tighten"]


async def test_kills_for_memory_are_forgiven_so_often(run: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_memory.MemoryWatch, "system_kills", lambda _: 1)
    write_script(run.run_folder.path, [{"signal": 9}])
    assert (await run.run()).how == "out_of_memory"
    told = [arguments.count("--tighten") for arguments in starts(run.run_folder.path)]
    assert told == list(range(trainer.MAX_RESTARTS + 1))
    assert run.told[-1].model_dump()["kind"] == "out_of_memory"


@pytest.mark.parametrize("mode", ["estimate", "evaluate", "evaluate_best"])
async def test_an_estimate_is_not_started_again(tmp_path: Path, mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_memory.MemoryWatch, "system_kills", lambda _: 1)
    run = Watched(tmp_path, mode=mode)
    write_script(tmp_path, [{"signal": 9}])
    assert (await run.run()).how == "out_of_memory"
    asked = [f"--{word}" for word in mode.split("_")]
    assert [[one for one in asked if one in arguments] for arguments in starts(tmp_path)] == [asked]


@pytest.mark.parametrize("made", [True, False])
async def test_the_cgroup_of_a_worker_goes_with_it(
    run: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, made: bool
) -> None:
    """An empty folder here; the kernel lets one go whose processes have ended."""
    cgroups = tmp_path / "cgroups"
    cgroups.mkdir()
    monkeypatch.setenv("TIERMESH_CGROUP", str(cgroups))
    write_script(run.run_folder.path, [{"say": STEP}, {"until_told": True}, {"say": STOPPED}, {"exit": 75}])
    ending = asyncio.create_task(run.run())
    await run.until("step")
    process = run.trainer._process
    assert process is not None
    if made:
        (cgroups / cgroup_name(process.pid)).mkdir()
    (cgroups / "another").mkdir()
    run.trainer.stop()
    assert (await ending).how == "stopped"
    assert [path.name for path in cgroups.iterdir()] == ["another"]


async def test_asked_to_stop_it_saves_first(run: Watched) -> None:
    write_script(run.run_folder.path, [{"say": STEP}, {"until_told": True}, {"say": STOPPED}, {"exit": 75}])
    ending = asyncio.create_task(run.run())
    await run.until("step")
    run.trainer.stop()
    assert (await ending).how == "stopped"
    assert run.names() == ["step", "stopped"]


async def test_one_that_does_not_stop_is_killed(run: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "STOP_GRACE_S", 0.2)
    write_script(run.run_folder.path, [{"say": STEP}, {"until": "never"}])
    ending = asyncio.create_task(run.run())
    await run.until("step")
    run.trainer.stop()
    assert (await ending).how == "stopped"
    assert run.names() == ["step", "stopped"]


async def test_two_never_train_in_one_folder(run: Watched) -> None:
    write_script(run.run_folder.path, [{"say": STEP}, {"until_told": True}, {"say": STOPPED}, {"exit": 75}])
    first = asyncio.create_task(run.run())
    await run.until("step")
    with pytest.raises(RunBusy, match="trains here already"):
        await Watched(run.run_folder.path).run()
    run.trainer.stop()
    await first
    write_script(run.run_folder.path, [{"say": COMPLETED}])
    assert (await Watched(run.run_folder.path).run()).how == "done"


async def test_cancelled_it_leaves_no_worker(run: Watched) -> None:
    write_script(run.run_folder.path, [{"say": STEP}, {"until": "never"}])
    task = asyncio.create_task(run.run())
    await run.until("step")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    write_script(run.run_folder.path, [{"say": COMPLETED}])
    assert (await Watched(run.run_folder.path).run()).how == "done"  # the lock is free


def test_events_are_read_as_they_come_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event":"warned","message":"old"}\n')
    tail, whole = EventTail(path), EventTail(path, from_start=True)
    with path.open("ab", buffering=0) as file:
        file.write(b'{"event":"warned","mes')
        assert list(tail.read()) == []
        file.write(b'sage":"new"}\nnot json\n{"event":"of a later version"}\n')
    assert [event.model_dump()["message"] for event in tail.read()] == ["new"]
    assert [event.model_dump()["message"] for event in whole.read()] == ["old", "new"]
    path.write_bytes(path.read_bytes() + b"half a li")
    add_event(path, Warned(message="added"))
    assert [event.model_dump()["message"] for event in tail.read()] == ["added"]
    assert list(EventTail(tmp_path / "nothing").read()) == []
