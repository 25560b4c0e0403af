"""A mesh under observation: daemons, a scripted OpenAI server behind each, and the watch over them all."""

from __future__ import annotations

import asyncio
import random
import secrets
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from tests.network import netns
from tests.network.daemons import LOG_TAIL_CHARS, Daemon
from tests.network.lan import Lan
from tests.network.poll import Picture, Pictures, Seat, Watch, agreed
from tests.network.prompts import MODEL
from tests.openai_fake import FakeOpenAI

PORT = 8000
ENGINE_DELAY_S = 0.05
"""Long enough that a node is hit while it works on a prompt now and then."""
READY_S = 20.0
"""From starting a process to agreement, on a machine that does other things too. A bound for set-up, not a figure."""


class Mesh:
    """Node i sits in namespace i of `lan`, or on loopback without one. Nothing runs until `start`.

    Every configuration says: no kernel, no detection, and no preference for the node that was asked: between equals
    the nearest wins, and the coordinator counts as nearest of all. The servers behind nodes i and i + 1 both have the
    model `pair_of(i)`: while i coordinates, i is everybody's first candidate for it (but for i + 1, where both are
    equal), and i + 1 is what remains when i is lost.
    """

    def __init__(
        self,
        folder: Path,
        size: int,
        *,
        lan: Lan | None = None,
        engines: bool = True,
        names: Mapping[int, str | None] | None = None,
        clusters: Mapping[int, str] | None = None,
        tokens: Mapping[int, str] | None = None,
        interface: str | None = "eth0",
    ) -> None:
        self.lan = lan
        self.size = size
        self.cluster = f"test-{secrets.token_hex(4)}"
        self.engines: list[FakeOpenAI] = []
        self.started_at: dict[int, float] = {}
        self._engines = engines
        self._stack = AsyncExitStack()
        base = {
            "kernel": False,
            "detect": False,
            "grace_s": 5,
            "routing": {"prefer_local": False, "load_balance": False},
        }
        self._configs: list[dict[str, Any]] = [dict(base) for _ in range(size)]
        tokens = tokens or {}
        self.daemons = [
            Daemon(
                self._seat(node),
                folder / f"n{node}",
                cluster=(clusters or {}).get(node, self.cluster),
                name=(names or {}).get(node, f"n{node}"),
                interface="127.0.0.1" if lan is None else interface,
                token=tokens.get(node),
            )
            for node in range(size)
        ]
        for node in range(size):
            self.configure(node)
        self.seats = {node: daemon.seat for node, daemon in enumerate(self.daemons)}
        self.watch = Watch(self.seats, tokens)

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.watch)
        if self._engines:
            for node in range(self.size):
                await self._start_engine(node)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if error is not None:
            self.print_logs()
        for daemon in self.daemons:
            if daemon.running:
                daemon.kill()
        await self._stack.aclose()

    def configure(self, node: int, **settings: object) -> None:
        """Change the node's configuration file; its next start reads it."""
        self._configs[node] |= settings
        self.daemons[node].configure(self._configs[node])

    def start(self, *nodes: int, flags: Sequence[str] = ()) -> None:
        """Start these daemons (all, when none is named), without waiting for anything."""
        for node in nodes or range(self.size):
            self.watch.forget(node)
            self.started_at[node] = time.monotonic()
            self.daemons[node].start(*flags)

    async def form(self, *nodes: int) -> float:
        """Start these (or all) and wait until they agree and know what each of them serves; gives the moment."""
        self.start(*nodes)
        return await self.until_settled(*nodes)

    async def until_settled(self, *nodes: int) -> float:
        """The moment from which these nodes (or all) agree, and each knows the models of all, if they have engines."""
        return await self._until(nodes or tuple(range(self.size)), READY_S, serving=self._engines)

    async def until_agreed(self, *nodes: int, within_s: float = READY_S, alone: bool = False) -> float:
        """The moment from which these nodes (or all) agree on one coordinator among them, and on all being up."""
        return await self._until(nodes or tuple(range(self.size)), within_s, alone=alone)

    async def exit_code(self, node: int, within_s: float = READY_S) -> int:
        """Wait until the node's daemon has ended by itself."""
        return await asyncio.to_thread(self.daemons[node].wait, within_s)

    def picture(self, node: int) -> Picture:
        """What this node says now."""
        picture = self.watch.pictures[node]
        assert picture is not None, f"n{node} gives no answer"
        return picture

    def id_of(self, node: int) -> str:
        """The node's id, as it said itself when it last answered."""
        return str(self.watch.reports[node]["self"])

    def coordinator(self) -> int:
        """Whom the nodes that answer agree on."""
        leaders = {p.coordinator for p in self.watch.pictures.values() if p is not None}
        assert len(leaders) == 1, f"no single coordinator:\n{self.watch.describe()}"
        return self.node_of(leaders.pop())

    def node_of(self, node_id: str | None) -> int:
        return next(node for node in self.watch.reports if self.id_of(node) == node_id)

    def others(self, *without: int) -> tuple[int, ...]:
        return tuple(node for node in range(self.size) if node not in without)

    def pids(self) -> list[int]:
        return [daemon.pid for daemon in self.daemons]

    def print_logs(self, nodes: Iterable[int] | None = None) -> None:
        """The ends of the daemons' logs, and what each node said last."""
        print(self.watch.describe(), file=sys.stderr)
        for node in range(self.size) if nodes is None else nodes:
            daemon = self.daemons[node]
            code = daemon.process.poll() if daemon.process else None
            print(f"--- n{node} (exit code {code})\n{daemon.log_text()[-LOG_TAIL_CHARS:]}", file=sys.stderr)

    async def _until(
        self, wanted: tuple[int, ...], within_s: float, *, alone: bool = False, serving: bool = False
    ) -> float:
        def holds(pictures: Pictures) -> bool:
            ended = [node for node in wanted if not self.daemons[node].running]
            assert not ended, f"the daemons of nodes {ended} ended by themselves"
            return agreed(pictures, wanted, alone=alone, serving=serving)

        return await self.watch.until(holds, within_s, f"nodes {wanted} agree")

    def _seat(self, node: int) -> Seat:
        if self.lan is None:
            return Seat(None, "127.0.0.1", _free_port())
        return Seat(self.lan.namespace(node), self.lan.address(node), PORT)

    async def _start_engine(self, node: int) -> None:
        """Inside the daemon's namespace, served by this process: it survives the daemon, and counts what it did."""
        models = (MODEL, pair_of(node), pair_of((node - 1) % self.size))
        engine = FakeOpenAI(f"engine{node}", *models, delay_s=ENGINE_DELAY_S)
        runner = web.AppRunner(engine.app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        listener = netns.listener(self.seats[node].namespace)
        await web.SockSite(runner, listener).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.configure(node, engines=[{"url": url, "name": "fake", "tier": 0}])
        self.engines.append(engine)


def pair_of(node: int) -> str:
    """The model that only this node and the next one have."""
    return f"pair-{node}"


def _free_port() -> int:
    """Below those that a system gives to whoever asks for any (32768 on Linux): nobody gets it before it is bound."""
    while True:
        port = random.randrange(10000, 32000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
