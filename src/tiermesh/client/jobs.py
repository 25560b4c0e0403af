"""A training job from far away: its events as they happen, what a person decides of it, its end and its result."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from tiermesh.client.answers import decoded
from tiermesh.client.results import ResultDoor, fetch_result
from tiermesh.errors import DeadlineExceeded, EngineFailed, NotPossibleNow, TiermeshError, Unavailable
from tiermesh.protocol.jobs import CrashReport, JobReport, ResultReport
from tiermesh.protocol.training_events import TrainingEvent, from_line

LINE_LIMIT_BYTES = 8 << 20
"""A job's last event holds its spec, with a chat template perhaps."""
PATIENCE_S = 60.0
"""How long a node may be away while its job is followed: a restart with all it loads."""
AGAIN_S = 0.5
"""Between two tries meanwhile."""
LOG_PAUSE_S = 1.0
"""Between two looks at a log."""

Decision = Literal["approve", "optimize", "cancel", "retry"]


@dataclass(frozen=True, slots=True)
class LogText:
    """What a worker's libraries said. `offset` is where the next look begins; None where the node doesn't say."""

    text: str
    offset: int | None = None


class Door(ResultDoor, Protocol):
    """What a job needs of a client."""

    async def meet(self) -> None: ...
    async def turn(self) -> None: ...
    async def job_report(self, job: str) -> JobReport: ...
    async def decide_job(self, job: str, decision: Decision) -> JobReport: ...
    async def job_log(
        self, job: str, *, attempt: int | None = None, lines: int | None = None, after: int | None = None
    ) -> LogText: ...
    async def job_crash(self, job: str, *, attempt: int | None = None) -> CrashReport: ...
    async def job_page(self, job: str) -> str: ...
    async def job_results(self, job: str) -> ResultReport: ...
    def job_chunks(self, job: str, after: int) -> AsyncIterator[bytes]: ...


class TrainingJob:
    """One job; `report` is how it was when last heard of."""

    def __init__(self, door: Door, report: JobReport) -> None:
        self._door = door
        self.report = report
        self.after = 0
        """The number of the last event that was given."""

    def __repr__(self) -> str:
        return f"TrainingJob({self.name!r}, id={self.id!r}, state={self.report.state!r})"

    @property
    def id(self) -> str:
        return self.report.id

    @property
    def name(self) -> str:
        return self.report.name

    async def refresh(self) -> JobReport:
        """Ask how it is now."""
        self.report = await self._door.job_report(self.id)
        return self.report

    async def approve(self) -> JobReport:
        """Let it run although it costs more than runs unasked. Raises `NotPossibleNow` unless it waits for that."""
        return await self._decide("approve")

    async def optimize(self) -> JobReport:
        """Have it made cheaper and judged again. Raises `NotPossibleNow` when it doesn't wait."""
        return await self._decide("optimize")

    async def cancel(self) -> JobReport:
        """End it after a checkpoint. Raises `NotPossibleNow` when it is over."""
        return await self._decide("cancel")

    async def wait(self, timeout_s: float | None = None) -> JobReport:
        """Wait until it is over; `report.state` says how. Raises `TimeoutError`; the job goes on then."""
        async with asyncio.timeout(timeout_s), aclosing(self.events()) as events:
            async for _ in events:
                pass
        return self.report

    async def events(self) -> AsyncGenerator[TrainingEvent | JobReport, None]:
        """What has happened and what happens, until the job is over; a `JobReport` at each change of its state.

        When the node that is asked ends, another one is, or the same once it is back within `PATIENCE_S`; nothing is
        missed and nothing told twice. Raises what the node says otherwise.
        """
        await self._door.meet()
        heard_at = time.monotonic()
        while True:
            try:
                async with aclosing(_events(self._door.job_chunks(self.id, self.after))) as events:
                    async for number, kind, data in events:
                        heard_at = time.monotonic()
                        self.after = number or self.after
                        event = self._understood(kind, data)
                        if event is not None:
                            yield event
            except (Unavailable, EngineFailed, DeadlineExceeded):
                if time.monotonic() > heard_at + PATIENCE_S:
                    raise
                await self._door.turn()
            if self.report.is_over:
                return
            if time.monotonic() > heard_at + PATIENCE_S:
                raise EngineFailed(f"the events of job {self.name} broke off")
            await asyncio.sleep(AGAIN_S)

    async def logs(self, *, attempt: int | None = None, lines: int | None = None) -> str:
        """The last `lines` (None: 50; 0: all that its node keeps, the last 1 to 2 MiB) of what the worker's libraries
        said, in the newest attempt unless another is named."""
        return (await self._door.job_log(self.id, attempt=attempt, lines=lines)).text

    async def follow_logs(self, *, lines: int | None = None) -> AsyncGenerator[str, None]:
        """The newest attempt's log as it grows, until the job is over. Raises `NotPossibleNow` where a node can't."""
        told = await self._door.job_log(self.id, lines=lines)
        yield told.text
        while not (await self.refresh()).is_over or told.text:
            if told.offset is None:
                if self.report.is_over:
                    return
                raise NotPossibleNow(f"{self.report.node} does not say how far its log was read; ask again without it")
            if not told.text:
                await asyncio.sleep(LOG_PAUSE_S)
            told = await self._door.job_log(self.id, after=told.offset)
            if told.text:
                yield told.text

    async def crash(self, *, attempt: int | None = None) -> CrashReport:
        """What is kept of the newest failure: report, stack, last events. Raises `NotFound` where nothing is."""
        return await self._door.job_crash(self.id, attempt=attempt)

    async def page(self) -> str:
        """All of it as a report in Markdown."""
        return await self._door.job_page(self.id)

    async def results(self, folder: Path | str | None = None) -> ResultReport:
        """How it ended and what it left; with a `folder`, its files are put there, each checked against its digest.

        Raises `NotPossibleNow` while it is not over, `NotFound` when files are wanted of which there are none.
        """
        found = await self._door.job_results(self.id)
        self.report = found.job
        if not found.job.is_over:
            raise NotPossibleNow(f"job {self.name} is {found.job.state}: it has no result yet")
        if folder is not None:
            await fetch_result(self._door, found, Path(folder))
        return found

    async def _decide(self, decision: Decision) -> JobReport:
        self.report = await self._door.decide_job(self.id, decision)
        return self.report

    def _understood(self, kind: str, data: bytes) -> TrainingEvent | JobReport | None:
        if kind != "job":
            return from_line(data)
        try:
            self.report = decoded(JobReport, json.loads(data))
        except ValueError as error:
            raise TiermeshError(f"the report of job {self.name} can't be read: {error}") from error
        return self.report


async def _events(chunks: AsyncIterator[bytes]) -> AsyncGenerator[tuple[int, str, bytes], None]:
    """Number (0: none), kind and data of each event of a stream."""
    number, kind, data, rest = 0, "", b"", b""
    try:
        async for chunk in chunks:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                field, _, value = line.partition(b": ")
                match field:
                    case b"id":
                        number = int(value)
                    case b"event":
                        kind = value.decode()
                    case b"data":
                        data = value
                    case b"" if not line and data:
                        yield number, kind, data
                        number, kind, data = 0, "", b""
            if len(rest) > LINE_LIMIT_BYTES:
                raise EngineFailed(f"an event of more than {LINE_LIMIT_BYTES} bytes")
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()
