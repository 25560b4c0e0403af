"""A daemon in this process, at its public doors, whose training workers play scripts: `tests.training_fake`."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.training_fake import PROGRAM, write_later_script, write_script
from tests.training_runs import write_model_stub

from tiermesh.adapters.estimator import Estimator
from tiermesh.adapters.trainer import Launch
from tiermesh.config import Flags, resolve_options
from tiermesh.core.admission import GIB
from tiermesh.core.jobs import Estimate
from tiermesh.daemon.app import Daemon
from tiermesh.protocol.run_folder import RunPlan
from tiermesh.protocol.ulid import make_ulid

LIMIT_S = 60.0
JSON = {"Content-Type": "application/json"}
STREAM = {"Content-Type": "application/octet-stream"}
TEXT = '{"prompt": "one?", "completion": "two"}\n{"prompt": "two?", "completion": "three"}\n'
DIGEST = hashlib.sha256(TEXT.encode()).hexdigest()
SPEC = {"model_name": "stub", "num_epochs": 1}
STEP = {"event": "step", "step": 7, "steps": 9, "epoch": 0.5, "loss": 1.0, "learning_rate": 1e-4}
COMPLETED = {"event": "completed", "step": 9, "result": "result", "held_out_loss": 1.0}
FAILED = {"event": "failed", "kind": "diverged", "message": "the loss jumped 6 times", "advice": "lower learning_rate"}
STOPPED = {"event": "stopped", "step": 7, "checkpoint": "step-00000007"}
POLICY = "{grace_s: 10, jobs: {max_retries: 0}, evaluation: {max_final_loss: any, max_gap: any, canary: false}}"
DONE: list[dict[str, Any]] = [{"say": STEP}, {"say": COMPLETED}]
LONG: list[dict[str, Any]] = [{"say": STEP}, {"until_told": True}, {"say": STOPPED}, {"exit": 75}]


@dataclass
class Desk:
    """A daemon in this process."""

    http: aiohttp.ClientSession
    url: str
    state: Path
    daemon: Daemon

    async def ask(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
        sent = None if method == "GET" else io.BytesIO(data)
        async with self.http.request(method, self.url + path, data=sent, headers=headers or JSON) as response:
            return response.status, json.loads(await response.read())

    async def train(
        self, *script: list[dict[str, Any]], attempts: Mapping[int, list[dict[str, Any]]] | None = None, **fields: Any
    ) -> dict[str, Any]:
        """Submit a job whose workers play `script`, those of later `attempts` by their numbers what is said there."""
        body = {"id": new_id(), "spec": SPEC, "data": {"name": "faq.jsonl", "text": TEXT}} | fields
        write_script(self.run(body["id"]), *script)
        for number, later in (attempts or {}).items():
            write_later_script(self.run(body["id"], number), later)
        status, report = await self.ask("POST", "/api/train", body)
        assert status == 200, report
        return dict(report)

    async def page(self, job: str) -> str:
        """Its report."""
        async with self.http.get(f"{self.url}/api/jobs/{job}/report") as response:
            assert (response.status, response.content_type) == (200, "text/markdown")
            return await response.text()

    async def until(self, job: str, *states: str) -> dict[str, Any]:
        async with asyncio.timeout(LIMIT_S):
            while (report := (await self.ask("GET", f"/api/jobs/{job}"))[1])["state"] not in states:
                await asyncio.sleep(0.02)
        return dict(report)

    async def until_step(self, job: str) -> None:
        async with asyncio.timeout(LIMIT_S):
            while (await self.ask("GET", f"/api/jobs/{job}"))[1]["progress"]["step"] < 7:
                await asyncio.sleep(0.02)

    async def until_told(self, job: str) -> None:
        """Until the mesh knows that this node trains `job`, or nothing."""
        async with asyncio.timeout(LIMIT_S):
            while (await self.ask("GET", "/api/cluster"))[1]["nodes"][0]["training"] != job:
                await asyncio.sleep(0.02)

    def run(self, job: str, attempt: int = 1) -> Path:
        return self.state / "jobs" / job / f"attempt-{attempt}"


def new_id() -> str:
    return make_ulid(secrets.randbits(40), secrets.token_bytes(10))


@asynccontextmanager
async def opened(
    tmp_path: Path, cluster: str, token: str = "", *, name: str = "desk", join: str = ""
) -> AsyncIterator[Desk]:
    """`join` is another one's URL, else it is alone and leads."""
    if not (tmp_path / "stub").exists():
        write_model_stub(tmp_path / "stub")
    options = resolve_options(
        Flags(
            name=name,
            cluster=cluster,
            join=(join.removeprefix("http://"),) if join else (),
            state_dir=tmp_path / "state",
            port=0,
            interface="127.0.0.1",
            no_detect=True,
            model=str(tmp_path / "stub"),
            config=tmp_path / "cluster.yaml",
        ),
        env={"MESH_TOKEN": token},
    )
    daemon = Daemon(options)
    try:
        await daemon.start()
        ended = asyncio.ensure_future(daemon.run())
        url = json.loads((tmp_path / "state" / "runtime.json").read_text())["url"]
        async with asyncio.timeout(LIMIT_S):
            while not (len(daemon._reactor.view.members) > 1 if join else daemon._training.scheduler.leads):
                await asyncio.sleep(0.02)
        async with aiohttp.ClientSession() as http:
            yield Desk(http, url, tmp_path / "state", daemon)
        daemon.stop()
        daemon.stop()
        await ended
    finally:
        await daemon.close()


def play_scripts(folder: Path, patch: pytest.MonkeyPatch, policy: str = POLICY) -> None:
    """Workers play scripts, and nobody judges what they say, unless the `policy` does. `folder` as for `opened`."""
    defaults = Launch.__init__.__kwdefaults__
    assert defaults is not None
    patch.setitem(defaults, "program", PROGRAM)
    patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    patch.setenv("TIERMESH_CACHE", str(folder / "cache"))
    patch.setattr(Estimator, "estimate", estimate)
    (folder / "cluster.yaml").write_text(policy)


async def estimate(self: Estimator, plan: RunPlan) -> Estimate:
    """What a trial of the real worker would find."""
    return Estimate(node=self._node, memory_bytes=GIB, seconds=1.0, steps=9, basis="made up")
