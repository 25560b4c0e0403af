"""The supervisor remembers its workers beyond its own death."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest

from tiermesh.adapters.process import Process, ProcessRecord, is_alive
from tiermesh.adapters.worker import WorkerSpec
from tiermesh.daemon.supervisor import FILE_NAME, Supervisor


async def yes() -> bool:
    return True


def spec(folder: Path) -> WorkerSpec:
    code = "import time; time.sleep(600)"
    return WorkerSpec(name="it", argv=[sys.executable, "-c", code], log=folder / "log", is_ready=yes)


async def test_it_lists_what_runs_and_ends_all_of_it(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    supervisor.start()
    workers = [supervisor.worker(spec(tmp_path), lambda: None) for _ in range(2)]
    assert json.loads((tmp_path / FILE_NAME).read_text()) == []
    for worker in workers:
        await worker.ready()
    assert len(json.loads((tmp_path / FILE_NAME).read_text())) == 2
    await supervisor.close()
    assert json.loads((tmp_path / FILE_NAME).read_text()) == []
    assert [worker.state for worker in workers] == ["closed", "closed"]
    await supervisor.close()


async def test_who_was_closed_by_those_who_hired_it_is_forgotten(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    for _ in range(3):
        worker = supervisor.worker(spec(tmp_path), lambda: None)
        await worker.ready()
        await worker.close()
    assert len(supervisor._workers) == 1
    assert json.loads((tmp_path / FILE_NAME).read_text()) == []
    await supervisor.close()


async def test_what_an_earlier_daemon_left_is_ended_at_the_start(tmp_path: Path) -> None:
    orphan = await Process.spawn([sys.executable, "-c", "import time; time.sleep(600)"], log=tmp_path / "log")
    record = {"pid": orphan.record.pid, "started": orphan.record.started}
    (tmp_path / FILE_NAME).write_text(json.dumps([record]))
    Supervisor(tmp_path).start()
    assert await orphan.wait() == -signal.SIGKILL
    assert not is_alive(orphan.record)


@pytest.mark.parametrize("damage", ["", "{", "[1]", '[{"pid": 1}]', "null"])
def test_a_damaged_list_is_no_list(tmp_path: Path, damage: str) -> None:
    (tmp_path / FILE_NAME).write_text(damage)
    Supervisor(tmp_path).start()
    assert json.loads((tmp_path / FILE_NAME).read_text()) == []


async def test_workers_that_save_before_they_end_are_given_their_time(tmp_path: Path) -> None:
    code = "import sys, time; print('up', flush=True); sys.stdin.read(); time.sleep(0.3)"
    earlier = Supervisor(tmp_path, "others.json")
    earlier.start()
    saving = await Process.spawn([sys.executable, "-c", code], log=tmp_path / "saving.log")
    deaf = await Process.spawn([sys.executable, "-c", "import time; time.sleep(600)"], log=tmp_path / "deaf.log")
    for process in (saving, deaf):
        earlier.listing()(process.record)
    async with asyncio.timeout(30.0):
        while saving.last_words != "up":
            await asyncio.sleep(0.01)
    assert saving._child.stdin is not None
    saving._child.stdin.close()
    await Supervisor(tmp_path, "others.json").outlast(1.0)
    assert (await saving.wait(), await deaf.wait()) == (0, -signal.SIGKILL)
    assert json.loads((tmp_path / "others.json").read_text()) == []


async def test_what_has_ended_is_taken_off_the_list(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    supervisor.start()
    one, other = supervisor.listing(), supervisor.listing()
    one(ProcessRecord(1, 1.0))
    other(ProcessRecord(2, 2.0))
    one(None)
    assert json.loads((tmp_path / FILE_NAME).read_text()) == [{"pid": 2, "started": 2.0}]


async def test_a_list_that_cannot_be_written_keeps_no_worker_from_running(tmp_path: Path) -> None:
    """A full disk: whoever hired it would lose it."""
    note = Supervisor(tmp_path / "gone").listing()
    note(ProcessRecord(1, 0.0))
    note(None)
