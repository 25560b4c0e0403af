"""How soon a node's kernel is ready, and what its clients see when it is killed: a real daemon, asked over HTTP.

Only the outside counts: a request is judged by what its client got, readiness by what `/api/cluster` says.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import aiohttp
import psutil

from benchmarks.kernel.machine import BUSY, load
from benchmarks.kernel.prompts import prompts
from tiermesh.adapters.model_source import pull

MODEL = "smollm2:135m"
HOST = "127.0.0.1"
CLIENTS = 8
KILLS, STARTS = 8, 3
"""A kill takes some 10 s: until enough is answered again, until the worker is back, until those that ran have ended."""
ANSWER_TOKENS = 60
DEADLINE_S = 120.0
READY_LIMIT_S = 5.0
POLL_S = 0.02
WORKER = "tiermesh.kernel.inference"
INTERRUPTED = 130
"""As shells have it."""


@dataclass(slots=True)
class Ledger:
    """What became of every request: `answered`, or the type of the error that its client was told."""

    ends: Counter[str] = field(default_factory=Counter)
    unexplained: list[str] = field(default_factory=list)
    running: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Figures:
    """What was measured so far, in seconds: starts, and for each kill until the worker was back and until the last of
    those that ran had ended."""

    ready: list[float] = field(default_factory=list)
    back: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def limit_s(self) -> float:
        """Within which a worker must be back: a load, and a second."""
        return max(self.ready) + 1.0

    @property
    def kept(self) -> bool:
        """Was every promise kept?"""
        return max(self.ready) <= READY_LIMIT_S and not self.ledger.unexplained and max(self.back) <= self.limit_s


@dataclass(frozen=True, slots=True)
class Node:
    """A daemon that serves one pinned model."""

    url: str
    pid: int
    http: aiohttp.ClientSession
    ready_s: float
    """From the start of its process to a warm model."""

    def worker(self) -> int | None:
        """The worker's pid."""
        children = psutil.Process(self.pid).children(recursive=True)
        for child in children:
            with contextlib.suppress(psutil.Error):
                if WORKER in child.cmdline():
                    return child.pid
        return None

    async def state(self) -> str | None:
        """Of its model, as the mesh sees it."""
        with contextlib.suppress(aiohttp.ClientError, OSError, ValueError, LookupError):
            async with self.http.get(f"{self.url}/api/cluster") as response:
                return str((await response.json())["nodes"][0]["models"][0]["state"])
        return None

    async def ask(self, text: str, ledger: Ledger, number: int, *, stream: bool) -> None:
        ledger.running.add(number)
        try:
            ledger.ends[await self._outcome(text, stream=stream)] += 1
        except Exception as error:  # noqa: BLE001 - whatever it is, it was not explained to the client
            ledger.unexplained.append(f"{type(error).__name__}: {error}")
        finally:
            ledger.running.remove(number)

    async def _outcome(self, text: str, *, stream: bool) -> str:
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": ANSWER_TOKENS}
        async with self.http.post(f"{self.url}/v1/chat/completions", json=body | {"stream": stream}) as response:
            told = (await response.read()).decode()
            if not stream:
                answer = json.loads(told)
                return "answered" if response.status == 200 else str(answer["error"]["code"])
        events = [line.removeprefix("data: ") for line in told.splitlines() if line.startswith("data: ")]
        if response.status != 200:
            return str(json.loads(told)["error"]["code"])
        if events[-1] != "[DONE]":
            raise ValueError("a stream that just ends")
        last = json.loads(events[-2])
        return str(last["error"]["code"]) if "error" in last else "answered"


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench_faults", description=__doc__)
    parser.add_argument("--kills", type=_count, default=KILLS)
    parser.add_argument("--starts", type=_count, default=STARTS)
    options = parser.parse_args()
    pull(MODEL)
    if (busy := load()) > BUSY:
        _say(f"load {busy:.1f} before anything began: the figures will be other programs' as well")
    figures = Figures()
    status = 1
    try:
        asyncio.run(run(options.kills, options.starts, figures))
        status = 0 if figures.kept else 1
    except KeyboardInterrupt:
        status = INTERRUPTED
    except TimeoutError:
        _say(f"given up: what was waited for did not happen within {DEADLINE_S:.0f} s")
    report(figures)
    sys.exit(status)


async def run(kills: int, starts: int, figures: Figures) -> None:
    """Measure, and say so as it goes."""
    for number in range(1, starts + 1):
        async with opened() as node:
            figures.ready.append(node.ready_s)
        _say(f"start {number} of {starts}: ready after {figures.ready[-1]:.2f} s")
    async with opened() as node:
        await _kill_again_and_again(node, kills, figures)


def report(figures: Figures) -> None:
    """Print a table of what there is."""
    ready, back, ended, ledger = figures.ready, figures.back, figures.ended, figures.ledger
    print("| what | must reach | measured |\n|---|---|---|")
    if ready:
        print(f"| `mesh up` to a ready model | <= {READY_LIMIT_S:.0f} s | {_spread(ready)} |")
    if back:
        told = ", ".join(f"{count} {end}" for end, count in ledger.ends.most_common())
        print(f"| {len(back)} SIGKILLs under {CLIENTS} clients: every request | answered or typed | {told}; "
              f"{len(ledger.unexplained)} unexplained |")  # fmt: skip
        print(f"| those that ran have ended, or gone on and ended | | {_spread(ended)} |")
        print(f"| worker back | <= model load + 1 s = {figures.limit_s:.2f} s | {_spread(back)} |")
    for problem in ledger.unexplained[:5]:
        _say(f"unexplained: {problem}")


async def _kill_again_and_again(node: Node, kills: int, figures: Figures) -> None:
    ledger = figures.ledger
    clients = [asyncio.create_task(_client(node, ledger, number)) for number in range(CLIENTS)]
    try:
        for number in range(1, kills + 1):
            answered_s = await _seconds_until(time.monotonic(), _until_more_answers(ledger))
            victim, running = node.worker(), set(ledger.running)
            assert victim is not None
            os.kill(victim, signal.SIGKILL)
            killed = time.monotonic()
            ended_s, back_s = await asyncio.gather(
                _seconds_until(killed, _until_ended(ledger, running)),
                _seconds_until(killed, _until_started(node, victim)),
            )
            figures.ended.append(ended_s)
            figures.back.append(back_s)
            _say(
                f"kill {number} of {kills}, after {answered_s:.1f} s of answers: "
                f"back after {back_s:.2f} s, the last of those that ran ended after {ended_s:.2f} s"
            )
    finally:
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)


async def _client(node: Node, ledger: Ledger, number: int) -> None:
    for turn, text in enumerate(prompts()):
        await node.ask(text, ledger, number * 1_000_000 + turn, stream=turn % 2 == 0)
        # A refusal comes at once; a client that asks again at once would only measure itself.
        await asyncio.sleep(POLL_S)


@asynccontextmanager
async def opened() -> AsyncIterator[Node]:
    """A daemon of its own on loopback, its model warm; ended with all that it started."""
    with tempfile.TemporaryDirectory(prefix="tiermesh-faults-") as name:
        folder, port = Path(name), _free_port()
        config = folder / "cluster.yaml"
        config.write_text(f"models:\n  - name: {MODEL}\n    pinned: true\n")
        mesh = Path(sys.executable).with_name("mesh")
        command = [str(mesh), "up", "--config", str(config), "--interface", HOST, "--port", str(port), "--no-detect"]
        command += ["--state-dir", str(folder / "state"), "--cluster", f"faults-{port}"]
        began = time.monotonic()
        daemon = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
        try:
            async with aiohttp.ClientSession() as http:
                node = Node(f"http://{HOST}:{port}", daemon.pid, http, 0.0)
                await _until_warm(node)
                yield Node(node.url, node.pid, http, time.monotonic() - began)
        finally:
            with contextlib.suppress(ProcessLookupError):  # Ctrl-C reaches it as well.
                daemon.terminate()
            await daemon.wait()


async def _until_warm(node: Node) -> None:
    async def warm() -> bool:
        return await node.state() == "warm"

    await _until(warm)


async def _seconds_until(began: float, event: Awaitable[None]) -> float:
    await event
    return time.monotonic() - began


async def _until_started(node: Node, victim: int) -> None:
    """Another worker than the victim is there and ready."""

    async def back() -> bool:
        return node.worker() not in (None, victim) and await node.state() == "warm"

    await _until(back)


async def _until_more_answers(ledger: Ledger) -> None:
    wanted = ledger.ends["answered"] + CLIENTS
    await _until(lambda: ledger.ends["answered"] >= wanted)


async def _until_ended(ledger: Ledger, requests: set[int]) -> None:
    await _until(lambda: not requests & set(ledger.running))


async def _until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            met = condition()
            if met if isinstance(met, bool) else await met:
                return
            await asyncio.sleep(POLL_S)


def _spread(values: list[float]) -> str:
    return f"median {median(values):.2f} s, max {max(values):.2f} s, n = {len(values)}"


def _say(text: str) -> None:
    print(f"· {text}", file=sys.stderr, flush=True)


def _count(text: str) -> int:
    """Raises `ValueError` for what nothing can be measured with."""
    if (count := int(text)) < 1:
        raise ValueError(text)
    return count


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
