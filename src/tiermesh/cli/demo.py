"""`mesh demo`: three daemons on this machine, found, asked, hit, and asked again. Everything it says is measured.

It uses the loopback interface, a random cluster name and a temporary folder, and stops all that it started.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tiermesh.errors import TiermeshError

if TYPE_CHECKING:
    from tiermesh.client import RemoteClient
    from tiermesh.protocol.cluster import ClusterReport

T = TypeVar("T")

MODEL = "smollm2:135m"
FIRST_QUESTION = "What is the capital of France?"
SECOND_QUESTION = "What is the capital of Japan?"

FORMATION_LIMIT_S = 60.0
"""Three interpreters that start at once need most of it on a small machine; the election takes under a second."""
FAILOVER_LIMIT_S = 15.0
ANSWER_LIMIT_S = 120.0
STOP_LIMIT_S = 15.0
POLL_S = 0.01


class StepFailed(Exception):
    """A step was not as promised."""


@dataclass
class DemoNode:
    """One daemon that the demo started."""

    name: str
    folder: Path
    arguments: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None
    url: str = ""

    @property
    def log_path(self) -> Path:
        return self.folder / "daemon.log"

    def start(self, cluster: str) -> None:
        """Run `mesh up` as a person would, on the loopback interface."""
        self.folder.mkdir(parents=True)
        command = [sys.executable, "-m", "tiermesh.cli.main", "up", "--cluster", cluster, "--name", self.name]
        command += ["--state-dir", str(self.folder), "--interface", "127.0.0.1", "--port", "0", "--no-detect"]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *self.arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    async def find_url(self) -> str | None:
        """Where it answers, once it does. Raises `StepFailed` when it ended instead."""
        assert self.process is not None, "start() comes first"
        if self.process.poll() is not None:
            raise StepFailed(f"{self.name} ended with code {self.process.returncode}:\n{self.log_path.read_text()}")
        with suppress(OSError, ValueError):
            self.url = json.loads((self.folder / "runtime.json").read_text())["url"]
        return self.url or None


@dataclass
class Ledger:
    """What the prompts in the background met."""

    answered: int = 0
    failures: list[str] = field(default_factory=list)

    async def begun(self) -> bool:
        return self.answered > 1 or bool(self.failures)


def run(*, keep_logs: bool = False) -> int:
    """Show it; 0 when every step was as promised."""
    with tempfile.TemporaryDirectory(prefix="tiermesh-demo-") as folder:
        try:
            asyncio.run(_Demo(Path(folder)).play())
        except StepFailed as error:
            print(f"\ndemo: {error}", file=sys.stderr)
            if keep_logs:
                _print_logs(Path(folder))
            return 1
        except KeyboardInterrupt:
            return 130
    return 0


class _Demo:
    def __init__(self, folder: Path) -> None:
        self._cluster = f"demo-{secrets.token_hex(3)}"
        self._nodes = {
            name: DemoNode(name, folder / name, arguments)
            for name, arguments in {
                "laptop": ("--tier", "0", "--no-engine"),
                "gaming-pc": ("--tier", "1", "--model", MODEL),
                "server": ("--tier", "2", "--model", MODEL),
            }.items()
        }

    async def play(self) -> None:
        async with self._running(), AsyncExitStack() as stack:
            from tiermesh.client import RemoteClient

            clients = {
                name: await stack.enter_async_context(RemoteClient(node.url)) for name, node in self._nodes.items()
            }
            leader = await self._formed(clients)
            self._print_status("laptop")
            await self._ask("laptop", clients["laptop"], FIRST_QUESTION)
            await self._hit(leader, {n: c for n, c in clients.items() if n != leader})
        say("stopped everything that was started")

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        say(f"starting three daemons of cluster {self._cluster} with no configuration file")
        try:
            for node in self._nodes.values():
                node.start(self._cluster)
            for node in self._nodes.values():
                await until(node.find_url, FORMATION_LIMIT_S, f"{node.name} to answer")
            yield
        finally:
            await asyncio.to_thread(self._stop)

    async def _formed(self, clients: dict[str, RemoteClient]) -> str:
        """Wait until all name the same coordinator and see all others; gives its name."""
        started = time.monotonic()

        async def agreed() -> ClusterReport | None:
            reports = [await report_of(client) for client in clients.values()]
            return reports[0] if agree(reports, len(clients)) else None

        report = await until(agreed, FORMATION_LIMIT_S, "all three to agree on a coordinator")
        assert report.coordinator is not None
        waited_s = time.monotonic() - started
        leader = report.coordinator.name
        say(f"they found one another over mDNS and agreed on {leader} {waited_s:.2f} s after the last was up")
        return leader

    def _print_status(self, name: str) -> None:
        command = [sys.executable, "-m", "tiermesh.cli.main", "cluster", "status", "--url", self._nodes[name].url]
        say(f"$ mesh cluster status --url {self._nodes[name].url}")
        if subprocess.run(command, timeout=30, check=False).returncode != 0:
            raise StepFailed("`mesh cluster status` failed")

    async def _ask(self, name: str, client: RemoteClient, question: str) -> None:
        """Ask and print the answer as it streams, then who gave it."""
        print(f"\n  asking {name}: {question}\n  ", end="", flush=True)
        before = await report_of(client)
        started, first_s, text = time.monotonic(), 0.0, ""
        stream = client.stream(question, temperature=0.0, max_tokens=32)
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S), stream:
                async for piece in stream:
                    first_s = first_s or time.monotonic() - started
                    text += piece
                    print(piece, end="", flush=True)
        except (TiermeshError, TimeoutError) as error:
            raise StepFailed(f"{name} gave no whole answer: {error or 'time is up'}") from error
        if not text.strip():
            raise StepFailed(f"{name} gave an empty answer")
        took_s, by = time.monotonic() - started, stream.result
        loaded = " (its model was loaded first)" if before and by.node in without_warm_model(before) else ""
        told = f"first token {first_s:.2f} s{loaded}, whole {took_s:.2f} s"
        print(f"\n  - answered by {by.node}, tier {by.tier}; {told}\n")

    async def _hit(self, leader: str, survivors: dict[str, RemoteClient]) -> None:
        """SIGKILL the coordinator while prompts run through the others; measure from outside."""
        ledger, stop = Ledger(), asyncio.Event()
        askers = [asyncio.ensure_future(_keep_asking(c, ledger, stop)) for c in survivors.values()]
        await until(ledger.begun, ANSWER_LIMIT_S, "the first answers")
        process = self._nodes[leader].process
        assert process is not None
        say(f"killing the coordinator, {leader}, with SIGKILL while prompts run through the others")
        process.send_signal(signal.SIGKILL)
        killed = time.monotonic()

        async def replaced() -> str | None:
            reports = [await report_of(client) for client in survivors.values()]
            names = {r.coordinator.name if r and r.coordinator else None for r in reports}
            return names.pop() if len(names) == 1 and names.isdisjoint({leader, None}) else None

        successor = await until(replaced, FAILOVER_LIMIT_S, "a new coordinator")
        say(f"the mesh was without a coordinator for {time.monotonic() - killed:.3f} s; now it is {successor}")
        await self._ask_another(leader, survivors)
        stop.set()
        await asyncio.gather(*askers)
        if ledger.failures:
            raise StepFailed(f"{len(ledger.failures)} prompts failed, the first with: {ledger.failures[0]}")
        say(f"no prompt failed: {ledger.answered} of {ledger.answered} in the background were answered meanwhile")

    async def _ask_another(self, leader: str, survivors: dict[str, RemoteClient]) -> None:
        name = next(name for name in survivors if name != "laptop") if len(survivors) > 1 else next(iter(survivors))
        assert name != leader
        await self._ask(name, survivors[name], SECOND_QUESTION)

    def _stop(self) -> None:
        """SIGTERM, then SIGKILL for what does not end in time."""
        processes = [n.process for n in self._nodes.values() if n.process is not None]
        for process in processes:
            with suppress(ProcessLookupError):
                process.terminate()
        deadline = time.monotonic() + STOP_LIMIT_S
        for process in processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def _keep_asking(client: RemoteClient, ledger: Ledger, stop: asyncio.Event) -> None:
    while not stop.is_set():
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                answer = await client.complete("Say hello.", temperature=0.0, max_tokens=4)
        except (TiermeshError, TimeoutError) as error:
            ledger.failures.append(str(error) or "time is up")
            return
        ledger.answered += 1 if answer.content else 0


async def report_of(client: RemoteClient) -> ClusterReport | None:
    """What a node says of the cluster; None when it can't be asked now."""
    try:
        return await client.cluster()
    except TiermeshError:
        return None


def agree(reports: Iterable[ClusterReport | None], size: int) -> bool:
    """Do all of them see `size` nodes up, under one coordinator, with a model among them?"""
    reports = list(reports)
    present = [r for r in reports if r is not None and r.coordinator is not None]
    if len(present) != len(reports) or len({r.coordinator.id for r in present if r.coordinator}) != 1:
        return False
    return all(
        sum(n.state == "up" for n in r.nodes) == size and sum(bool(n.models) for n in r.nodes) >= 2 for r in present
    )


def without_warm_model(report: ClusterReport) -> set[str]:
    """The names of the nodes that have to load a model before they can answer."""
    return {node.name for node in report.nodes if not any(model.state == "warm" for model in node.models)}


async def until(look: Callable[[], Awaitable[T | None]], limit_s: float, what: str) -> T:
    """Poll `look` until it gives something true. Raises `StepFailed` when `limit_s` have passed."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if found := await look():
            return found
        await asyncio.sleep(POLL_S)
    raise StepFailed(f"waited {limit_s:.0f} s in vain for {what}")


def say(text: str) -> None:
    """One line of the story."""
    print(f"· {text}", flush=True)


def _print_logs(folder: Path) -> None:
    for log in sorted(folder.glob("*/daemon.log")):
        print(f"--- {log.parent.name}\n{log.read_text(errors='replace')[-4000:]}", file=sys.stderr)
