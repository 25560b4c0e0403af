"""The folders of this node's runs, from their job's end on: light after a while, and gone when the job is forgotten.

    mesh jobs rm               all of it, on every node
    completed, a day ago       what its runs needed in order to go on; at once when the disk has little room left
    cancelled, failed ...      the same, a month ago

Nothing of a completed job goes before every byte of its result was found in the store; nothing at all goes of a job
that neither this node nor the coordinator knows, or while a worker is at it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING

from tiermesh.adapters.background import Background
from tiermesh.adapters.blobs import Blobs
from tiermesh.adapters.run_folders import RunFolders
from tiermesh.core.jobs import Job, job_to_dict
from tiermesh.core.run_ends import LOW_BYTES, artifact_on, ends
from tiermesh.daemon.job_messenger import Messenger
from tiermesh.daemon.job_reactor import JobReactor
from tiermesh.errors import TiermeshError
from tiermesh.protocol.artifacts import MAX_ASKED, JobsAsked, JobsEnded, Manifest
from tiermesh.types import NodeId, View

if TYPE_CHECKING:
    from tiermesh.daemon.attempts import Attempts

log = logging.getLogger(__name__)

LOOK_S = 60.0


class RunKeeping:
    """One for a node. `open` before anything runs, `start` when the reactor is open; `close` before it."""

    def __init__(
        self,
        *,
        me: NodeId,
        folders: RunFolders,
        blobs: Blobs,
        attempts: Attempts,
        reactor: JobReactor,
        messenger: Messenger,
        view: Callable[[], View],
    ) -> None:
        self._me = me
        self._folders = folders
        self._blobs = blobs
        self._attempts = attempts
        self._reactor = reactor
        self._messenger = messenger
        self._view = view
        self._background = Background()
        self._closed = False

    async def open(self) -> None:
        """Remove what an earlier daemon was at work with."""
        await asyncio.to_thread(self._folders.open)

    def start(self) -> None:
        """Look after them."""
        self._background.start(self._look_after())

    async def close(self) -> None:
        """May be called without `start`."""
        self._closed = True
        await self._background.close()

    def forget(self, job: str) -> None:
        """A person wants nothing of it any more: its runs go now, or when this daemon has started again."""
        if not self._closed:
            self._background.start(self._forget(job))

    async def _forget(self, job: str) -> None:
        if (error := await self._tried(self._remove(job))) is not None:
            log.warning("job %s is forgotten, but its runs are still here: %s", job, error)

    async def _look_after(self) -> None:
        is_told = False
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self._tidy()
                is_told = False
            except (OSError, TiermeshError) as error:
                log.log(logging.DEBUG if is_told else logging.ERROR, "runs that are over are kept for now: %s", error)
                is_told = True

    async def _tidy(self) -> None:
        """Raises the first thing that went wrong, when all the others are done."""
        jobs = await asyncio.to_thread(self._folders.jobs)
        await self._catch_up(jobs)
        known = [job for job in map(self._reactor.known, jobs) if job is not None]
        trouble = [await self._tried(self._remove(job.id)) for job in known if job.forgotten]
        over = {job.id: job for job in known if job.is_over and not job.forgotten}
        heavy = await asyncio.to_thread(lambda: [job for job in over.values() if self._folders.is_heavy(job.id)])
        told = ends(heavy, time.time())
        trouble += [await self._tried(self._lighten(over[job])) for job in told.due]
        for job in told.early:
            if await asyncio.to_thread(self._folders.free_bytes) >= LOW_BYTES:
                break
            trouble.append(await self._tried(self._lighten(over[job])))
        for error in filter(None, trouble):
            raise error

    async def _tried(self, work: Coroutine[None, None, None]) -> OSError | TiermeshError | None:
        """What went wrong."""
        try:
            await work
        except (OSError, TiermeshError) as error:
            return error
        return None

    async def _catch_up(self, jobs: list[str]) -> None:
        """Records of jobs that ended, or were forgotten, without this node's hearing of it: not all nodes have all."""
        leader = self._view().coordinator
        if leader is None or self._reactor.leads:
            return
        unsure = [job for job in jobs if (known := self._reactor.known(job)) is None or not known.forgotten]
        for start in range(0, len(unsure), MAX_ASKED):
            asked = JobsAsked(jobs=unsure[start : start + MAX_ASKED])
            try:
                told = JobsEnded.model_validate(await self._messenger.ask_leader("ended", asked.model_dump()))
                for job in sorted(set(asked.jobs) & {*filter(self._lives_here, told.over), *told.forgotten}):
                    record = await self._messenger.job_of_leader("find", {"job": job})
                    await self._reactor.learn([job_to_dict(record)], leader)
            except (TiermeshError, ValueError) as error:
                log.debug("the coordinator does not say which jobs are over: %s", error)
                return

    def _lives_here(self, job: str) -> bool:
        """By what this node knows."""
        return not self._reactor.is_over(job)

    async def _lighten(self, job: Job) -> None:
        artifact = artifact_on(job, self._me)
        if artifact is not None and not await self._is_whole(artifact):
            return
        if self._attempts.training != job.id and await asyncio.to_thread(self._folders.lighten, job.id):
            log.info("job %s (%s) is over: its checkpoints are removed", job.name, job.id)

    async def _remove(self, job: str) -> None:
        if self._attempts.training != job and await asyncio.to_thread(self._folders.remove, job):
            log.info("job %s is forgotten: its runs are removed", job)

    async def _is_whole(self, artifact: str) -> bool:
        """Every byte of it, here and now. What the disk has spoiled is no longer in the store after this."""
        self._blobs.doubt([artifact])
        path = await self._blobs.sound(artifact)
        if path is None:
            return False
        manifest = Manifest.read(await asyncio.to_thread(path.read_bytes))
        self._blobs.doubt(file.sha256 for file in manifest.files)
        for file in manifest.files:
            if await self._blobs.sound(file.sha256) is None:
                return False
        return True
