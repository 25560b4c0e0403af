"""What every act of the demo needs: daemons as a person would start them, and one way to tell and to wait."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tiermesh.errors import TiermeshError

if TYPE_CHECKING:
    from tiermesh.client import RemoteClient
    from tiermesh.protocol.cluster import ClusterReport

T = TypeVar("T")

MODEL = "smollm2:135m"
FORMATION_LIMIT_S = 60.0
"""Three interpreters that start at once need most of it on a small machine; the election takes under a second."""
ANSWER_LIMIT_S = 120.0
STOP_LIMIT_S = 15.0
POLL_S = 0.01


class StepFailed(Exception):
    """A step was not as promised."""


@dataclass
class DemoNode:
    """One daemon that the demo starts, perhaps again."""

    name: str
    folder: Path
    arguments: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None
    url: str = ""

    @property
    def log_path(self) -> Path:
        return self.folder / "daemon.log"

    def start(self, cluster: str, token: str) -> None:
        """Run `mesh up` as a person would, on the loopback interface."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.url = ""
        (self.folder / "runtime.json").unlink(missing_ok=True)  # of a run that was killed
        command = [sys.executable, "-m", "tiermesh.cli.main", "up", "--cluster", cluster, "--name", self.name]
        command += ["--state-dir", str(self.folder), "--interface", "127.0.0.1", "--port", "0", "--no-detect"]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *self.arguments],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=self.environment(token),
            )

    @staticmethod
    def environment(token: str) -> dict[str, str]:
        """Of this daemon, and of commands that speak with it."""
        return os.environ | {"MESH_TOKEN": token}

    def kill(self) -> None:
        """As a power cut would."""
        assert self.process is not None, "start() comes first"
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    async def find_url(self) -> str | None:
        """Where it answers, once it does. Raises `StepFailed` when it ended instead."""
        assert self.process is not None, "start() comes first"
        if self.process.poll() is not None:
            raise StepFailed(f"{self.name} ended with code {self.process.returncode}:\n{self.log_path.read_text()}")
        with suppress(OSError, ValueError):
            self.url = json.loads((self.folder / "runtime.json").read_text())["url"]
        return self.url or None


def stop(nodes: Iterable[DemoNode]) -> None:
    """SIGTERM, then SIGKILL for what does not end in time."""
    processes = [node.process for node in nodes if node.process is not None]
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


async def report_of(client: RemoteClient) -> ClusterReport | None:
    """What a node says of the cluster; None when it can't be asked now."""
    try:
        return await client.cluster()
    except TiermeshError:
        return None


def agree(reports: Iterable[ClusterReport | None], size: int) -> bool:
    """Do all of them see `size` nodes up, under one coordinator, with a model on two of them?"""
    reports = list(reports)
    present = [r for r in reports if r is not None and r.coordinator is not None]
    if len(present) != len(reports) or len({r.coordinator.id for r in present if r.coordinator}) != 1:
        return False
    return all(
        sum(n.state == "up" for n in r.nodes) == size and sum(bool(n.models) for n in r.nodes) >= 2 for r in present
    )


async def answer_of(name: str, client: RemoteClient, question: str, *, model: str = "auto", tokens: int = 32) -> str:
    """Ask and print the answer as it streams, then who gave it. Raises `StepFailed` when there is none."""
    print(f"\n  asking {name}{'' if model == 'auto' else f' for {model}'}: {question}\n  ", end="", flush=True)
    before = await report_of(client)
    started, first_s, text = time.monotonic(), 0.0, ""
    stream = client.stream(question, model=model, temperature=0.0, max_tokens=tokens)
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
    return text


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


def print_logs(folder: Path) -> None:
    """The ends of what the daemons said."""
    for log in sorted(folder.glob("*/daemon.log")):
        print(f"--- {log.parent.name}\n{log.read_text(errors='replace')[-4000:]}", file=sys.stderr)
