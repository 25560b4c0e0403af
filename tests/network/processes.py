"""Daemons on this machine's loopback, without root: how fast they start, what they cost, what they leave behind."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from tests.network.daemons import PROGRAM
from tests.network.mesh import Mesh

SETTLE_S = 5.0
"""After forming, until the daemons count as idle: the last view is out and the first pauses have begun."""
MODEL_S = 90.0
"""A cold worker loads torch and a model."""


@dataclass(frozen=True, slots=True)
class Idle:
    """One daemon that nobody asks anything: resident memory, and processor time per second."""

    memory_bytes: int
    cpu: float


@dataclass(frozen=True, slots=True)
class Orphans:
    """Processes that a daemon had started before it was killed, and how many of them were left later."""

    children: int
    left: int


def help_s() -> float:
    """How long `mesh --help` takes."""
    began_at = time.monotonic()
    subprocess.run([PROGRAM, "--help"], stdout=subprocess.DEVNULL, check=True, timeout=30)
    return time.monotonic() - began_at


async def ready_s(folder: Path) -> float:
    """From starting `mesh up` to its first answer."""
    async with Mesh(folder, 1, engines=False) as mesh:
        mesh.start()
        answered_at = await mesh.watch.until(lambda pictures: pictures[0] is not None, 30, "the daemon answers")
        return answered_at - mesh.started_at[0]


async def idle(folder: Path, *, nodes: int, for_s: float) -> list[Idle]:
    """A mesh that found itself over mDNS on loopback, left alone; nobody polls it meanwhile."""
    async with Mesh(folder, nodes, engines=False) as mesh:
        await mesh.form()
        mesh.watch.resting = True
        await asyncio.sleep(SETTLE_S)
        before = [daemon.cpu_s() for daemon in mesh.daemons]
        began_at = time.monotonic()
        await asyncio.sleep(for_s)
        took_s = time.monotonic() - began_at
        return [
            Idle(daemon.memory_bytes(), (daemon.cpu_s() - used) / took_s)
            for daemon, used in zip(mesh.daemons, before, strict=True)
        ]


async def orphans(folder: Path, *, after_s: float) -> Orphans:
    """Kill a daemon whose worker answers prompts, and count what is left of what it had started."""
    mark = secrets.token_hex(8)
    os.environ["TIERMESH_TEST_RUN"] = mark
    async with Mesh(folder, 1, engines=False) as mesh:
        mesh.configure(0, kernel=True, model="smollm2:135m")
        try:
            await mesh.form()
            body = {"model": "auto", "max_tokens": 4, "messages": [{"role": "user", "content": "Say yes."}]}
            async with (
                mesh.seats[0].session(timeout_s=MODEL_S) as session,
                session.post("/v1/chat/completions", json=body) as response,
            ):
                assert response.status == 200, await response.text()
            daemon = mesh.daemons[0].pid
            children = [process for process in _marked(mark) if process.pid != daemon]
            mesh.daemons[0].kill()
            await asyncio.sleep(after_s)
            return Orphans(len(children), len(_marked(mark)))
        finally:
            del os.environ["TIERMESH_TEST_RUN"]


def _marked(mark: str) -> list[psutil.Process]:
    """Every process that inherited the mark, however far it got away from its parents."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("TIERMESH_TEST_RUN") == mark:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found
