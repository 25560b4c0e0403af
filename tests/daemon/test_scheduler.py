"""A submission is seen to its end, whoever waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, cast

import pytest

from tiermesh.core.jobs import Asked, Dataset, Job, JobId
from tiermesh.daemon.scheduler import Scheduler
from tiermesh.errors import JobExists, TiermeshError
from tiermesh.protocol.jobs import TrainRequest
from tiermesh.protocol.ulid import make_ulid
from tiermesh.types import NodeId, View

ME = NodeId("a" * 32)
JOB = Job(
    id=JobId(make_ulid(1, b"0123456789")),
    asked=Asked(name="faq", spec={}, data=Dataset("0" * 64, "faq")),
    holders=(ME,),
)
REQUEST = TrainRequest.model_validate({"spec": {}, "data": {"text": "one"}})


class Coordinator:
    """This node's own: accepts when it may."""

    leads = True

    def __init__(self, refusal: TiermeshError | None = None) -> None:
        self.may_accept, self.asked = asyncio.Event(), asyncio.Event()
        self.refusal = refusal
        self.held: list[str] = []
        self.spread_over: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.create_task(work))

    async def accept(self, job: Job) -> Job:
        self.asked.set()
        await self.may_accept.wait()
        if self.refusal is not None:
            raise self.refusal
        return job

    async def job(self, request: TrainRequest, submitter: str) -> Job:
        return JOB

    def hold(self, job: str, _: object) -> None:
        self.held.append(job)

    async def spread(self, job: Job) -> None:
        self.spread_over.append(job.id)

    def scheduler(self) -> Scheduler:
        me = cast(Any, self)
        return Scheduler(
            me=ME,
            name="desk",
            reactor=me,
            messenger=me,
            copies=me,
            spreading=me,
            submissions=me,
            view=View,
        )


async def test_a_client_that_leaves_takes_nothing_with_it() -> None:
    """What is accepted then has its data kept and copied like any other."""
    node = Coordinator()
    submitting = asyncio.create_task(node.scheduler().submit(REQUEST))
    await node.asked.wait()
    submitting.cancel()
    await asyncio.gather(submitting, return_exceptions=True)
    node.may_accept.set()
    await node.tasks[0]
    await node.tasks[1]
    assert (node.held, node.spread_over) == ([JOB.id], [JOB.id])


async def test_a_refusal_reaches_who_waits() -> None:
    node = Coordinator(JobExists("id: is another job"))
    node.may_accept.set()
    with pytest.raises(JobExists):
        await node.scheduler().submit(REQUEST)
    assert node.held == []
