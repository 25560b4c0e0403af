"""A daemon that trains, with the real worker on a tiny model: followed, cancelled, killed, taken up again."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from tests.daemon.training_daemon import (
    ENDLESS,
    LIMIT_S,
    SPEC,
    data,
    machine,
    until_event,
    until_gone,
    until_step,
)

from tiermesh.adapters.event_lines import ATTEMPT
from tiermesh.client import RemoteClient
from tiermesh.errors import NotPossibleNow, Unauthenticated
from tiermesh.protocol.jobs import JobReport
from tiermesh.protocol.training_events import Completed, StepDone

pytest.importorskip("torch")
from tests import tiny_model

pytestmark = pytest.mark.timeout(300)
ORPHAN_LIMIT_S = 5.0
CANCEL_LIMIT_S = 2.0
DEATHS = 10


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a folder beside it for what trials find out, which are made once for all."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "estimates").mkdir()
    return tiny_model.build_folder(folder / "tiny")


@pytest.mark.long
async def test_from_a_submission_to_a_result(tmp_path: Path, model: Path) -> None:
    async with machine(tmp_path, model) as (desk, client), asyncio.timeout(LIMIT_S):
        job = await client.train(SPEC, data(), name="faq")
        assert (job.name, job.report.model, job.report.method) == ("faq", "tiny", "lora")
        told = [event async for event in job.events()]
        steps = [event.step for event in told if isinstance(event, StepDone)]
        assert steps == list(range(1, len(steps) + 1))
        completed = next(event for event in told if isinstance(event, Completed))
        assert completed.held_out_loss is not None
        assert completed.held_out_loss_before is not None
        assert completed.held_out_loss < completed.held_out_loss_before
        states = [event.state for event in told if isinstance(event, JobReport)]
        assert (states[-1], set(states) - {"estimating", "queued", "running"}) == ("completed", {"completed"})

        report = await job.refresh()
        assert (report.state, report.result["step"]) == ("completed", len(steps))
        assert (Path(report.result["result"]) / "adapter_model.safetensors").exists()
        assert "faq.jsonl" in (Path(report.result["result"]) / "README.md").read_text()
        assert [listed.name for listed in await client.jobs()] == ["faq"]
        assert (await client.job("faq")).id == job.id
        with pytest.raises(NotPossibleNow, match="job faq is completed: nothing is left to cancel"):
            await job.cancel()

        again = await client.train(SPEC, data(), name="other", job_id=job.id)
        assert (again.id, again.name, len(await client.jobs())) == (job.id, "faq", 1)

        late = await client.job("faq")
        late.after = ATTEMPT + len(desk.events(job)) - 3
        assert len([event async for event in late.events() if not isinstance(event, JobReport)]) == 3


@pytest.mark.long
async def test_one_trains_the_other_waits_and_both_are_cancelled(tmp_path: Path, model: Path) -> None:
    async with machine(tmp_path, model) as (desk, client), asyncio.timeout(LIMIT_S):
        first = await client.train(ENDLESS, data(), name="first")
        second = await client.train(ENDLESS, data(), name="first")
        assert second.name == "first-2"
        await until_step(first, 3)
        while (waiting := await second.refresh()).state == "estimating":
            await asyncio.sleep(0.05)
        assert (waiting.state, waiting.reason) == ("queued", "waits: desk trains first, and has one training slot")
        assert (await second.cancel()).state == "cancelled"
        asked_at = time.monotonic()
        await first.cancel()
        await until_gone(desk.worker(first), CANCEL_LIMIT_S)
        assert (await first.wait()).state == "cancelled"
        assert time.monotonic() < asked_at + CANCEL_LIMIT_S + 0.5
        newest = (desk.run(first) / "checkpoints" / "latest").read_text().strip()
        assert newest == desk.events(first)[-1]["checkpoint"]


@pytest.mark.alone
async def test_killed_while_it_trains_it_leaves_no_orphan_and_the_job_goes_on(tmp_path: Path, model: Path) -> None:
    spec = ENDLESS | {"num_epochs": 3}
    async with machine(tmp_path, model) as (desk, client), asyncio.timeout(LIMIT_S):
        job = await client.train(spec, data())
        await until_step(job, 5)
        pid = desk.worker(job)
        await desk.end(signal.SIGKILL)
        took_s = await until_gone(pid, ORPHAN_LIMIT_S)
        print(f"the worker ended {took_s:.2f} s after the daemon")
        stopped = desk.events(job)[-1]
        assert stopped["event"] == "stopped"
        assert (desk.run(job) / "checkpoints" / "latest").read_text().strip() == stopped["checkpoint"]

        async with RemoteClient(await desk.up(), timeout_s=LIMIT_S) as after:
            again = await after.job(job.id)
            report = await again.wait()
            assert (report.state, report.attempt) == ("completed", 1), desk.log()
            resumed = next(event for event in desk.events(job) if event["event"] == "resumed")
            assert (resumed["step"], resumed["differences"]) == (stopped["step"], [])
            steps = [event["step"] for event in desk.events(job) if event["event"] == "step"]
            assert steps == list(range(1, len(steps) + 1)), "no step twice, none left out"

            undisturbed = await after.train(spec, data())
            assert (await undisturbed.wait()).state == "completed"
            assert desk.losses(undisturbed) == desk.losses(job)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.long
async def test_ten_deaths_of_the_daemon_change_nothing(tmp_path: Path, model: Path) -> None:
    """Each at a random moment of a job's life, its beginning too; `-s` shows how long the workers outlived it."""
    spec, chance, outlived = SPEC | {"num_epochs": 60, "save_interval": 50}, random.Random(7), []
    async with machine(tmp_path, model) as (desk, client):
        job, planned = await client.train(spec, data()), 0
        for death in range(DEATHS):
            if death % 2:  # while it trains; the others are more likely while the worker loads
                await until_event(desk, job, "planned", planned + 1)
            await asyncio.sleep(chance.uniform(0.0, 1.0))
            workers = desk.workers()
            await desk.end(signal.SIGKILL)
            outlived += [await until_gone(pid, ORPHAN_LIMIT_S) for pid in workers]
            planned = sum(event["event"] == "planned" for event in desk.events(job))
            url = await desk.up()
        async with RemoteClient(url, timeout_s=LIMIT_S) as after, asyncio.timeout(600):
            assert (await (await after.job(job.id)).wait()).state == "completed", desk.log()
            undisturbed = await after.train(spec, data())
            assert (await undisturbed.wait()).state == "completed"
        assert desk.losses(undisturbed) == desk.losses(job)
        stops = sum(event["event"] == "stopped" for event in desk.events(job))
        told = f"{DEATHS} deaths, {len(outlived)} of them with a worker, {stops} after its first step"
        print(f"{told}; workers ended {min(outlived):.2f} to {max(outlived):.2f} s after the daemon")
        assert stops >= 3


@pytest.mark.long
@pytest.mark.long
async def test_a_daemon_that_comes_back_at_once_waits_for_the_old_worker(tmp_path: Path, model: Path) -> None:
    async with machine(tmp_path, model) as (desk, client), asyncio.timeout(LIMIT_S):
        job = await client.train(ENDLESS | {"num_epochs": 3}, data())
        await until_step(job, 5)
        await desk.end(signal.SIGKILL)
        async with RemoteClient(await desk.up(), timeout_s=LIMIT_S) as after:
            assert (await (await after.job(job.id)).wait()).state == "completed"
        assert [event["event"] for event in desk.events(job) if event["event"] in ("stopped", "resumed", "failed")] == [
            "stopped",
            "resumed",
        ]


@pytest.mark.long
async def test_told_to_end_it_saves_and_the_next_daemon_goes_on(tmp_path: Path, model: Path) -> None:
    async with machine(tmp_path, model) as (desk, client), asyncio.timeout(LIMIT_S):
        job = await client.train(ENDLESS | {"num_epochs": 3}, data())
        await until_step(job, 5)
        pid = desk.worker(job)
        await desk.end(signal.SIGTERM)
        assert desk.process is not None
        assert desk.process.returncode == 0, desk.log()
        await until_gone(pid, 0.1)
        stopped = desk.events(job)[-1]
        assert stopped["event"] == "stopped"
        async with RemoteClient(await desk.up(), timeout_s=LIMIT_S) as after:
            report = await (await after.job(job.id)).wait()
            assert report.state == "completed", report
        assert next(e for e in desk.events(job) if e["event"] == "resumed")["step"] == stopped["step"]


async def test_a_token_is_demanded_everywhere(tmp_path: Path, model: Path) -> None:
    async with machine(tmp_path, model, token="secret") as (_, client):
        async with RemoteClient(client.url, token="wrong") as stranger:
            with pytest.raises(Unauthenticated):
                await stranger.jobs()
            with pytest.raises(Unauthenticated):
                await stranger.train(SPEC, data())
            with pytest.raises(Unauthenticated):
                await stranger.job("any")
        assert await client.jobs() == []


@pytest.mark.long
async def test_a_cancelled_job_is_taken_up_by_hand(tmp_path: Path, model: Path) -> None:
    """As docs/training.md tells: a copy of its run's folder is a run of this machine."""
    async with machine(tmp_path, model) as (desk, client), asyncio.timeout(LIMIT_S):
        job = await client.train(ENDLESS | {"save_interval": 10}, data(), name="faq")
        await until_step(job, 25)
        await job.cancel()
        assert (await job.wait()).state == "cancelled"
        stopped_at = max(desk.losses(job))
        mine = tmp_path / "answers"
        shutil.copytree(desk.run(job), mine)
        await client.remove_job(job.id)
        kept = mine / "input-data" / "faq.jsonl"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tiermesh.cli.main", "train", "run", "--local", "--out", str(mine)),
            *("--model", str(model), "--data", str(kept), "--set", "num_epochs=2", "--json"),
            env=os.environ | {"TIERMESH_CACHE": str(tmp_path / "cache")},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, said = await process.communicate()
        assert process.returncode == 0, said.decode()
        told = [json.loads(line) for line in out.splitlines()]
        steps = [event["step"] for event in told if event["event"] == "step"]
        assert steps[0] == stopped_at + 1, "nothing is done again: it stopped after a checkpoint"
        assert (mine / "result" / "adapter_model.safetensors").exists()
