"""The jobs of the mesh for people and programs, on whatever node they ask: the coordinator answers, wherever it is."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from tiermesh.adapters import clock
from tiermesh.adapters.peer_requests import ASK_S
from tiermesh.core.foreman import Decision
from tiermesh.core.jobs import Job, JobId, job_to_dict
from tiermesh.daemon.job_messenger import Messenger
from tiermesh.daemon.job_reactor import ACCEPTED_S, JobReactor, unknown
from tiermesh.daemon.job_reports import report_of
from tiermesh.daemon.records import datasets
from tiermesh.errors import NotFound, Unavailable
from tiermesh.protocol.job_orders import Record
from tiermesh.protocol.jobs import JobReport, TrainRequest
from tiermesh.types import Member, NodeId, View

if TYPE_CHECKING:
    from tiermesh.daemon.copies import Copies
    from tiermesh.daemon.data_spreading import DataSpreading
    from tiermesh.daemon.submission import Submissions

log = logging.getLogger(__name__)

LOOK_S = 0.5
"""How often a node that does not lead asks how a job is that somebody watches."""


class Scheduler:
    """One on every node. Without a coordinator, what this node has can be read, and nothing be asked for."""

    def __init__(
        self,
        *,
        me: NodeId,
        name: str,
        reactor: JobReactor,
        messenger: Messenger,
        copies: Copies,
        spreading: DataSpreading,
        submissions: Submissions,
        view: Callable[[], View],
    ) -> None:
        self._me = me
        self._name = name
        self._reactor = reactor
        self._messenger = messenger
        self._copies = copies
        self._spreading = spreading
        self._submissions = submissions
        self._view = view
        self._glances: dict[JobId, tuple[float, Job]] = {}
        """What the coordinator said a moment ago, to all who watch here."""

    @property
    def leads(self) -> bool:
        """Does this node decide?"""
        return self._reactor.leads

    async def submit(self, request: TrainRequest, *, submitter: str = "") -> Job:
        """Have a job accepted; the same request twice is one job. On two disks when it returns, if there are two.

        Raises `InvalidSpec`, `DataUnusable`, `JobRefused`, `JobExists` or `Unavailable`.
        """
        job = await self._submissions.job(request, submitter)
        answer: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        self._reactor.start(self._accept(job, answer))  # to its end, also when nobody waits for the answer any more
        return await answer

    async def find(self, key: str) -> Job:
        """By id or name: the coordinator's record or, where there is none, this node's. Raises `NotFound`."""
        found: Job | None = None
        if not self.leads:
            try:
                found = await self._messenger.job_of_leader("find", {"job": key})
            except (Unavailable, NotFound) as error:
                log.debug("job %s is looked for here: %s", key, error)
        found = self._reactor.find(key) if found is None else found
        if found.forgotten:
            raise unknown(key)
        return found

    async def glance(self, job: JobId) -> Job:
        """As `find`, for those who look again and again: what another node said is believed for `LOOK_S`."""
        if self.leads:
            return self._reactor.find(job)
        at, known = self._glances.get(job, (-math.inf, None))
        if known is None or clock.now() > at + LOOK_S:
            for old in [key for key, (since, _) in self._glances.items() if clock.now() > since + LOOK_S]:
                del self._glances[old]
            known = await self.find(job)
            self._glances[job] = clock.now(), known
        return known

    async def all(self) -> list[Job]:
        """The newest last; as `find`."""
        known = {job.id: job for job in self._reactor.all()}
        if not self.leads:
            try:
                known |= {job.id: job for job in await self._messenger.jobs_of_leader()}
            except Unavailable as error:
                log.debug("jobs are listed from here: %s", error)
        told = (job for job in known.values() if not job.forgotten)
        return sorted(told, key=lambda job: (job.submitted_at, job.id))

    async def cancel(self, key: str) -> Job:
        """End it, keeping its last checkpoint. Durable when it returns. Raises as `decide`."""
        return await self.decide(key, "cancel")

    async def decide(self, key: str, decision: Decision) -> Job:
        """What a person wants done. Durable when it returns. Raises `NotFound`, `NotPossibleNow`, `Unavailable`."""
        if self.leads:
            return await self._reactor.decide(key, decision)
        return await self._messenger.job_of_leader("decide", {"job": key, "decision": decision})

    async def watch(self, key: str) -> AsyncIterator[Job]:
        """The job as it is, and again at each change, until it is over."""
        job = await self.find(key)
        yield job
        while not job.is_over:
            await self.changed(job.id)
            found = await self.glance(job.id)
            if found != job:
                job = found
                yield job

    async def changed(self, job: JobId, within_s: float = LOOK_S) -> None:
        """Wait until something may have happened to it, `within_s` at most."""
        await self._reactor.watchers.changed(job, within_s)

    def report(self, job: Job, *, brief: bool = False) -> JobReport:
        """For a person or a program; `brief` leaves out what is long."""
        members = [member for member in self._view().members.values() if member.state != "down"]
        served = [m.status.name for m in members if any(model.job == job.id for model in m.status.models)]
        return report_of(job, self.node_name, self._name, served=served, brief=brief)

    def node_name(self, node: NodeId) -> str:
        """As people call it."""
        member = self._messenger.member(node)
        return member.status.name if member is not None else self._name if node == self._me else node[:8]

    def member(self, node: NodeId) -> Member | None:
        """Where it may be reached."""
        return self._view().members.get(node)

    def is_over(self, job: str) -> bool | None:
        """None: unknown here."""
        return self._reactor.is_over(job)

    def note(self, job: str, kind: str, text: str) -> None:
        """Something happened around a job; kept where this node leads."""
        self._reactor.note(job, kind, text)

    async def _accept(self, job: Job, answer: asyncio.Future[Job]) -> None:
        try:
            if self.leads:
                accepted = await self._reactor.accept(job)
            else:
                body = Record(record=job_to_dict(job)).model_dump()
                accepted = await self._messenger.job_of_leader("submit", body, ACCEPTED_S + ASK_S)
            if not accepted.is_over:
                self._copies.hold(accepted.id, datasets(accepted))
                self._reactor.start(self._spreading.spread(accepted))
            if not answer.done():
                answer.set_result(accepted)
        except Exception as error:
            if answer.done():
                raise
            answer.set_exception(error)
        finally:
            answer.cancel()
