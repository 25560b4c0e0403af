"""Daemons of a mesh of their own, on loopback, each in a process that can be killed, frozen and started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

START_LIMIT_S = 200.0
"""A model of some hundred megabytes is loaded in a tenth of it on a machine with nothing else to do."""
ANSWER_LIMIT_S = 5.0
"""For a question about the mesh; who is frozen does not answer at all."""
POLL_S = 0.02
WORKER = "tiermesh.kernel.inference"


@dataclass(slots=True)
class Machine:
    """One daemon, through all of its lives. `deaths` are the times, monotonic, in which there was none."""

    name: str
    folder: Path
    cluster: str
    options: tuple[str, ...]
    url: str = ""
    deaths: list[tuple[float, float]] = field(default_factory=list)
    _process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it, and wait until it answers. Raises `RuntimeError` with its last words."""
        note = self.folder / self.name / "runtime.json"
        note.unlink(missing_ok=True)
        env = {key: value for key, value in os.environ.items() if not key.startswith("MESH_")}
        command = [sys.executable, "-m", "tiermesh.cli.main", "up", "--name", self.name, "--cluster", self.cluster]
        command += ["--port", "0", "--interface", "127.0.0.1", "--no-detect"]
        command += ["--state-dir", str(self.folder / self.name), *self.options]
        with self.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(*command, cwd=self.folder, env=env, stdout=log, stderr=log)
        self._process = process
        await until(lambda: note.exists() or process.returncode is not None, START_LIMIT_S)
        if process.returncode is not None:
            raise RuntimeError(f"{self.name} did not start: {self.log.read_text()[-2000:]}")
        self.url = json.loads(note.read_text())["url"]
        if self.deaths:
            self.deaths[-1] = (self.deaths[-1][0], time.monotonic())

    @property
    def log(self) -> Path:
        """What it printed, in all of its lives."""
        return self.folder / f"{self.name}.log"

    @property
    def alive(self) -> bool:
        """Is there a process?"""
        return self._process is not None and self._process.returncode is None

    async def kill(self) -> None:
        """As a pulled plug does."""
        if self.alive:
            self.deaths.append((time.monotonic(), float("inf")))
            self._signal(signal.SIGKILL)
            await self._running.wait()

    def freeze(self) -> None:
        """It is there, and says nothing; its worker goes on until it has to wait for it."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on as if nothing had been."""
        self._signal(signal.SIGCONT)

    def family(self) -> set[int]:
        """The process and all below it."""
        with contextlib.suppress(psutil.Error):
            me = psutil.Process(self._running.pid)
            return {me.pid, *(child.pid for child in me.children(recursive=True))}
        return set()

    def worker(self) -> psutil.Process | None:
        """Its kernel's process, if there is one now."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self._running.pid).children(recursive=True):
                if WORKER in child.cmdline():
                    return child
        return None

    @property
    def _running(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "started"
        return self._process

    def _signal(self, number: signal.Signals) -> None:
        if self.alive:
            self._running.send_signal(number)


@asynccontextmanager
async def started(folder: Path, machines: Mapping[str, Sequence[str]]) -> AsyncIterator[dict[str, Machine]]:
    """A mesh of these machines, by name with their options of `mesh up`. The first one, started before all others,
    leads it. All are killed in the end."""
    cluster = f"failover-{secrets.token_hex(4)}"
    made = {name: Machine(name, folder, cluster, tuple(options)) for name, options in machines.items()}
    first, *others = made.values()
    try:
        await first.start()
        await asyncio.gather(*(machine.start() for machine in others))
        yield made
    finally:
        await asyncio.gather(*(machine.kill() for machine in made.values()))


async def until(condition: Callable[[], bool | Awaitable[bool]], limit_s: float = START_LIMIT_S) -> None:
    """Wait for a condition. Raises `TimeoutError`."""
    async with asyncio.timeout(limit_s):
        while True:
            met = condition()
            if met if isinstance(met, bool) else await met:
                return
            await asyncio.sleep(POLL_S)


async def cluster_of(http: aiohttp.ClientSession, machine: Machine) -> dict[str, Any]:
    """The mesh as this machine sees it; empty when it does not say."""
    limit = aiohttp.ClientTimeout(total=ANSWER_LIMIT_S)
    with contextlib.suppress(aiohttp.ClientError, OSError, ValueError, TimeoutError):
        async with http.get(f"{machine.url}/api/cluster", timeout=limit) as response:
            report: dict[str, Any] = await response.json()
            return report
    return {}


async def coordinator_of(http: aiohttp.ClientSession, machines: Iterable[Machine]) -> str | None:
    """The name of the node that leads, as most who answer see it; None while nobody does."""
    told = await asyncio.gather(*(cluster_of(http, machine) for machine in machines if machine.alive))
    names = [report["coordinator"]["name"] for report in told if report.get("coordinator")]
    return max(names, key=names.count) if names else None


async def until_well(http: aiohttp.ClientSession, machines: Iterable[Machine], *, warm: Iterable[str] = ()) -> None:
    """Wait until every machine sees all others up, and those named `warm` with their models in memory."""
    everybody, serving = list(machines), set(warm)
    names = {machine.name for machine in everybody}

    async def seen_by(machine: Machine) -> bool:
        nodes = (await cluster_of(http, machine)).get("nodes", ())
        up = {node["name"]: node["models"] for node in nodes if node["state"] == "up"}
        ready = {name for name, models in up.items() if any(model["state"] == "warm" for model in models)}
        return names <= up.keys() and serving <= ready

    async def all_well() -> bool:
        return all([await seen_by(machine) for machine in everybody])

    await until(all_well)
