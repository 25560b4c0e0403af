"""Copies that are needed no longer: the news of a job's end may come while a node is away, and does not come to all who
have copies of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from tiermesh.adapters.background import Background
from tiermesh.adapters.blobs import Blobs
from tiermesh.adapters.peers import Peers
from tiermesh.errors import InvalidInput, StateUnwritable, Unavailable
from tiermesh.protocol.artifacts import MAX_ASKED, OVER_PATH, JobsAsked
from tiermesh.protocol.ulid import wall_ms_of
from tiermesh.protocol.validation import validated
from tiermesh.types import NodeId, View

log = logging.getLogger(__name__)

TIDY_S = 60.0
ABANDONED_S = 30 * 86400.0
"""What is kept for a job that nobody here has heard of is dropped when the job is this old."""
RESULT = ".result"
"""End of the name of who pins what a job left: that stays when it is over."""


class Leaving:
    """Of one node. `over` is called for each job that has copies here and is over; often, and that is harmless."""

    def __init__(
        self,
        me: NodeId,
        blobs: Blobs,
        peers: Peers,
        *,
        view: Callable[[], View],
        is_over: Callable[[str], bool | None],
        over: Callable[[str], None],
    ) -> None:
        self._me = me
        self._blobs = blobs
        self._peers = peers
        self._view = view
        self._is_over = is_over
        self._over = over
        self._background = Background()

    def start(self) -> None:
        """Look after them."""
        self._background.start(self._look_after())

    async def close(self) -> None:
        """May be called without `start`."""
        await self._background.close()

    def known_over(self, jobs: Iterable[str]) -> list[str]:
        """Those of which nothing but the result is needed any more, as far as this node knows."""
        return [job for job in jobs if self._is_over(job)]

    async def _look_after(self) -> None:
        is_told = False
        while True:
            await asyncio.sleep(TIDY_S)
            try:
                await self._tidy()
                is_told = False
            except (OSError, StateUnwritable) as error:
                level = logging.DEBUG if is_told else logging.ERROR
                log.log(level, "copies that nobody needs are still here, which is tried again: %s", error)
                is_told = True

    async def _tidy(self) -> None:
        await self._blobs.tidy()
        jobs = {owner.partition(".")[0] for owner in self._blobs.owners() if not owner.endswith(RESULT)}
        made = {job: wall_ms_of(job) / 1000 for job in jobs}  # 0: no job; what was sent under a name stays
        unsure = [job for job in jobs if made[job] and not self._is_over(job)]  # whoever has no record, or an old one
        over = {*self.known_over(jobs), *await self._asked_over(unsure)}
        for job in jobs:
            if job in over or self._is_abandoned(job, made[job]):
                self._over(job)

    def _is_abandoned(self, job: str, made_at: float) -> bool:
        return made_at > 0 and self._is_over(job) is None and time.time() > made_at + ABANDONED_S

    async def _asked_over(self, jobs: list[str]) -> list[str]:
        """Of which of these the coordinator says that they are over."""
        view = self._view()
        leader = view.members.get(view.coordinator) if view.coordinator is not None else None
        if not jobs or leader is None or leader.id == self._me:
            return []
        try:
            asked = JobsAsked(jobs=sorted(jobs)[:MAX_ASKED])
            answer = await self._peers.ask(leader.id, leader.status.addresses, OVER_PATH, asked.model_dump())
            return validated(JobsAsked, answer).jobs
        except (InvalidInput, Unavailable) as error:
            log.debug("the coordinator does not say which jobs are over: %s", error)
            return []
