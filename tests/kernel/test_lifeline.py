"""No worker outlives its daemon: here the daemon is a real process, and dies by SIGKILL."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from tests.kernel.workers import wait_for
from tests.processes import is_gone

from tiermesh.daemon.supervisor import FILE_NAME

DAEMON = """
import asyncio, sys
from pathlib import Path
from tiermesh.adapters.engines.kernel import KernelEngine
from tiermesh.adapters.engines.served_model import Wanted
from tiermesh.daemon.supervisor import Supervisor

async def main():
    folder, model = Path(sys.argv[1]), sys.argv[2]
    supervisor = Supervisor(folder)
    supervisor.start()
    engine = KernelEngine(
        [Wanted(name=model, tier=0, pinned=True)],
        hire=supervisor.worker,
        state_dir=folder,
        on_change=lambda: None,
        threads=1,
    )
    await engine.start()
    while not engine.models or engine.models[0].state != "warm":
        await asyncio.sleep(0.01)
    assert "torch" not in sys.modules
    print("warm", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def start_daemon(folder: Path, model: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", DAEMON, str(folder), str(model)]
    daemon = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert daemon.stdout is not None
    assert daemon.stdout.readline() == b"warm\n"
    return daemon


def end_daemon(daemon: subprocess.Popen[bytes]) -> None:
    assert daemon.stdout is not None
    daemon.kill()
    daemon.wait()
    daemon.stdout.close()


def workers(folder: Path) -> list[psutil.Process]:
    return [psutil.Process(row["pid"]) for row in json.loads((folder / FILE_NAME).read_text())]


@pytest.mark.parametrize("frozen", [False, True], ids=["running", "stopped"])
def test_no_worker_outlives_its_daemon(tiny_folder: Path, tmp_path: Path, frozen: bool) -> None:
    """0 orphans 5 s after a daemon's SIGKILL, even of a worker that can't run its own code; and the next one starts."""
    if frozen and sys.platform != "linux":
        pytest.skip("only Linux kills a stopped process with its parent; elsewhere the next daemon does")
    daemon = start_daemon(tmp_path, tiny_folder)
    (worker,) = workers(tmp_path)
    try:
        if frozen:
            worker.suspend()
        end_daemon(daemon)
        assert wait_for(lambda: is_gone(worker), 5.0)
    finally:
        if not is_gone(worker):
            worker.kill()
    end_daemon(start_daemon(tmp_path, tiny_folder))
