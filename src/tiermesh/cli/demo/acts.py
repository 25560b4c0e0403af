"""The demo's acts, one after the other, on one mesh of three daemons."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tiermesh.cli.demo.failover import hit
from tiermesh.cli.demo.lesson import teach
from tiermesh.cli.demo.story import (
    FORMATION_LIMIT_S,
    MODEL,
    DemoNode,
    StepFailed,
    agree,
    answer_of,
    report_of,
    say,
    stop,
    until,
)

if TYPE_CHECKING:
    from tiermesh.client import RemoteClient
    from tiermesh.protocol.cluster import ClusterReport

QUESTION = "What is the capital of France?"
NODES = {
    "laptop": ("--tier", "0", "--no-engine"),
    "gaming-pc": ("--tier", "1", "--model", MODEL),
    "server": ("--tier", "2", "--model", MODEL),
}


async def play(folder: Path, *, train: bool) -> None:
    """Raises `StepFailed` at the first step that is not as promised; stops all that it started."""
    stage = Stage(folder)
    async with stage.running():
        await stage.meet()
        say(f"$ mesh cluster status --url {stage.nodes['laptop'].url}")
        stage.print_status("laptop")
        await answer_of("laptop", stage.clients["laptop"], QUESTION)
        leader = await stage.leader()
        await hit(stage.nodes[leader], {name: client for name, client in stage.clients.items() if name != leader})
        if train:
            say(f"{leader} is switched on again")
            await stage.restart(leader)
            await stage.meet()
            await teach(stage.nodes, stage.clients)
    say("stopped everything that was started")


class Stage:
    """Three daemons with a token of their own, and a client for each."""

    def __init__(self, folder: Path) -> None:
        self.nodes = {name: DemoNode(name, folder / name, arguments) for name, arguments in NODES.items()}
        self.clients: dict[str, RemoteClient] = {}
        self._cluster = f"demo-{secrets.token_hex(3)}"
        self._token = secrets.token_hex(16)
        self._exit = AsyncExitStack()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        say(f"starting three daemons of cluster {self._cluster} with no configuration file")
        try:
            async with self._exit:
                for node in self.nodes.values():
                    node.start(self._cluster, self._token)
                for name in self.nodes:
                    await self._connect(name)
                yield
        finally:
            await asyncio.to_thread(stop, self.nodes.values())

    async def restart(self, name: str) -> None:
        """One that was killed comes back, perhaps on another port."""
        self.nodes[name].start(self._cluster, self._token)
        await self._connect(name)

    async def meet(self) -> None:
        """Wait until all name the same coordinator and see all others."""
        started = time.monotonic()

        async def agreed() -> ClusterReport | None:
            reports = [await report_of(client) for client in self.clients.values()]
            return reports[0] if agree(reports, len(self.clients)) else None

        report = await until(agreed, FORMATION_LIMIT_S, "all three to agree on a coordinator")
        assert report.coordinator is not None
        waited_s = time.monotonic() - started
        leader = report.coordinator.name
        say(f"they found one another over mDNS and agreed on {leader} {waited_s:.2f} s after the last was up")

    async def leader(self) -> str:
        """The coordinator's name."""
        report = await report_of(self.clients["laptop"])
        if report is None or report.coordinator is None:
            raise StepFailed("the mesh has lost its coordinator, though nobody touched it")
        return report.coordinator.name

    def print_status(self, name: str) -> None:
        command = [sys.executable, "-m", "tiermesh.cli.main", "cluster", "status", "--url", self.nodes[name].url]
        environment = self.nodes[name].environment(self._token)
        if subprocess.run(command, timeout=30, check=False, env=environment).returncode != 0:
            raise StepFailed("`mesh cluster status` failed")

    async def _connect(self, name: str) -> None:
        from tiermesh.client import RemoteClient

        url = await until(self.nodes[name].find_url, FORMATION_LIMIT_S, f"{name} to answer")
        self.clients[name] = await self._exit.enter_async_context(RemoteClient(url, token=self._token))
