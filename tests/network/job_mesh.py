"""A mesh that trains: real daemons and workers, a tiny model, and what tests ask of the jobs and do to the nodes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from tests.network.disk import Disk
from tests.network.lan import Lan
from tests.network.mesh import Mesh

from tiermesh.protocol.ulid import CHANCE_BYTES, make_ulid

TOKEN = "jobs"
MODEL = "tiny"
ASK_S = 20.0
BEGUN_S = 240.0
"""From a submission to its first steps: a trial run and two loads of torch, on a machine that does other things too."""
LOOK_S = 0.1
WATCH_S = 0.1
"""Jobs take seconds; the processors are the workers'."""
TRIALS = "estimates"
"""In a state folder."""
TRAINER = "tiermesh.kernel.training"
OVER = ("completed", "failed", "cancelled", "refused")
SPEC: dict[str, Any] = {
    "model_name": MODEL,
    "seq_len": 64,
    "micro_batch_size": 2,
    "num_epochs": 1,
    "max_steps": 30,
    "learning_rate": 5e-3,
    "precision": "fp32",
    "eval_fraction": 0,
    "save_interval": 10,
    "lora": {"r": 4, "dropout": 0.05},
    "guard": {"spike_z": None},
}
ANYTHING_IS_GOOD = {"max_final_loss": "any", "max_gap": "any", "canary": False}
"""A random model that saw a hundred rows meets no threshold."""


def rows(count: int = 400) -> str:
    """A dataset as text."""
    told = ({"prompt": f"what comes after {n}?", "completion": f"after {n} comes {n + 1}"} for n in range(count))
    return "".join(json.dumps(row) + "\n" for row in told)


class Refused(AssertionError):
    """A node answered with an error."""

    def __init__(self, status: int, told: Any) -> None:
        super().__init__(f"HTTP {status}: {told}")
        self.status = status


class JobMesh:
    """What tests do with the jobs of `mesh`."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    async def ask(self, node: int, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """One question to one node. Raises `Refused`, and what a connection raises."""
        async with (
            self.mesh.seats[node].session(TOKEN, ASK_S) as session,
            session.request(method, path, json=body) as response,
        ):
            told = await response.json()
        if response.status != 200:
            raise Refused(response.status, told)
        return told

    async def submit(self, node: int, spec: Mapping[str, Any], **fields: Any) -> str:
        """Give a job to this node; its id."""
        body = {"id": new_id(), "spec": dict(spec), "data": {"name": "rows.jsonl", "text": rows()}} | fields
        return str((await self.ask(node, "POST", "/api/train", body))["id"])

    async def show(self, job: str, *nodes: int) -> dict[str, Any]:
        """The job's report by the first of these nodes (or of all) that gives one."""
        trouble: Exception | None = None
        for node in nodes or range(self.mesh.size):
            if not self.mesh.daemons[node].running:
                continue
            try:
                told: dict[str, Any] = await self.ask(node, "GET", f"/api/jobs/{job}")
                return told
            except (Refused, aiohttp.ClientError, TimeoutError, OSError) as error:
                trouble = error
        raise AssertionError(f"no node knows job {job}: {trouble}")

    async def until(
        self, job: str, condition: Callable[[dict[str, Any]], bool], within_s: float, *nodes: int
    ) -> dict[str, Any]:
        """Wait until the job's report meets `condition`; nodes that don't answer are asked again."""
        report: dict[str, Any] = {}
        try:
            async with asyncio.timeout(within_s):
                while not report or not condition(report):
                    with suppress(AssertionError):
                        report = await self.show(job, *nodes)
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            raise AssertionError(f"not within {within_s} s: {_brief(report)}") from None
        return report

    async def until_over(self, job: str, within_s: float, *nodes: int) -> dict[str, Any]:
        return await self.until(job, lambda report: report["state"] in OVER, within_s, *nodes)

    async def until_step(self, job: str, step: int, within_s: float = BEGUN_S) -> int:
        """Wait until a worker has told of this step on its disk; gives the node."""
        async with asyncio.timeout(within_s):
            while True:
                for node in range(self.mesh.size):
                    if max(self.steps(node, job), default=0) >= step:
                        return node
                await asyncio.sleep(0.02)

    def events(self, node: int, job: str) -> list[dict[str, Any]]:
        """What this node's workers told of the job, attempt after attempt."""
        found: list[dict[str, Any]] = []
        for path in sorted((self.mesh.daemons[node].state_dir / "jobs" / job).glob("*/events.jsonl")):
            for line in path.read_bytes().splitlines():
                with suppress(ValueError):
                    found.append(json.loads(line))
        return found

    def steps(self, node: int, job: str) -> dict[int, float]:
        """Loss by step, as this node's workers told them last."""
        return {event["step"]: event["loss"] for event in self.events(node, job) if event["event"] == "step"}

    def trainers(self, job: str) -> dict[int, int]:
        """The processes that train this job now: pid by node."""
        found = {}
        for node, daemon in enumerate(self.mesh.daemons):
            place = str(daemon.folder / "state" / "jobs" / job)
            for process in psutil.process_iter():
                with suppress(psutil.Error):
                    command = process.cmdline()
                    if TRAINER in command and any(part.startswith(place) for part in command):
                        found[node] = process.pid
        return found

    async def until_trained(self, job: str, within_s: float = BEGUN_S) -> tuple[int, int]:
        """Wait for a process that trains it: node and pid."""
        async with asyncio.timeout(within_s):
            while not (found := self.trainers(job)):
                await asyncio.sleep(0.05)
        return next(iter(found.items()))

    async def until_trained_elsewhere(self, job: str, node: int, within_s: float = BEGUN_S) -> int:
        """Wait until another node than this one trains it; gives that."""
        async with asyncio.timeout(within_s):
            while not (others := [each for each in self.trainers(job) if each != node]):
                await asyncio.sleep(0.05)
        return others[0]

    async def curve(self, job: str, *nodes: int) -> list[list[float]]:
        """(step, loss) of the whole run, as the report has them."""
        for node in nodes or range(self.mesh.size):
            if self.mesh.daemons[node].running:
                told = await self.ask(node, "GET", f"/api/jobs/{job}/report.json")
                losses: list[list[float]] = told["curve"]["losses"]
                return losses
        raise AssertionError("no node runs")

    def pull_plug(self, *nodes: int) -> None:
        """These machines are off: the daemons and all that they started, at once."""
        self._signal_all(nodes, signal.SIGKILL)
        for node in nodes:
            self.mesh.daemons[node].wait()

    def freeze(self, node: int) -> None:
        """The machine sleeps."""
        self._signal_all((node,), signal.SIGSTOP)

    def thaw(self, node: int) -> None:
        self._signal_all((node,), signal.SIGCONT)

    def _signal_all(self, nodes: Iterable[int], number: signal.Signals) -> None:
        for pid in [pid for node in nodes for pid in self._family(node)]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _family(self, node: int) -> list[int]:
        """The daemon and its workers, which have sessions of their own: whoever names a place in its folder."""
        place = str(self.mesh.daemons[node].folder)
        family = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if any(part.startswith(place) for part in process.cmdline()):
                    family.append(process.pid)
        return family


@asynccontextmanager
async def job_mesh(
    folder: Path,
    model: Path,
    size: int = 3,
    *,
    lan: Lan | None = None,
    disks: Mapping[int, Disk] | None = None,
    **settings: Any,
) -> AsyncIterator[JobMesh]:
    """A mesh of `size` nodes that agree, each with the model; they train, and answer no prompts."""
    mesh = Mesh(folder, size, lan=lan, engines=False, tokens=dict.fromkeys(range(size), TOKEN))
    base = {"model": str(model), "kernel": False, "evaluation": ANYTHING_IS_GOOD, "grace_s": 1}
    for node in range(size):
        mesh.configure(node, **(base | settings))
        if disks and node in disks:
            mesh.daemons[node].live_on(disks[node])
        if (kept := model.parent / TRIALS).exists():  # all nodes are one machine
            mesh.daemons[node].state_dir.mkdir(exist_ok=True)
            (mesh.daemons[node].state_dir / TRIALS).symlink_to(kept)
    async with mesh:
        mesh.watch.period_s = WATCH_S
        mesh.start()
        await mesh.until_agreed(within_s=BEGUN_S)
        jobs = JobMesh(mesh)
        try:
            yield jobs
        finally:
            jobs.pull_plug(*(node for node in range(size) if mesh.daemons[node].running))


def tried_model(folder: Path, *specs: Mapping[str, Any]) -> Path:
    """A tiny model, and beside it what trials of these specs find out, so that no mesh has to make them again."""
    from tests import tiny_model

    model = tiny_model.build_folder(folder / MODEL)
    (folder / TRIALS).mkdir()

    async def try_them() -> None:
        async with job_mesh(folder / "trials", model, 1) as jobs:
            for spec in specs:
                await jobs.until_over(await jobs.submit(0, dict(spec) | {"max_steps": 1}), BEGUN_S)

    asyncio.run(try_them())
    return model


def new_id() -> str:
    return make_ulid(int(time.time() * 1000), os.urandom(CHANCE_BYTES))


def results(report: Mapping[str, Any]) -> list[int]:
    """Numbers of the attempts whose result counts."""
    return [attempt["number"] for attempt in report["attempts"] if attempt["state"] == "completed"]


def _brief(report: Mapping[str, Any]) -> str:
    names = ("name", "state", "reason", "attempts", "progress", "happened")
    return json.dumps({name: report.get(name) for name in names}, indent=1)
