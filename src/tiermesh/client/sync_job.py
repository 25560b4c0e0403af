"""A training job without `await`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import TypeVar

from tiermesh.client.jobs import TrainingJob
from tiermesh.client.loop_thread import LoopThread
from tiermesh.protocol.jobs import CrashReport, JobReport, ResultReport
from tiermesh.protocol.training_events import TrainingEvent

T = TypeVar("T")


class SyncJob:
    """`TrainingJob` without `await`; it needs its client open."""

    def __init__(self, job: TrainingJob, thread: LoopThread) -> None:
        self._job = job
        self._thread = thread

    def __repr__(self) -> str:
        return f"SyncJob({self.name!r}, id={self.id!r}, state={self.report.state!r})"

    @property
    def id(self) -> str:
        return self._job.id

    @property
    def name(self) -> str:
        return self._job.name

    @property
    def report(self) -> JobReport:
        """How it was when last heard of."""
        return self._job.report

    def refresh(self) -> JobReport:
        """Ask how it is now."""
        return self._thread.run(self._job.refresh())

    def wait(self, timeout_s: float | None = None) -> JobReport:
        """Wait until it is over. Raises `TimeoutError`; the job goes on then."""
        return self._thread.run(self._job.wait(timeout_s))

    def events(self) -> Iterator[TrainingEvent | JobReport]:
        """What has happened and what happens, until it is over."""
        return self._each(self._job.events())

    def results(self, folder: Path | str | None = None) -> ResultReport:
        """How it ended and what it left; its files too, where a `folder` is given. Raises as `TrainingJob.results`."""
        return self._thread.run(self._job.results(folder))

    def approve(self) -> JobReport:
        """Let it run although it costs more than runs unasked."""
        return self._thread.run(self._job.approve())

    def optimize(self) -> JobReport:
        """Have it made cheaper, and judged again."""
        return self._thread.run(self._job.optimize())

    def cancel(self) -> JobReport:
        """End it after a checkpoint."""
        return self._thread.run(self._job.cancel())

    def logs(self, *, attempt: int | None = None, lines: int | None = None) -> str:
        """What the worker's libraries said, as `TrainingJob.logs`."""
        return self._thread.run(self._job.logs(attempt=attempt, lines=lines))

    def follow_logs(self, *, lines: int | None = None) -> Iterator[str]:
        """The newest attempt's log as it grows, until the job is over. Raises as `TrainingJob.follow_logs`."""
        return self._each(self._job.follow_logs(lines=lines))

    def crash(self, *, attempt: int | None = None) -> CrashReport:
        """What is kept of the newest failure."""
        return self._thread.run(self._job.crash(attempt=attempt))

    def page(self) -> str:
        """All of it as a report in Markdown."""
        return self._thread.run(self._job.page())

    def _each(self, source: AsyncGenerator[T, None]) -> Iterator[T]:
        """None is none of them."""
        try:
            while (each := self._thread.run(anext(source, None))) is not None:
                yield each
        finally:
            if self._thread.running:
                self._thread.run(source.aclose())
