"""Jobs survive what happens to machines: each of these pulls a plug, and counts what came of it.

Daemons and workers are real, the model is tiny; on loopback, but where the network itself is cut.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.network.job_mesh import SPEC, JobMesh, Refused, job_mesh, new_id, results, tried_model
from tests.network.lan import Lan

pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

INTERVAL = 100
"""Steps between checkpoints: some seconds, so that a copy has time to travel in one."""
LONG = SPEC | {"max_steps": 6 * INTERVAL, "num_epochs": 1000, "save_interval": INTERVAL}
"""Half a minute of training on two cores that do other things too."""
RESUME_S = 20.0
COPY_S = 5.0
"""What a small checkpoint may take to another node, on a busy machine: the steps of so long are done again as well."""
OVER_S = 400.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tried_model(tmp_path_factory.mktemp("model"), SPEC, LONG)


@pytest.mark.long
async def test_a_job_runs_anywhere_and_every_node_tells_of_it(tmp_path: Path, model: Path) -> None:
    async with job_mesh(tmp_path, model) as jobs:
        for node in range(3):
            with pytest.raises(Refused, match="no node is called nobody; there are n0, n1, n2;") as why:
                await jobs.submit(node, SPEC | {"target_gpu": "nobody"})
            assert (why.value.status, "'param': 'target_gpu'" in str(why.value)) == (400, True)
        job = await jobs.submit(0, SPEC, name="faq")
        report = await jobs.until_over(job, OVER_S)
        assert (report["state"], results(report)) == ("completed", [1]), report
        told = [await jobs.ask(node, "GET", f"/api/jobs/{job}/report.json") for node in range(3)]
        assert [len(each["curve"]["losses"]) for each in told] == [SPEC["max_steps"]] * 3
        listed = [await jobs.ask(node, "GET", "/api/jobs") for node in range(3)]
        assert [[each["name"] for each in one["jobs"]] for one in listed] == [["faq"]] * 3


@pytest.mark.long
async def test_a_coordinator_that_dies_takes_no_job_with_it(tmp_path: Path, model: Path) -> None:
    async with job_mesh(tmp_path, model) as jobs:
        leader = jobs.mesh.coordinator()
        trainer, other = jobs.mesh.others(leader)
        first = await jobs.submit(leader, LONG | {"target_gpu": f"n{trainer}"})
        short = LONG | {"max_steps": 10, "target_gpu": f"n{trainer}"}
        rest = [await jobs.submit(leader, short) for _ in range(3)]
        node, pid = await jobs.until_trained(first)
        assert node == trainer
        await jobs.until_step(first, 5)
        for job in rest:
            assert (await jobs.until(job, lambda report: report["state"] != "estimating", 60))["state"] == "queued"
        assert (await jobs.show(first))["state"] == "running"
        jobs.pull_plug(leader)
        for job in (first, *rest):
            report = await jobs.until_over(job, OVER_S, other, trainer)
            assert (report["state"], results(report)) == ("completed", [1]), report
        started = [event["pid"] for event in jobs.events(trainer, first) if event["event"] == "started"]
        assert started == [pid], "the training was not interrupted"
        assert {each["id"] for each in await _listed(jobs, other)} == {first, *rest}


@pytest.mark.long
async def test_one_submission_sent_five_times_is_one_job(tmp_path: Path, model: Path) -> None:
    async with job_mesh(tmp_path, model) as jobs:
        ident = new_id()
        for node in (0, 1, 2, 0, 1):
            assert await jobs.submit(node, SPEC, id=ident, name="once") == ident
        at_once = await asyncio.gather(*(jobs.submit(node % 3, SPEC, id=ident) for node in range(5)))
        assert set(at_once) == {ident}
        report = await jobs.until_over(ident, OVER_S)
        assert (report["state"], results(report), report["name"]) == ("completed", [1], "once")
        assert [each["id"] for each in await _listed(jobs, 2)] == [ident]


@pytest.mark.long
async def test_a_machine_that_dies_costs_at_most_one_interval(tmp_path: Path, model: Path) -> None:
    at = random.Random().randint(2 * INTERVAL, 5 * INTERVAL)
    async with job_mesh(tmp_path, model) as jobs:
        job = await jobs.submit(0, LONG)
        victim = await jobs.until_step(job, at)
        reached = max(jobs.steps(victim, job))
        jobs.pull_plug(victim)
        died_at = time.time()
        heirs = jobs.mesh.others(victim)
        report = await jobs.until_over(job, OVER_S, *heirs)
        assert (report["state"], results(report)) == ("completed", [2]), report
        second = report["attempts"][1]
        heir = next(node for node in heirs if second["node"] == f"n{node}")
        resumed = next(event for event in jobs.events(heir, job) if event["event"] == "resumed")
        started = [event["at"] for event in jobs.events(heir, job) if event["event"] == "started"][-1]
        print(
            f"killed at step {reached}, ordered again after {second['ordered_at'] - died_at:.1f} s, worker after "
            f"{started - died_at:.1f} s, training from step {resumed['step']} after {resumed['at'] - died_at:.1f} s"
        )
        assert second["ordered_at"] - died_at < RESUME_S
        saved = [event for event in jobs.events(victim, job) if event["event"] == "checkpoint"]
        assert resumed["step"] >= max((event["step"] for event in saved if event["at"] < died_at - COPY_S), default=0)
        assert resumed["step"] >= reached - 2 * INTERVAL
        assert resumed["differences"] == []

        undisturbed = await jobs.submit(heir, LONG)
        assert (await jobs.until_over(undisturbed, OVER_S, *heirs))["state"] == "completed"
        curve = await jobs.curve(job, *heirs)
        assert [step for step, _ in curve] == list(range(1, LONG["max_steps"] + 1))
        assert curve == await jobs.curve(undisturbed, *heirs)


@pytest.mark.long
async def test_a_machine_that_slept_is_fenced(tmp_path: Path, model: Path) -> None:
    async with job_mesh(tmp_path, model) as jobs:
        job = await jobs.submit(0, LONG)
        sleeper = await jobs.until_step(job, INTERVAL + 20)
        others = jobs.mesh.others(sleeper)
        jobs.freeze(sleeper)
        await jobs.until(job, lambda report: len(report["attempts"]) == 2, 2 * RESUME_S, *others)
        assert (await jobs.until_trained_elsewhere(job, sleeper)) in others
        jobs.thaw(sleeper)
        await _until(lambda: sleeper not in jobs.trainers(job), 2 * RESUME_S, "the old worker ends")
        report = await jobs.until_over(job, OVER_S, *others)
        assert (report["state"], results(report)) == ("completed", [2]), report
        assert report["attempts"][0]["state"] == "superseded"
        assert len(await jobs.curve(job, *others)) == LONG["max_steps"]
        assert (await jobs.show(job, sleeper))["state"] == "completed"


@pytest.mark.long
@pytest.mark.network
async def test_after_a_partition_there_is_one_result(
    make_lan: Callable[[int], Lan], tmp_path: Path, model: Path
) -> None:
    """The coordinator on one side, the worker on the other, until both halves have finished the job or nearly so."""
    lan = make_lan(3)
    async with job_mesh(tmp_path, model, lan=lan) as jobs:
        leader = jobs.mesh.coordinator()
        worker, third = jobs.mesh.others(leader)
        job = await jobs.submit(leader, LONG | {"target_gpu": f"n{worker}"})
        await jobs.until_step(job, INTERVAL + 20)
        lan.partition([leader, third], [worker])
        await jobs.until(job, lambda report: results(report) != [], OVER_S, worker)
        lan.heal()
        await jobs.mesh.until_agreed(within_s=60)
        for node in range(3):
            report = await jobs.until_over(job, OVER_S, node)
            assert (report["state"], len(results(report))) == ("completed", 1), report
        curves = [await jobs.curve(job, node) for node in range(3)]
        assert curves[0] == curves[1] == curves[2]
        assert len(curves[0]) == LONG["max_steps"]


@pytest.mark.long
async def test_after_a_power_cut_all_jobs_go_on(tmp_path: Path, model: Path) -> None:
    async with job_mesh(tmp_path, model) as jobs:
        running = await jobs.submit(0, LONG)
        target = await jobs.until_step(running, INTERVAL + 20)
        waiting = [await jobs.submit(node, SPEC | {"target_gpu": f"n{target}"}) for node in range(3)]
        reached = max(jobs.steps(target, running))
        jobs.pull_plug(0, 1, 2)
        await jobs.mesh.form()
        for job in (running, *waiting):
            report = await jobs.until_over(job, OVER_S)
            assert (report["state"], len(results(report))) == ("completed", 1), report
        resumed = [
            event["step"] for node in range(3) for event in jobs.events(node, running) if event["event"] == "resumed"
        ]
        assert resumed
        assert max(resumed) >= reached - INTERVAL
        assert len(await jobs.curve(running)) == LONG["max_steps"]


async def _listed(jobs: JobMesh, node: int) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = (await jobs.ask(node, "GET", "/api/jobs"))["jobs"]
    return listed


async def _until(condition: Callable[[], bool], within_s: float, what: str) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.1)
