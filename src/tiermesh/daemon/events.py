"""The events, the log and the crash reports of a job's runs, wherever in the mesh they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import astuple
from pathlib import Path

from tiermesh.adapters.crash_reports import newest_crash
from tiermesh.adapters.event_lines import ATTEMPT, EventLines, Place
from tiermesh.adapters.peers import Peers
from tiermesh.adapters.run_log import read_after, read_last_lines
from tiermesh.core.attempts import Attempt
from tiermesh.core.jobs import Job
from tiermesh.daemon.attempts import Attempts
from tiermesh.daemon.job_messenger import TYPED
from tiermesh.daemon.scheduler import Scheduler
from tiermesh.errors import NotFound, TiermeshError, Unavailable
from tiermesh.protocol.job_orders import (
    CRASH_PATH,
    EVENTS_PATH,
    LOG_PATH,
    CrashAsked,
    CrashTold,
    LinesAsked,
    LinesTold,
    LogAsked,
    LogTold,
)
from tiermesh.protocol.jobs import CrashReport
from tiermesh.types import NodeId

CRASHES_SOUGHT = 16
"""Attempts that are asked for a crash report, the newest first; each may be another node's."""

Line = tuple[int, bytes]


class JobEvents:
    """Reads for one node; what is another's is asked of it."""

    def __init__(
        self, *, me: NodeId, scheduler: Scheduler, attempts: Attempts, peers: Peers, ending: Callable[[], bool]
    ) -> None:
        self._me = me
        self._scheduler = scheduler
        self._attempts = attempts
        self._peers = peers
        self._ending = ending

    async def lines(self, key: str, after: int = 0) -> AsyncGenerator[Line | Job | None, None]:
        """All events with an id above `after`, as they happen; the job at first, at each change, and last. None: a
        moment in which nothing happened.

        Ends when the job is over and all was told, or this daemon ends. Raises `NotFound`.
        """
        job = await self._scheduler.find(key)
        reader, shown = _Reader(self, after), None
        while True:
            ends = job.is_over or self._ending()  # before the files are read: they are whole then
            changed, shown = _sight(job) != shown, _sight(job)
            if changed and not job.is_over:
                yield job
            said = False
            async for line in reader.read(job):
                said = True
                yield line
            if changed and job.is_over:
                yield job
            if ends:
                return
            if not said:
                yield None
            await self._scheduler.changed(job.id, WATCH_S)
            job = await self._scheduler.glance(job.id)

    async def read(self, key: str, after: int = 0) -> list[Line]:
        """Those that there are now; none where nobody has them. Raises `NotFound`."""
        job = await self._scheduler.find(key)
        return [line async for line in _Reader(self, after).read(job)]

    async def log(self, key: str, *, attempt: int | None, lines: int, after: int | None) -> LogTold:
        """Of the newest attempt unless told otherwise. Raises `NotFound`, `Unavailable`."""
        job = await self._scheduler.find(key)
        newest = _meant(job, attempt)[-1]
        asked = LogAsked(job=job.id, attempt=newest.number, lines=lines, after=after)
        if newest.node == self._me:
            return await self.log_here(asked)
        return LogTold.model_validate(await self._ask(newest.node, LOG_PATH, asked.model_dump()))

    async def crash(self, key: str, *, attempt: int | None) -> CrashReport:
        """Of the newest attempt that left one, unless told otherwise. Raises `NotFound`, and `Unavailable` when a node
        is away before one was found: it may have a newer one."""
        job = await self._scheduler.find(key)
        for each in _meant(job, attempt)[: -CRASHES_SOUGHT - 1 : -1]:
            asked, name = CrashAsked(job=job.id, attempt=each.number), self._scheduler.node_name(each.node)
            try:
                kept = (await self._crash_told(asked, each.node)).crash
            except Unavailable as error:
                raise Unavailable(f"attempt {each.number} was on node {name}, which can't be asked: {error}") from error
            if kept is not None:
                return CrashReport(job=job.id, attempt=each.number, node=name, **kept.model_dump())
        which = f"attempt {attempt}" if attempt is not None else "no attempt"
        told = "left none" if attempt is not None else "left one"
        raise NotFound(f"there is no crash report of job {job.name}: {which} {told}", param="job")

    async def lines_here(self, asked: LinesAsked) -> LinesTold:
        """Of a run on this node."""
        path = self._attempts.run_folder(asked.job, asked.attempt).events
        place = Place(*asked.place) if len(asked.place) == 3 else None
        return await asyncio.to_thread(_read_lines, path, asked.after, place)

    async def log_here(self, asked: LogAsked) -> LogTold:
        """Of a run on this node."""
        folder = self._attempts.run_folder(asked.job, asked.attempt)
        if asked.after is not None:
            return await asyncio.to_thread(read_after, folder, asked.after)
        return await asyncio.to_thread(read_last_lines, folder, asked.lines)

    async def crash_here(self, asked: CrashAsked) -> CrashTold:
        """Of a run on this node."""
        folder = self._attempts.run_folder(asked.job, asked.attempt)
        return CrashTold(crash=await asyncio.to_thread(newest_crash, folder))

    async def told(self, asked: LinesAsked, node: NodeId) -> LinesTold:
        """Of a run on any node. Raises `Unavailable`."""
        if node == self._me:
            return await self.lines_here(asked)
        return LinesTold.model_validate(await self._ask(node, EVENTS_PATH, asked.model_dump()))

    async def _crash_told(self, asked: CrashAsked, node: NodeId) -> CrashTold:
        if node == self._me:
            return await self.crash_here(asked)
        return CrashTold.model_validate(await self._ask(node, CRASH_PATH, asked.model_dump()))

    async def _ask(self, node: NodeId, path: str, body: dict[str, object]) -> dict[str, object]:
        member = self._scheduler.member(node)
        if member is None or member.state == "down":
            raise Unavailable(f"node {self._scheduler.node_name(node)}, which has it, is away")
        return await self._peers.ask(node, member.status.addresses, path, body, typed=TYPED)


WATCH_S = 0.2
"""Between two looks at the events."""


class _Reader:
    """One reader's way through the attempts of a job."""

    def __init__(self, events: JobEvents, after: int) -> None:
        self._events = events
        self._after = after
        self._places: dict[tuple[int, NodeId], list[int]] = {}

    async def read(self, job: Job) -> AsyncGenerator[Line, None]:
        """What is new. A node that is away is passed over: what it had told last comes again with the next attempt."""
        for attempt in _chain(job, self._after // ATTEMPT):
            more = True
            while more:
                place = self._places.get((attempt.number, attempt.node), [])
                asked = LinesAsked(job=job.id, attempt=attempt.number, after=self._after, place=place)
                try:
                    told = await self._events.told(asked, attempt.node)
                except TiermeshError:
                    break
                self._places[attempt.number, attempt.node] = told.place
                more = told.more
                for number, line in zip(told.ids, told.lines, strict=True):
                    self._after = number
                    yield number, line.encode()


def _meant(job: Job, attempt: int | None) -> list[Attempt]:
    """All with this number, or all that there are. Raises `NotFound`."""
    found = [each for each in job.attempts if attempt in (None, each.number)]
    if not found:
        raise NotFound(f"job {job.name} has no {'attempt yet' if attempt is None else f'attempt {attempt}'}")
    return found


def _chain(job: Job, known: int) -> list[Attempt]:
    """The attempts that are to be read, by who has read up to attempt `known`: the newest, and before it those that
    were not moved on with all that they had told."""
    newest = {attempt.number: attempt for attempt in job.attempts}
    if job.result is not None:
        newest = {number: each for number, each in newest.items() if number < job.result.number}
        newest[job.result.number] = job.result
    found: list[Attempt] = []
    for number in sorted(newest, reverse=True):
        if found and (number < known or found[-1].cause == "moved"):
            break
        found.append(newest[number])
    return found[::-1]


def _sight(job: Job) -> tuple[object, ...]:
    """What of a job is worth telling its watchers."""
    return job.state, job.reason, job.estimate, len(job.attempts), job.asked.name


def _read_lines(path: Path, after: int, place: Place | None) -> LinesTold:
    lines = EventLines(path, after, place)
    found = lines.read()
    return LinesTold(
        ids=[number for number, _ in found],
        lines=[line.decode() for _, line in found],
        place=list(astuple(lines.place)),
        more=bool(found) and lines.has_more(),
    )
