"""What a worker is told from outside: real signals, to a real process."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tiermesh.kernel.training import orders
from tiermesh.protocol.run_folder import STOPPED

WORKER = """
import sys, time
from pathlib import Path
from tiermesh.kernel import lifeline
from tiermesh.kernel.training.orders import Orders

orders = Orders(Path(sys.argv[1]), grace_s=float(sys.argv[2]))
orders.listen()
lifeline.hold(orders.orphan)
if sys.argv[3] != "loads":
    orders.begin()
print("ready", flush=True)
if sys.argv[3] == "loads":
    time.sleep(600)
was = False
while not orders.stopping:
    if orders.pausing:
        print("paused", flush=True)
        orders.wait_while(lambda: orders.pausing, look_s=0.01)
        print("on", flush=True)
    time.sleep(0.005)
print(orders.reason, flush=True)
if sys.argv[3] == "saves":
    raise SystemExit(75)
while True:
    time.sleep(1)
"""


class Worker:
    def __init__(self, folder: Path, *, grace_s: float = 30.0, ends: str = "saves") -> None:
        command = [sys.executable, "-c", WORKER, str(folder), str(grace_s), ends]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.child.stdout is not None
        return self.child.stdout.readline().strip()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.kill()
        self.child.wait()
        for pipe in (self.child.stdin, self.child.stdout):
            assert pipe is not None
            pipe.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it(tmp_path: Path, number: signal.Signals) -> None:
    with Worker(tmp_path) as worker:
        worker.child.send_signal(number)
        assert worker.line() == number.name
        assert worker.child.wait(10) == STOPPED


def test_the_end_of_standard_input_stops_it(tmp_path: Path) -> None:
    with Worker(tmp_path) as worker:
        assert worker.child.stdin is not None
        worker.child.stdin.close()
        assert worker.line() == "the end of standard input"
        assert worker.child.wait(10) == STOPPED


def test_one_that_does_not_come_to_an_end_is_ended(tmp_path: Path) -> None:
    with Worker(tmp_path, grace_s=0.3, ends="hangs") as worker:
        began = time.monotonic()
        worker.child.terminate()
        assert worker.child.wait(10) == STOPPED
        assert time.monotonic() - began >= 0.3


def test_it_pauses_by_file_and_goes_on(tmp_path: Path) -> None:
    with Worker(tmp_path) as worker:
        (tmp_path / "pause").touch()
        assert worker.line() == "paused"
        (tmp_path / "pause").unlink()
        assert worker.line() == "on"


def test_it_pauses_by_signal_and_goes_on(tmp_path: Path) -> None:
    with Worker(tmp_path) as worker:
        worker.child.send_signal(signal.SIGUSR1)
        assert worker.line() == "paused"
        worker.child.send_signal(signal.SIGUSR2)
        assert worker.line() == "on"


def test_a_paused_one_can_be_stopped(tmp_path: Path) -> None:
    with Worker(tmp_path) as worker:
        (tmp_path / "pause").touch()
        assert worker.line() == "paused"
        worker.child.terminate()
        assert worker.child.wait(10) == STOPPED


PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2], "30", "saves"],
                         stdin=subprocess.PIPE, process_group=0)
child.wait()
"""


def test_a_parent_that_is_killed_takes_it_along(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, WORKER, str(tmp_path)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    parent.kill()
    parent.wait()
    # SIGTERM where the system sends it, the end of standard input elsewhere; whichever is first.
    assert parent.stdout.read().strip() in ("SIGTERM", "the end of standard input")
    parent.stdout.close()


def test_an_orphan_that_still_loads_ends_at_once(tmp_path: Path) -> None:
    """Also one whose parent died before it could look who that was."""
    with Worker(tmp_path, ends="loads") as worker:
        assert worker.child.stdin is not None
        began = time.monotonic()
        worker.child.stdin.close()
        assert worker.child.wait(20) == STOPPED
        assert time.monotonic() < began + 4.0, "before the time that one has that saves"


def test_an_orphan_that_hangs_ends_in_time_whoever_its_parent_was(tmp_path: Path) -> None:
    with Worker(tmp_path, ends="hangs") as worker:
        assert worker.child.stdin is not None
        began = time.monotonic()
        worker.child.stdin.close()
        assert worker.child.wait(20) == STOPPED
        assert time.monotonic() < began + 15.0, "half of the time that it has with a parent"
    assert orders.ORPHAN_GRACE_S + orders.END_LOOK_S < 5, "no orphan after 5 s"
