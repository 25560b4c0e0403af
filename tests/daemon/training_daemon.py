"""One real daemon that trains, in a process of its own, and what tests do to it."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.processes import has_ended

from tiermesh.client import Data, RemoteClient, TrainingJob
from tiermesh.protocol.jobs import JobReport
from tiermesh.protocol.training_events import StepDone

LIMIT_S = 180.0
SPEC: dict[str, Any] = {
    "model_name": "tiny",
    "seq_len": 64,
    "num_epochs": 2,
    "learning_rate": 5e-3,
    "precision": "fp32",
    "eval_fraction": 0.1,
    "save_interval": 4,
    "lora": {"r": 4},
    "guard": {"spike_z": None},
}
POLICY = "evaluation: {max_final_loss: any, max_gap: any, canary: false}"
"""Nobody judges what a tiny random model has learnt."""
ENDLESS = SPEC | {"num_epochs": 2000, "save_interval": 1000}


@dataclass
class Machine:
    """A state folder, and the daemon that runs on it now."""

    folder: Path
    model: Path
    process: asyncio.subprocess.Process | None = None
    token: str = ""
    config: str = POLICY
    cluster: str = field(default_factory=lambda: f"test-{secrets.token_hex(4)}")
    name: str = "desk"
    join: str = ""
    """Where another machine is, if one is up: `host:port`."""
    url: str = ""
    estimates: Path | None = None
    """What was found out by trials on this machine before."""

    @property
    def state(self) -> Path:
        return self.folder / "state"

    async def up(self) -> str:
        """Start the daemon; gives its URL."""
        env = {key: value for key, value in os.environ.items() if not key.startswith("MESH_")}
        env |= {"TIERMESH_CACHE": str(self.folder / "cache")} | ({"MESH_TOKEN": self.token} if self.token else {})
        (self.folder / "cluster.yaml").write_text(self.config)
        command = [sys.executable, "-m", "tiermesh.cli.main", "up", "--name", self.name, "--port", "0"]
        command += ["--config", "cluster.yaml", *(("--join", self.join) if self.join else ())]
        command += ["--interface", "127.0.0.1", "--no-detect", "--state-dir", str(self.state)]
        command += ["--cluster", self.cluster, "--model", str(self.model)]
        if self.estimates is None and (kept := self.model.parent / "estimates").is_dir():
            self.estimates = kept
        if self.estimates is not None and not (self.state / "estimates").exists():
            self.state.mkdir(exist_ok=True)
            (self.state / "estimates").symlink_to(self.estimates)
        note = self.state / "runtime.json"
        note.unlink(missing_ok=True)
        with (self.folder / "daemon.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *command, cwd=self.folder, env=env, stdout=log, stderr=log
            )
        async with asyncio.timeout(LIMIT_S):
            while not note.exists():
                assert self.process.returncode is None, self.log()
                await asyncio.sleep(0.02)
        self.url = str(json.loads(note.read_text())["url"])
        return self.url

    async def end(self, number: signal.Signals) -> None:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        await asyncio.wait_for(self.process.wait(), LIMIT_S)

    def log(self) -> str:
        return (self.folder / "daemon.log").read_text()

    def run(self, job: TrainingJob, attempt: int = 1) -> Path:
        return self.state / "jobs" / job.id / f"attempt-{attempt}"

    def events(self, job: TrainingJob, attempt: int = 1) -> list[dict[str, Any]]:
        path = self.run(job, attempt) / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def losses(self, job: TrainingJob, attempt: int = 1) -> dict[int, float]:
        return {event["step"]: event["loss"] for event in self.events(job, attempt) if event["event"] == "step"}

    def workers(self) -> list[int]:
        """Process ids of those that train for this daemon, as it wrote them down."""
        return [record["pid"] for record in json.loads((self.state / "trainers.json").read_text())]

    def worker(self, job: TrainingJob) -> int:
        """The process id of the last one that began."""
        return int(next(event["pid"] for event in reversed(self.events(job)) if event["event"] == "started"))


@asynccontextmanager
async def machine(
    folder: Path, model: Path, *, token: str = "", config: str = POLICY
) -> AsyncIterator[tuple[Machine, RemoteClient]]:
    """A daemon that runs, and a client of it."""
    made = Machine(folder, model, token=token, config=config)
    try:
        async with RemoteClient(await made.up(), token=token, timeout_s=LIMIT_S) as client:
            yield made, client
    finally:
        await made.end(signal.SIGKILL)


async def until_step(job: TrainingJob, step: int) -> None:
    async with asyncio.timeout(LIMIT_S):
        async for event in job.events():
            assert not (isinstance(event, JobReport) and event.is_over), event
            if isinstance(event, StepDone) and event.step >= step:
                return


async def until_event(desk: Machine, job: TrainingJob, name: str, count: int) -> None:
    """Until the run's file has so many of them, or the job's end."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            told = [event["event"] for event in desk.events(job)]
            if told.count(name) >= count or {"completed", "failed"} & {*told}:
                return
            await asyncio.sleep(0.02)


async def until_gone(pid: int, limit_s: float) -> float:
    """Seconds until the process is no more."""
    began = time.monotonic()
    while not has_ended(pid):
        assert time.monotonic() < began + limit_s, f"process {pid} still runs"
        await asyncio.sleep(0.02)
    return time.monotonic() - began


def data(records: int = 200) -> Data:
    rows = [
        {"prompt": f"what comes after {n}?", "completion": f"after {n} comes {n + 1}, the quick brown fox"}
        for n in range(records)
    ]
    return Data("".join(json.dumps(row) + "\n" for row in rows).encode(), "faq.jsonl")
