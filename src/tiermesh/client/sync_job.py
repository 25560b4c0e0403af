"""A training job without `await`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tiermesh.client.jobs import TrainingJob
from tiermesh.client.loop_thread import LoopThread
from tiermesh.protocol.jobs import CrashReport, JobReport, ResultReport
from tiermesh.protocol.training_events import TrainingEvent


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
        events = self._job.events()
        try:
            while (event := self._thread.run(anext(events, None))) is not None:
                yield event
        finally:
            if self._thread.running:
                self._thread.run(events.aclose())

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
        """What the worker's libraries said."""
        return self._thread.run(self._job.logs(attempt=attempt, lines=lines))

    def crash(self, *, attempt: int | None = None) -> CrashReport:
        """What is kept of the newest failure."""
        return self._thread.run(self._job.crash(attempt=attempt))

    def page(self) -> str:
        """All of it as a report in Markdown."""
        return self._thread.run(self._job.page())
