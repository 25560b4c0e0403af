"""The training jobs that this node accepted: kept on disk, begun one after the other, followed to their end.

Whatever is answered to a submitter is on disk first. Orders go to a node's training slot with the ballot under which
they are given; today that node is this one, which is asked as any other would be.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict, replace
from typing import Any

from tiermesh.adapters.data_shelf import DataShelf, safe_name
from tiermesh.adapters.store import Store
from tiermesh.core.jobs import Dataset, Job, JobEvent, JobId, next_in_line, unique_name
from tiermesh.daemon.attempts import Attempts
from tiermesh.errors import (
    InvalidInput,
    InvalidSpec,
    JobExists,
    JobRefused,
    NotFound,
    SlotTaken,
    StaleOrder,
    StateUnwritable,
    TiermeshError,
    Unavailable,
)
from tiermesh.protocol.cluster import BallotReport
from tiermesh.protocol.jobs import AttemptOrder, AttemptReport, DataRef, GivenData, JobReport, Progress, TrainRequest
from tiermesh.protocol.training_problems import read_spec
from tiermesh.protocol.ulid import CHANCE_BYTES, make_ulid
from tiermesh.types import Ballot

log = logging.getLogger(__name__)

WAITING_LIMIT = 1000
"""Jobs that wait. More are days of work for one node: somebody's loop runs wild."""
AGAIN_S = 5.0
"""Until a job that did not fit is tried again; memory is freed by other programs, which tell nobody."""
MAX_INTERRUPTIONS = 3
"""A worker that is killed so often in a row without a step done is not started again."""


class Jobs:
    """Owner of this node's jobs. `open`, then `start`; `close` at the end, also without them.

    `on_training` hears the name of the job that runs, again and again, and an empty one while none does.
    """

    def __init__(
        self,
        *,
        node: str,
        store: Store,
        shelf: DataShelf,
        attempts: Attempts,
        ballot: Callable[[], Ballot],
        on_training: Callable[[str], None],
    ) -> None:
        self._node = node
        self._store = store
        self._shelf = shelf
        self._attempts = attempts
        self._ballot = ballot
        self._on_training = on_training
        self._closing = False
        self._jobs: dict[JobId, Job] = {}
        self._interruptions: dict[JobId, tuple[int, int]] = {}
        """How often in a row, and the step at the last time."""
        self._not_before: dict[JobId, float] = {}
        """Monotonic."""
        self._door = asyncio.Lock()
        self._news = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._saving: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Read what was accepted. Jobs that ran when the daemon ended wait to be taken up again."""
        for job in await self._store.jobs():
            self._jobs[job.id] = job
            if job.state in ("running", "cancelling"):
                self._interrupt(job, "its node ended")

    def start(self, until: Coroutine[Any, Any, None]) -> None:
        """Begin jobs, as soon as `until` is over."""
        self._loop = asyncio.create_task(self._run(until), name="jobs")

    async def close(self) -> None:
        """Begin nothing more, stop what runs after a checkpoint, and save everything."""
        self._closing = True
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        await self._attempts.close()
        await asyncio.gather(*self._saving, return_exceptions=True)

    async def submit(self, request: TrainRequest) -> Job:
        """Accept a job; the same request twice is one job. Durable when it returns.

        Raises `InvalidSpec`, `DataUnusable`, `JobRefused`, `JobExists` or `Unavailable`.
        """
        async with self._door:
            job = await self._asked(request)
            if (there := self._jobs.get(job.id)) is not None:
                if not there.is_same_request(job):
                    raise JobExists(f"id: {job.id} is another job, {there.name}; make a new id", param="id")
                return there
            if sum(other.state == "queued" for other in self._jobs.values()) >= WAITING_LIMIT:
                raise Unavailable(f"{WAITING_LIMIT} jobs wait here already", retry_after_s=60)
            await self._attempts.examine(self._order(job))
            await self._store.save_job(job)
            self._jobs[job.id] = job
        log.info("job %s (%s) accepted", job.name, job.id)
        self._news.set()
        return job

    def all(self) -> list[Job]:
        """The newest last."""
        return sorted(self._jobs.values(), key=lambda job: (job.submitted_at, job.id))

    def find(self, key: str) -> Job:
        """By id or name. Raises `NotFound`."""
        job = self._jobs.get(JobId(key)) or next((job for job in self._jobs.values() if job.name == key), None)
        if job is None:
            raise NotFound(f"no job is called {key!r}; `mesh jobs` lists them", param="job")
        return job

    async def cancel(self, key: str) -> Job:
        """End it, keeping its last checkpoint. Durable when it returns. Raises `NotFound`, `NotPossibleNow`."""
        job = self.find(key)
        if job.state in ("cancelling", "cancelled"):
            return job
        job = self._change(job, "cancel", reason="cancelled")
        self._attempts.stop(job.id)
        await self._saved()
        return self._jobs[job.id]

    def heard(self, report: AttemptReport) -> None:
        """How an attempt ended."""
        job = self._jobs.get(JobId(report.job))
        if job is None or job.state not in ("running", "cancelling") or job.attempt != report.attempt:
            return
        match report.state:
            case "completed":
                self._change(job, "complete", reason=report.reason, result=report.result)
            case "failed":
                self._change(job, "fail", reason=report.reason, failure=report.failure)
            case "stopped" if self._is_hopeless(job, report):
                self._change(job, "fail", reason=f"{report.reason}, again and again", failure="unexplained")
            case "stopped":
                self._not_before[job.id] = time.monotonic() + AGAIN_S
                self._interrupt(job, report.reason)
        self._news.set()

    def report(self, job: Job, *, brief: bool = False) -> JobReport:
        """For a person or a program; `brief` leaves the spec out."""
        running = self._attempts.report(job.id)
        return JobReport(
            id=job.id,
            name=job.name,
            state=job.state,
            node=self._node,
            reason=job.reason or self._what_is_before(job),
            failure=job.failure,
            attempt=job.attempt,
            model=str(job.spec.get("model_name", "")),
            method=str(job.spec.get("method", "")),
            submitted_at=job.submitted_at,
            started_at=job.started_at,
            ended_at=job.ended_at,
            progress=Progress() if running is None else running.progress,
            result=dict(job.result),
            spec={} if brief else dict(job.spec),
            data=None if brief else DataRef(**asdict(job.data)),
            eval_data=None if brief or job.eval_data is None else DataRef(**asdict(job.eval_data)),
        )

    async def _run(self, until: Coroutine[Any, Any, None]) -> None:
        """For ever: begin the next job whenever one may."""
        await until
        while True:
            self._news.clear()
            now = time.monotonic()
            ready = [job for job in self._jobs.values() if self._not_before.get(job.id, now) <= now]
            job = next_in_line(ready)
            if job is None or self._running():
                await self._wait_for_news()
            else:
                await self._begin(job)

    async def _begin(self, job: Job) -> None:
        try:
            report = await self._attempts.take(self._order(job))
        except SlotTaken as error:
            self._wait(job, str(error))
        except StaleOrder as error:  # a new leader is on its way in; the next order has its ballot
            self._wait(job, str(error))
        except (InvalidInput, JobRefused) as error:
            self._refused(job, str(error), error.type)
        except (TiermeshError, OSError) as error:
            log.warning("job %s can't begin: %s", job.name, error)
            self._wait(job, str(error))
        except Exception as error:
            log.exception("job %s can't begin", job.name)
            self._refused(job, f"{type(error).__name__}: {error}", "unexplained")
        else:
            self._begun(job, report)

    def _begun(self, job: Job, report: AttemptReport) -> None:
        if self._jobs[job.id].state != "queued":  # cancelled meanwhile
            self._attempts.stop(job.id)
            return
        self._change(self._jobs[job.id], "begin")
        if report.state != "running":
            self.heard(report)

    def _refused(self, job: Job, reason: str, failure: str) -> None:
        """No node will ever take it; unless it was cancelled meanwhile."""
        if (now := self._jobs[job.id]).state == "queued":
            self._change(now, "fail", reason=reason, failure=failure)

    def _wait(self, job: Job, reason: str) -> None:
        """Told to whoever asks; not worth a write."""
        self._not_before[job.id] = time.monotonic() + AGAIN_S
        if (now := self._jobs[job.id]).state == "queued":
            self._jobs[job.id] = replace(now, reason=f"waits: {reason}")

    def _interrupt(self, job: Job, why: str) -> None:
        goes_on = "; it goes on from its last checkpoint" if job.state == "running" else ""
        self._change(job, "interrupt", reason=f"{why}{goes_on}")

    def _what_is_before(self, job: Job) -> str:
        running = self._running()
        if job.state != "queued" or not running:
            return ""
        return f"waits: {self._node} trains {running}, and has one training slot"

    async def _wait_for_news(self) -> None:
        try:
            async with asyncio.timeout(AGAIN_S):
                await self._news.wait()
        except TimeoutError:
            pass

    def _running(self) -> str:
        """The name of the job that has the slot, or nothing."""
        return next((job.name for job in self._jobs.values() if job.state in ("running", "cancelling")), "")

    def _is_hopeless(self, job: Job, report: AttemptReport) -> bool:
        count, step = self._interruptions.get(job.id, (0, 0))
        count = 1 if report.progress.step > step else count + 1
        self._interruptions[job.id] = count, report.progress.step
        return count > MAX_INTERRUPTIONS

    def _change(
        self,
        job: Job,
        event: JobEvent,
        *,
        reason: str = "",
        failure: str | None = None,
        result: Mapping[str, Any] | None = None,
    ) -> Job:
        """Known at once, on disk soon; writes keep their order."""
        changed = job.after(event, time.time(), reason=reason, failure=failure, result=result)
        self._jobs[job.id] = changed
        if changed.is_over:
            self._not_before.pop(job.id, None)
            self._interruptions.pop(job.id, None)
        if not self._closing:
            self._on_training(self._running())
        log.info("job %s is %s%s", changed.name, changed.state, f": {changed.reason}" if changed.reason else "")
        task = asyncio.create_task(self._save(changed))
        self._saving.add(task)
        task.add_done_callback(self._saving.discard)
        return changed

    async def _save(self, job: Job) -> None:
        try:
            await self._store.save_job(job)
        except StateUnwritable as error:
            log.error("job %s: its state %s could not be saved: %s", job.name, job.state, error)

    async def _saved(self) -> None:
        await asyncio.gather(*self._saving)

    def _order(self, job: Job) -> AttemptOrder:
        ballot = self._ballot()
        return AttemptOrder(
            ballot=BallotReport(term=ballot.term, node_id=ballot.node_id),
            job=job.id,
            attempt=job.attempt,
            spec=dict(job.spec),
            data=DataRef(**asdict(job.data)),
            eval_data=None if job.eval_data is None else DataRef(**asdict(job.eval_data)),
        )

    async def _asked(self, request: TrainRequest) -> Job:
        """The job that a request describes."""
        if request.eval_data is None and request.spec.get("eval_path") is not None:
            raise InvalidSpec(
                "eval_path is given, but the data did not come with it: send eval_data", param="eval_path"
            )
        data = await self._given(request.data)
        held_out = None if request.eval_data is None else await self._given(request.eval_data)
        names = {"dataset_path": data.name} | ({} if held_out is None else {"eval_path": held_out.name})
        spec = read_spec(request.spec | names)
        if spec.wandb is not None:
            raise InvalidSpec(
                "wandb: a job's curves would go to the account of whoever owns the node; use tensorboard, or --local",
                param="wandb",
            )
        now = time.time()
        wanted = request.name or time.strftime("job_%Y%m%d_%H%M%S", time.localtime(now))
        return Job(
            id=JobId(request.id or make_ulid(int(now * 1000), secrets.token_bytes(CHANCE_BYTES))),
            name=unique_name(wanted, (job.name for job in self._jobs.values())),
            spec=spec.model_dump(mode="json"),
            data=data,
            eval_data=held_out,
            submitted_at=now,
        )

    async def _given(self, given: GivenData) -> Dataset:
        """Data that came within the request goes to the shelf as if it had been uploaded."""
        name = safe_name(given.name)
        if given.sha256 is not None:
            return Dataset(given.sha256, name)
        assert given.text is not None, "checked with the request"
        return Dataset(await self._shelf.put_whole(given.text.encode()), name)
