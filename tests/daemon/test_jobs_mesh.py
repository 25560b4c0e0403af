"""Training jobs of a mesh of real daemons on one machine: submitted anywhere, seen from everywhere, and whoever dies,
they go on."""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from tests.daemon.training_daemon import SPEC, Machine, data, until_gone, until_step

from tiermesh.client import RemoteClient, TrainingJob
from tiermesh.protocol.training_events import StepDone

pytest.importorskip("torch")
from tests import tiny_model

LIMIT_S = 180.0
pytestmark = pytest.mark.timeout(600)
LONG = SPEC | {"num_epochs": 8, "save_interval": 10}
"""Some ten seconds."""
SHORT, ENDLESS = LONG | {"num_epochs": 2}, LONG | {"num_epochs": 2000}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a folder beside it for what a trial finds out, which one node makes for all: they are one machine."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "estimates").mkdir()
    made = tiny_model.build_folder(folder / "tiny")

    async def try_it() -> None:
        alone = Machine(folder, made, estimates=folder / "estimates")
        try:
            async with RemoteClient(await alone.up(), timeout_s=LIMIT_S) as client:
                await until_step(await client.train(SHORT, data()), 1)
        finally:
            await alone.end(signal.SIGKILL)

    asyncio.run(try_it())
    return made


class Mesh:
    """Machines that know one another, and a client of each that is up."""

    def __init__(self, machines: list[Machine], exits: AsyncExitStack) -> None:
        self.machines = machines
        self._exits = exits

    def __getitem__(self, name: str) -> Machine:
        return next(each for each in self.machines if each.name == name)

    async def client(self, machine: Machine) -> RemoteClient:
        """Of the daemon that runs on it now."""
        client = RemoteClient(machine.url, token=machine.token, timeout_s=LIMIT_S)
        return await self._exits.enter_async_context(client)

    async def coordinator(self, *away: Machine) -> Machine:
        """Who leads, as all that are up agree."""
        up = self.others(*away)
        clients = [await self.client(each) for each in up]
        async with asyncio.timeout(LIMIT_S):
            while True:
                told = [await client.cluster() for client in clients]
                leaders = {each.coordinator.name if each.coordinator else "" for each in told}
                known = [{node.name for node in each.nodes if node.state == "up"} for each in told]
                if len(leaders) == 1 and "" not in leaders and all(names == {m.name for m in up} for names in known):
                    return self[leaders.pop()]
                await asyncio.sleep(0.05)

    def others(self, *machines: Machine) -> list[Machine]:
        return [each for each in self.machines if each not in machines]


@asynccontextmanager
async def mesh(folder: Path, model: Path, *names: str) -> AsyncIterator[Mesh]:
    cluster, kept = f"test-{secrets.token_hex(4)}", model.parent / "estimates"
    machines = [
        Machine(folder / name, model, name=name, token="secret", cluster=cluster, estimates=kept) for name in names
    ]
    async with AsyncExitStack() as exits:
        for each in machines:
            each.folder.mkdir()
            each.join = machines[0].url.removeprefix("http://")
            await each.up()
            exits.push_async_callback(each.end, signal.SIGKILL)
        made = Mesh(machines, exits)
        await made.coordinator()
        yield made


async def test_submitted_to_a_follower_and_seen_from_everywhere(tmp_path: Path, model: Path) -> None:
    async with mesh(tmp_path, model, "a", "b") as made, asyncio.timeout(LIMIT_S):
        leader = await made.coordinator()
        (follower,) = made.others(leader)
        near, far = await made.client(follower), await made.client(leader)
        job = await near.train(SHORT, data(), name="faq")
        seen = [event async for event in (await far.job("faq")).events()]
        steps = [event.step for event in seen if isinstance(event, StepDone)]
        assert steps == list(range(1, len(steps) + 1))
        again = [event async for event in job.events()]
        assert [event.step for event in again if isinstance(event, StepDone)] == steps
        reports = [await client.job_report(job.id) for client in (near, far)]
        assert [report.state for report in reports] == ["completed", "completed"]
        assert reports[0] == reports[1]
        assert reports[0].node in ("a", "b")
        for client in (near, far):
            assert [listed.id for listed in await client.jobs()] == [job.id]


async def test_the_training_node_dies_and_the_job_goes_on_elsewhere(tmp_path: Path, model: Path) -> None:
    async with mesh(tmp_path, model, "a", "b", "c") as made:
        leader = await made.coordinator()
        job = await (await made.client(leader)).train(LONG | {"num_epochs": 40}, data())
        await until_step(job, 25)
        trains = made[(await job.refresh()).node]
        await trains.end(signal.SIGKILL)
        watcher = made.others(trains)[0]
        following = await (await made.client(watcher)).job(job.id)
        following.after = job.after
        async with asyncio.timeout(LIMIT_S):
            seen = [event async for event in following.events()]
        assert following.report.state == "completed", watcher.log()
        tried = following.report.attempts
        assert [each.number for each in tried] == [1, 2]
        assert (tried[1].cause, tried[1].node != trains.name) == ("moved", True)
        steps = [event.step for event in seen if isinstance(event, StepDone)]
        assert steps[0] > 1, "from a copied checkpoint"
        assert steps == list(range(steps[0], steps[-1] + 1))


async def test_the_coordinator_dies_and_all_jobs_complete(tmp_path: Path, model: Path) -> None:
    async with mesh(tmp_path, model, "a", "b", "c") as made:
        leader = await made.coordinator()
        other = made.others(leader)[0]
        client = await made.client(other)
        jobs = [await client.train(LONG, data(), name=f"job{n}") for n in range(4)]
        await until_step(jobs[0], 3)
        running = {report.id: report.node for report in await client.jobs() if report.state == "running"}
        assert running
        await leader.end(signal.SIGKILL)
        async with asyncio.timeout(LIMIT_S):
            ends = [await job.wait() for job in jobs]
        assert [end.state for end in ends] == ["completed"] * 4, other.log()
        for end in ends:
            if running.get(end.id, leader.name) != leader.name:
                assert len(end.attempts) == 1, "what ran elsewhere was not interrupted"


async def test_all_are_killed_and_started_again(tmp_path: Path, model: Path) -> None:
    async with mesh(tmp_path, model, "a", "b") as made:
        client = await made.client(made["a"])
        jobs = [await client.train(LONG, data(), name=f"job{n}") for n in range(3)]
        await until_step(jobs[0], 12)
        for each in made.machines:
            await each.end(signal.SIGKILL)
        made["a"].join = ""
        await made["a"].up()
        made["b"].join = made["a"].url.removeprefix("http://")
        await made["b"].up()
        after = await made.client(made["b"])
        async with asyncio.timeout(LIMIT_S):
            ends = [await (await after.job(job.id)).wait() for job in jobs]
        assert [end.state for end in ends] == ["completed"] * 3, made["a"].log()


async def test_a_node_that_drains_lets_go_of_its_job(tmp_path: Path, model: Path) -> None:
    async with mesh(tmp_path, model, "a", "b") as made:
        client = await made.client(made["a"])
        job = await client.train(LONG | {"num_epochs": 200}, data())
        await until_step(job, 3)
        first = (await job.refresh()).node
        await client.order("drain", first)
        async with asyncio.timeout(LIMIT_S):
            while (report := await job.refresh()).node == first or not report.progress.step:
                await asyncio.sleep(0.05)
        assert [each.cause for each in report.attempts] == ["first", "moved"]
        await until_step(job, report.progress.step + 1)
        assert (await job.cancel()).state == "cancelling"
        assert (await job.wait()).state == "cancelled"


async def test_cancelled_from_anywhere_within_two_seconds(tmp_path: Path, model: Path) -> None:
    async with mesh(tmp_path, model, "a", "b") as made, asyncio.timeout(LIMIT_S):
        job = await (await made.client(made["a"])).train(ENDLESS, data())
        await until_step(job, 3)
        trains = made[(await job.refresh()).node]
        (other,) = made.others(trains)
        await (await (await made.client(other)).job(job.id)).cancel()
        await until_gone(trains.worker(job), 2.0)
        assert (await job.wait()).state == "cancelled"
        newest = (trains.run(job) / "checkpoints" / "latest").read_text().strip()
        assert newest == trains.events(job)[-1]["checkpoint"]


async def test_without_a_coordinator_all_can_be_read_and_submissions_wait(tmp_path: Path, model: Path) -> None:
    """The same submission, sent again, is one job."""
    async with mesh(tmp_path, model, "a", "b") as made, asyncio.timeout(LIMIT_S):
        leader = await made.coordinator()
        (follower,) = made.others(leader)
        client = await made.client(follower)
        job = await client.train(SHORT, data(), name="faq")
        assert (await job.wait()).state == "completed"
        again = [client.train(SHORT, data(), name="faq", job_id=job.id) for _ in range(5)]
        assert {each.id for each in await asyncio.gather(*again)} == {job.id}
        await leader.end(signal.SIGKILL)
        assert (await client.job_report("faq")).id == job.id
        later: TrainingJob = await client.train(SHORT, data(), name="later")
        assert later.report.state in ("estimating", "queued", "running")
        assert [report.name for report in await client.jobs()] == ["faq", "later"]
