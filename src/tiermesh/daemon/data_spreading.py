"""A job's data on as many nodes as its record: spread at its submission, and again when those that had it are gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from tiermesh.adapters.background import Background
from tiermesh.config import PolicyDocument
from tiermesh.core.jobs import Job, JobId, job_to_dict
from tiermesh.core.replicas import lacks_copies
from tiermesh.daemon.job_messenger import Messenger
from tiermesh.daemon.job_reactor import JobReactor
from tiermesh.daemon.records import datasets
from tiermesh.errors import TiermeshError
from tiermesh.types import NodeId, View

if TYPE_CHECKING:
    from tiermesh.daemon.copies import Copies

log = logging.getLogger(__name__)

LOOK_S = 15.0
"""Between two looks. Copies are made when they were missing at the one before too: a machine restarts sooner, and may
have gigabytes."""


class DataSpreading:
    """One for a node. `start` when the reactor is open; `close` before it."""

    def __init__(
        self,
        *,
        me: NodeId,
        reactor: JobReactor,
        messenger: Messenger,
        copies: Copies,
        view: Callable[[], View],
        policy: Callable[[], PolicyDocument],
    ) -> None:
        self._me = me
        self._reactor = reactor
        self._messenger = messenger
        self._copies = copies
        self._view = view
        self._policy = policy
        self._background = Background()

    def start(self) -> None:
        """Look after the jobs, where this node leads."""
        self._background.start(self._watch())

    async def close(self) -> None:
        """What is being copied is gone on with by the next coordinator. May be called without `start`."""
        await self._background.close()

    async def spread(self, job: Job) -> None:
        """Its data, which is here, goes to other nodes as well, and they are named in its record."""
        await self._spread(job, ())

    async def _watch(self) -> None:
        lacking: set[JobId] = set()
        while True:
            await asyncio.sleep(LOOK_S)
            found = [job for job in self._reactor.all() if self._lacks(job)] if self._reactor.leads else []
            before, lacking = lacking, {job.id for job in found}
            for job in found:  # one after the other: they share the links
                if job.id in before:
                    await self._renew(job)

    def _lacks(self, job: Job) -> bool:
        """On an open mesh data stays where it was sent to."""
        if job.is_over or not self._copies.may_leave(job.asked.open_data):
            return False
        return lacks_copies(self._view(), job.holders, self._policy().jobs.replicas)

    async def _renew(self, job: Job) -> None:
        members = self._view().members
        there = [node for node in job.holders if node in members and members[node].state != "down"]
        if not there:
            return
        log.info("job %s: its data is on %d nodes only, and copied anew", job.id, len(there))
        try:
            await self._spread(job, there)
        except TiermeshError as error:
            log.warning("job %s: its data could not be copied anew: %s", job.id, error)
        except Exception:  # the other jobs' data is needed too
            log.exception("job %s: its data could not be copied anew", job.id)

    async def _spread(self, job: Job, there: Iterable[NodeId]) -> None:
        replicas = self._policy().jobs.replicas
        holders = await self._copies.spread(job.id, datasets(job), replicas, job.asked.open_data, there)
        if not set(holders) <= set(job.holders):
            found = job_to_dict(replace(job, holders=tuple(sorted({*job.holders, *holders}))))
            if self._reactor.leads:
                await self._reactor.learn([found], self._me)
            else:
                await self._messenger.ask_leader("records", {"records": [found]})
