"""Training jobs of a mesh of three real daemons on one machine: submitted anywhere, seen from everywhere, and whoever
rests or dies, they go on. The rest of it, with networks that are cut, is in `tests/network/test_jobs.py`."""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio
from tests.daemon.training_daemon import LIMIT_S, SPEC, Machine, data, until_gone, until_step

from tiermesh.client import RemoteClient, TrainingJob
from tiermesh.protocol.training_events import StepDone

pytest.importorskip("torch")
from tests import tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]
SHORT = SPEC | {"num_epochs": 2, "save_interval": 10}
LONG, ENDLESS = SHORT | {"num_epochs": 12}, SHORT | {"num_epochs": 2000}
CANCEL_LIMIT_S = 8.0
"""At rest it is less than 2; after 10 it is killed, and could not save."""


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

    async def up(self, machine: Machine) -> None:
        """Started, by whichever other one is up, until all know it."""
        others = [each for each in self.others(machine) if each.process and each.process.returncode is None]
        machine.join = others[0].url.removeprefix("http://") if others else ""
        await machine.up()

    async def coordinator(self) -> Machine:
        """Who leads, as all agree."""
        clients = [await self.client(each) for each in self.machines]
        async with asyncio.timeout(LIMIT_S):
            while True:
                told = [await client.cluster() for client in clients]
                leaders = {each.coordinator.name if each.coordinator else "" for each in told}
                up = [sum(node.state == "up" for node in each.nodes) for each in told]
                if len(leaders) == 1 and "" not in leaders and set(up) == {len(self.machines)}:
                    return self[leaders.pop()]
                await asyncio.sleep(0.05)

    def others(self, *machines: Machine) -> list[Machine]:
        return [each for each in self.machines if each not in machines]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """What a trial finds out is kept for all: they are one machine."""
    folder = tmp_path_factory.mktemp("mesh")
    (folder / "estimates").mkdir()
    model = await asyncio.to_thread(tiny_model.build_folder, folder / "tiny")
    cluster = f"test-{secrets.token_hex(4)}"
    machines = [
        Machine(folder / name, model, name=name, token="secret", cluster=cluster, estimates=folder / "estimates")
        for name in "abc"
    ]
    async with AsyncExitStack() as exits:
        made = Mesh(machines, exits)
        for each in machines:
            each.folder.mkdir()
            exits.push_async_callback(each.end, signal.SIGKILL)
            await made.up(each)
        yield made


async def test_submitted_to_a_follower_and_seen_from_everywhere(mesh: Mesh) -> None:
    async with asyncio.timeout(LIMIT_S):
        leader = await mesh.coordinator()
        clients = [await mesh.client(each) for each in (*mesh.others(leader), leader)]
        job = await clients[0].train(SHORT, data(), name="faq")
        again = [clients[n % 3].train(SHORT, data(), name="faq", job_id=job.id) for n in range(5)]
        assert {each.id for each in await asyncio.gather(*again)} == {job.id}
        seen = [event async for event in (await clients[2].job("faq")).events()]
        steps = [event.step for event in seen if isinstance(event, StepDone)]
        assert steps == list(range(1, len(steps) + 1))
        for client in clients:
            told = [event async for event in (await client.job(job.id)).events()]
            assert [event.step for event in told if isinstance(event, StepDone)] == steps
            report = await client.job_report("faq")
            assert (report.id, report.state, len(report.attempts)) == (job.id, "completed", 1)
            assert [listed.name for listed in await client.jobs()] == ["faq"]


async def test_cancelled_from_another_node_it_saves_and_ends(mesh: Mesh) -> None:
    async with asyncio.timeout(LIMIT_S):
        job = await (await mesh.client(await mesh.coordinator())).train(ENDLESS, data())
        await until_step(job, 3)
        trains = mesh[(await job.refresh()).node]
        await (await (await mesh.client(mesh.others(trains)[0])).job(job.id)).cancel()
        await until_gone(trains.worker(job), CANCEL_LIMIT_S)
        assert (await job.wait()).state == "cancelled"
        newest = (trains.run(job) / "checkpoints" / "latest").read_text().strip()
        assert newest == trains.events(job)[-1]["checkpoint"]


@pytest.mark.long
async def test_a_node_that_drains_lets_go_of_its_job(mesh: Mesh) -> None:
    async with asyncio.timeout(LIMIT_S):
        client = await mesh.client(mesh["a"])
        job = await client.train(ENDLESS, data())
        await until_step(job, 3)
        first = (await job.refresh()).node
        await client.order("drain", first)
        while (report := await job.refresh()).node == first or report.progress.phase != "train":
            await asyncio.sleep(0.05)
        assert [each.cause for each in report.attempts] == ["first", "moved"]
        stopped = next(event for event in mesh[first].events(job) if event["event"] == "stopped")
        resumed = next(event for event in mesh[report.node].events(job, 2) if event["event"] == "resumed")
        assert resumed["step"] == stopped["step"], "nothing is done again"
        await job.cancel()
        assert (await job.wait()).state == "cancelled"
        await client.order("resume", first)


async def test_the_training_node_dies_and_no_reader_is_told_anything_twice(mesh: Mesh) -> None:
    leader = await mesh.coordinator()
    job = await (await mesh.client(mesh.others(leader)[0])).train(LONG, data())
    await until_step(job, 60)
    trains = mesh[(await job.refresh()).node]
    await trains.end(signal.SIGKILL)
    following = await (await mesh.client(mesh.others(trains)[0])).job(job.id)
    following.after = job.after
    async with asyncio.timeout(LIMIT_S):
        seen = [event async for event in following.events()]
    assert following.report.state == "completed", mesh.others(trains)[0].log()
    tried = following.report.attempts
    assert [each.number for each in tried] == [1, 2]
    assert (tried[1].cause, tried[1].node != trains.name) == ("moved", True)
    steps = [event.step for event in seen if isinstance(event, StepDone)]
    assert steps[0] > 1, "from a copied checkpoint"
    assert steps == list(range(steps[0], steps[-1] + 1))
    await mesh.up(trains)


@pytest.mark.long
@pytest.mark.long
async def test_without_a_coordinator_all_can_be_read_and_submissions_wait(mesh: Mesh) -> None:
    async with asyncio.timeout(LIMIT_S):
        leader = await mesh.coordinator()
        client = await mesh.client(mesh.others(leader)[0])
        job = await client.train(SHORT, data(), name="read")
        assert (await job.wait()).state == "completed"
        await leader.end(signal.SIGKILL)
        later: TrainingJob = await client.train(SHORT, data(), name="later")
        assert (await client.job_report("read")).id == job.id
        assert later.id in [report.id for report in await client.jobs()]
        assert (await later.wait()).state == "completed"
