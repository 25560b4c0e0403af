"""Children: they end when told, when we die, and when they were left behind; their logs stay small."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tests.processes import is_gone

from tiermesh.adapters import process as adapter
from tiermesh.adapters.process import Process, ProcessRecord, is_alive, reap

SLEEP = "import time; print('up', flush=True); time.sleep(600)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {DEAF!r}]); {DEAF}"


async def spawn(code: str, tmp_path: Path) -> Process:
    return await Process.spawn([sys.executable, "-c", code], log=tmp_path / "log")


def sizes_in(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()}


async def eventually(condition: Callable[[], bool], limit_s: float = 10.0) -> None:
    async with asyncio.timeout(limit_s):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


async def test_it_is_told_to_end_and_given_time(tmp_path: Path) -> None:
    code = (
        "import signal, sys; signal.signal(15, lambda *_: (print('bye'), sys.exit(7)))\n"
        "print('up', flush=True); signal.pause()"
    )
    child = await spawn(code, tmp_path)
    await eventually(lambda: child.last_words == "up")
    assert await child.terminate(10.0) == 7
    assert (tmp_path / "log").read_text() == "up\nbye\n"


async def test_one_that_does_not_listen_is_killed_with_all_it_started(tmp_path: Path) -> None:
    child = await spawn(PARENT, tmp_path)
    await eventually(lambda: (tmp_path / "log").exists() and (tmp_path / "log").read_text().count("up") == 2)
    grandchildren = psutil.Process(child.pid).children()
    assert await child.terminate(0.1) == -signal.SIGKILL
    await eventually(lambda: all(map(is_gone, grandchildren)))


async def test_ending_twice_is_ending_once(tmp_path: Path) -> None:
    child = await spawn(SLEEP, tmp_path)
    await child.terminate(5.0)
    assert await child.terminate(5.0) == -signal.SIGTERM


async def test_one_that_ended_by_itself_tells_how_and_its_last_words(tmp_path: Path) -> None:
    child = await spawn("import sys; print('a'); print('out of memory\\n', file=sys.stderr); sys.exit(3)", tmp_path)
    assert await child.wait() == 3
    assert child.last_words == "out of memory"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
async def test_a_full_disk_loses_the_log_and_not_the_child(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/dev/full")
    child = await spawn("for n in range(9): print('line', n, flush=True)\nraise SystemExit(3)", tmp_path)
    assert await child.wait() == 3
    assert child.last_words == "line 8"


def test_on_the_loop_that_the_daemon_runs_on_too(tmp_path: Path) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def scenario() -> None:
        child = await spawn(PARENT, tmp_path)
        await eventually(lambda: (tmp_path / "log").exists() and (tmp_path / "log").read_text().count("up") == 2)
        assert os.getpgid(child.pid) == child.pid
        assert await child.terminate(0.1) == -signal.SIGKILL

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


async def test_a_program_that_does_not_exist_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no-such-program"):
        await Process.spawn(["/no-such-program"], log=tmp_path / "log")


async def test_the_environment_is_ours_and_more(tmp_path: Path) -> None:
    code = "import os; print(os.environ['EXTRA'], 'PATH' in os.environ)"
    child = await Process.spawn([sys.executable, "-c", code], log=tmp_path / "log", env={"EXTRA": "more"})
    await child.wait()
    assert child.last_words == "more True"


async def test_a_log_never_grows_past_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "LOG_BYTES", 10_000)
    monkeypatch.setattr(adapter, "READ_BYTES", 1000)
    child = await spawn("for i in range(5000): print('line', i)", tmp_path)
    await child.wait()
    sizes = sizes_in(tmp_path)
    assert set(sizes) == {"log", "log.1"}
    assert max(sizes.values()) <= 10_000
    assert child.last_words == "line 4999"


async def test_its_standard_input_ends_when_we_do(tmp_path: Path) -> None:
    """The parent is a real process that dies by SIGKILL."""
    middle = (
        "import asyncio, sys; from pathlib import Path; from tiermesh.adapters.process import Process\n"
        "async def main():\n"
        "    code = 'import os; os.read(0, 1)'\n"
        f"    child = await Process.spawn([sys.executable, '-c', code], log=Path({str(tmp_path / 'inner')!r}))\n"
        "    print(child.pid, flush=True); await asyncio.sleep(600)\n"
        "asyncio.run(main())"
    )
    parent = await spawn(middle, tmp_path)
    await eventually(lambda: parent.last_words != "")
    grandchild = psutil.Process(int(parent.last_words))
    parent.kill()
    await parent.wait()
    await eventually(lambda: is_gone(grandchild), 5.0)


async def test_what_an_earlier_daemon_left_behind_is_killed(tmp_path: Path) -> None:
    child = await spawn(DEAF, tmp_path)
    assert is_alive(child.record)
    assert reap([child.record]) == [child.pid]
    assert await child.wait() == -signal.SIGKILL
    assert not is_alive(child.record)
    assert reap([child.record]) == []


async def test_another_process_with_the_same_pid_is_left_alone(tmp_path: Path) -> None:
    child = await spawn(SLEEP, tmp_path)
    assert reap([ProcessRecord(child.pid, child.record.started - 60.0)]) == []
    assert child.returncode is None
    await child.terminate(5.0)


def test_a_process_names_itself_by_its_start() -> None:
    assert is_alive(ProcessRecord(os.getpid(), psutil.Process().create_time()))
    assert not is_alive(ProcessRecord(os.getpid(), time.time() + 60))
