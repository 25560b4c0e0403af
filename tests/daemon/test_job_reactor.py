"""The owner of the jobs' records: what it takes from others, and what it does about records that make no sense."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from typing import Any, cast

import pytest

from tiermesh.config import PolicyDocument
from tiermesh.core.attempts import Attempt, Told
from tiermesh.core.jobs import Asked, Course, Dataset, Job, JobId, job_to_dict
from tiermesh.daemon.job_reactor import JobReactor
from tiermesh.protocol.ulid import make_ulid
from tiermesh.types import Ballot, Member, NodeId, SessionId, Status, View

ME, OTHER = NodeId("a" * 32), NodeId("b" * 32)


def job(second: int, **asked: Any) -> Job:
    made = make_ulid(second * 1000, b"0123456789")
    request = Asked(name="faq", spec={}, data=Dataset("0" * 64, "faq.jsonl"), submitted_at=5.0)
    return Job(id=JobId(made), asked=replace(request, **asked), course=Course(state="completed"))


class Node:
    """A disk, and what was held."""

    def __init__(self) -> None:
        self.disk: dict[str, Job] = {}
        self.leads = False
        self.policy = PolicyDocument()
        me = cast(Any, self)
        self.reactor = JobReactor(
            me=ME,
            store=me,
            messenger=me,
            copies=me,
            view=self.view,
            leads=lambda: self.leads,
            policy=lambda: self.policy,
            on_serve=lambda _: None,
            on_forgotten=lambda _: None,
        )

    def view(self) -> View:
        return View(Ballot(1, ME), 1, ME, {ME: Member(ME, SessionId("1"), Status("node-a", ()), 1)})

    async def records(self) -> list[Job]:
        return list(self.disk.values())

    async def save_records(self, jobs: Iterable[Job]) -> None:
        self.disk |= {job.id: job for job in jobs}

    def hold(self, *_: object) -> None:
        pass

    def over(self, *_: object) -> None:
        pass

    def forget_result(self, *_: object) -> None:
        pass


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    made = Node()
    async with asyncio.timeout(10):
        yield made
        await made.reactor.close()


async def test_a_record_that_can_not_be_read_keeps_none_of_the_others_away(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a later version, say; whoever sent it hears that it is not kept, and the log has it once."""
    await node.reactor.open()
    good, odd = job(1), job_to_dict(job(2)) | {"course": {"state": "dreaming"}}
    for _ in range(3):
        assert await node.reactor.learn([odd, job_to_dict(good)], OTHER) == [job(2).id]
    assert node.disk == {good.id: good}
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert job(2).id in caplog.text
    assert "state: one of" in caplog.text


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
async def test_of_two_jobs_with_one_name_every_node_means_the_same(node: Node, order: tuple[int, int]) -> None:
    """Two halves of a partition took both at one moment; the later is that which is served by the name."""
    await node.reactor.open()
    await node.reactor.learn([job_to_dict(job(second)) for second in order], OTHER)
    assert node.reactor.find("faq").id == job(2).id
    await node.reactor.learn([job_to_dict(job(3, submitted_at=4.0))], OTHER)
    assert node.reactor.find("faq").id == job(2).id, "it was submitted before them"


async def test_a_record_that_makes_no_sense_is_logged_once_and_shown_as_it_is(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    """From a damaged disk: half of a micro-batch of "four" is to be tried."""
    failed = Told(seq=1, state="failed", failure="out_of_memory", reason="no memory")
    attempt = Attempt(number=1, ballot=Ballot(1, ME), node=ME, spec={"micro_batch_size": "four"}, told=failed)
    odd = replace(job(1), attempts=(attempt,), course=Course(state="running"))
    node.disk = {odd.id: odd}
    node.leads = True
    await node.reactor.open()
    for _ in range(5):
        node.reactor._tick()
    await node.reactor._queue.settled()
    assert "its record can't be followed: TypeError" in node.reactor.find(odd.id).reason
    (told,) = caplog.records
    assert odd.id in told.getMessage()
    assert told.exc_info is not None
