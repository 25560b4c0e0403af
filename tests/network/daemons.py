"""Real daemons as processes: started, killed, frozen, by their own pid."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from tests.network.disk import Disk
from tests.network.poll import Seat

LOG_TAIL_CHARS = 6000
EXIT_S = 10.0
PROGRAM = Path(sys.executable).parent / "mesh"


class Daemon:
    """One `mesh up`. Its state folder and its configuration outlive its processes."""

    def __init__(
        self,
        seat: Seat,
        folder: Path,
        *,
        cluster: str,
        name: str | None,
        interface: str | None,
        token: str | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.seat = seat
        self.folder = folder
        self.state_dir = folder / "state"
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self._disk: Disk | None = None
        self._cluster = cluster
        self._name = name
        self._interface = interface
        self._token = token

    def configure(self, config: Mapping[str, Any]) -> None:
        """Replace the configuration file; the next start reads it. (JSON is YAML.)"""
        (self.folder / "cluster.yaml").write_text(json.dumps(config))

    def live_on(self, disk: Disk) -> None:
        """Its state folder is this disk's place from now on, or from when the disk was mounted anew."""
        assert disk.place == self.folder / "state"
        self._disk = disk
        self.state_dir = disk.seen(disk.place)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self, *flags: str) -> None:
        """Start it; it becomes ready later. `flags` hold for this start only."""
        assert not self.running
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*_prefix(self.seat.namespace), *(self._disk.prefix if self._disk else ()), *self._arguments(), *flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=self._environment(),
                # Linux schedules sessions as equals (autogroup): niced work is niced among those of its own session.
                process_group=0,
            )

    def kill(self, *, reap: bool = True) -> None:
        """SIGKILL. Without `reap` it returns at once, and `wait` is owed."""
        self._signal(signal.SIGKILL)
        if reap:
            self.wait()

    def terminate(self) -> None:
        """SIGTERM; `wait` tells how it went."""
        self._signal(signal.SIGTERM)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def wait(self, within_s: float = EXIT_S) -> int:
        """Its exit code."""
        assert self.process is not None
        return self.process.wait(within_s)

    def descendants(self) -> list[psutil.Process]:
        """The processes that it started, and theirs."""
        return psutil.Process(self.pid).children(recursive=True)

    def cpu_s(self) -> float:
        """Processor time used so far, user and system, with that of its children that live."""
        mine = psutil.Process(self.pid)
        return sum(sum(process.cpu_times()[:2]) for process in (mine, *mine.children(recursive=True)))

    def memory_bytes(self) -> int:
        """Resident memory of the daemon alone."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            os.kill(self.process.pid, number)

    def _arguments(self) -> list[str]:
        named = () if self._name is None else ("--name", self._name)
        bound = () if self._interface is None else ("--interface", self._interface)
        return [
            *(
                str(PROGRAM),
                "up",
                "--state-dir",
                str(self.folder / "state"),
                "--config",
                str(self.folder / "cluster.yaml"),
            ),
            *("--cluster", self._cluster, *named, "--port", str(self.seat.port), *bound),
        ]

    def _environment(self) -> dict[str, str]:
        mine = {key: value for key, value in os.environ.items() if not key.startswith("MESH_")}
        return mine | ({"MESH_TOKEN": self._token} if self._token else {}) | {"PYTHONUNBUFFERED": "1"}


def _prefix(namespace: str | None) -> list[str]:
    """Into the namespace; and never to outlive whoever runs the test. Both replace themselves: the pid stays."""
    dying = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    return dying + ([] if namespace is None else ["ip", "netns", "exec", namespace])
