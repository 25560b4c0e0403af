"""Jobs for those who speak of them in another shape than ours: found, given, ended, with their events at one read."""

from __future__ import annotations

from tiermesh.daemon.events import JobEvents
from tiermesh.daemon.scheduler import Scheduler
from tiermesh.protocol.jobs import JobReport, TrainRequest


class JobDesk:
    """On any node; who leads is the scheduler's business."""

    def __init__(self, scheduler: Scheduler, events: JobEvents) -> None:
        self._scheduler = scheduler
        self._events = events

    async def submit(self, request: TrainRequest, submitter: str) -> JobReport:
        """Raises what the scheduler raises."""
        return self._scheduler.report(await self._scheduler.submit(request, submitter=submitter))

    async def all(self) -> list[JobReport]:
        """Whole; the newest first."""
        return [self._scheduler.report(job) for job in reversed(await self._scheduler.all())]

    async def find(self, key: str) -> JobReport:
        """By id or name. Raises `NotFound`."""
        return self._scheduler.report(await self._scheduler.find(key))

    async def cancel(self, key: str) -> JobReport:
        """Raises `NotFound`, `NotPossibleNow`."""
        return self._scheduler.report(await self._scheduler.cancel(key))

    async def approve(self, key: str) -> JobReport:
        """Raises `NotFound`, `NotPossibleNow`."""
        return self._scheduler.report(await self._scheduler.decide(key, "approve"))

    async def lines(self, key: str) -> list[tuple[int, bytes]]:
        """The events of its run so far, of all attempts, with their ids; empty where nobody has them."""
        return await self._events.read(key)
