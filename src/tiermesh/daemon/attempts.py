"""This node's training slot: one attempt at a time, ordered by whoever leads, in a folder of its own; and what is told
of it, kept on this node's disk until a coordinator knows.

It takes orders, not wishes: a job's state, its queue and its retries are the affair of whoever orders. What is refused
is refused with a reason for a person: for now (`SlotTaken`) or for good. With no coordinator it trains on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiermesh.adapters.run_events import add_event, completion
from tiermesh.adapters.store import Store
from tiermesh.adapters.trainer import Launch, OnRecord, Trainer
from tiermesh.core.attempts import Checkpoint, Told
from tiermesh.core.jobs import Dataset
from tiermesh.daemon.groundwork import Groundwork
from tiermesh.daemon.told import Key, after_end, after_step, ballot_of, key_of, later, next_told, wire_of
from tiermesh.daemon.told_log import ToldLog
from tiermesh.errors import JobRefused, RunBusy, SlotTaken, StaleOrder, StateUnwritable, TiermeshError
from tiermesh.protocol.job_orders import AttemptOrder, AttemptTold, DataAsked, HeardReport
from tiermesh.protocol.run_folder import RunFolder, RunPlan
from tiermesh.protocol.training_events import (
    AttemptBegun,
    CheckpointSaved,
    Completed,
    Phase,
    StepDone,
    TrainingEvent,
)
from tiermesh.protocol.training_problems import read_spec
from tiermesh.types import Ballot, NodeId

if TYPE_CHECKING:
    from tiermesh.daemon.copies import Copies

log = logging.getLogger(__name__)

CANCEL_S = 10.0
"""From a person's order to stop until the worker is killed: it drops the step it is in, and saves in seconds. What it
had saved before is good all the same."""
CLOSE_S = 60.0
"""The same when this daemon ends: what is not saved must be done again. Less than what systemd gives a service."""
LAST_COPY_S = 10.0
"""What the last checkpoint may take to reach another node, of an attempt that is to go on there."""
ANSWER_S = 3.0
"""How long an order's answer waits to hear whether it can be obeyed: data may have to come from elsewhere first."""


@dataclass(slots=True)
class _Run:
    """The attempt that has the slot. `trainer` is None while what it needs is brought here."""

    order: AttemptOrder
    told: Told
    folder: RunFolder
    stopping: str = ""
    """Why it was asked to stop, once it was."""
    preparing: asyncio.Task[RunPlan] | None = None
    trainer: Trainer | None = None
    task: asyncio.Task[None] | None = None

    @property
    def key(self) -> Key:
        return key_of(self.order.key)


class Attempts:
    """Owner of the slot. `open` before all else; `close` at the end.

    `on_news` hears that there is something to tell; `on_training` the name of the job that has the slot, or nothing.
    """

    def __init__(
        self,
        *,
        me: NodeId,
        folder: Path,
        store: Store,
        copies: Copies,
        groundwork: Groundwork,
        promised: Callable[[], Ballot],
        supervise: Callable[[], OnRecord],
        on_news: Callable[[], None],
        on_training: Callable[[str], None],
    ) -> None:
        self._me = me
        self._folder = folder
        self._copies = copies
        self._groundwork = groundwork
        self._promised = promised
        self._supervise = supervise
        self._on_news = on_news
        self._on_training = on_training
        self._current: _Run | None = None
        self._log = ToldLog(store)
        self._resting = False
        self._closing = False

    async def open(self) -> None:
        """Read what was told last."""
        await self._log.open()

    def run_folder(self, job: str, attempt: int) -> RunFolder:
        """Where an attempt keeps everything; it need not be there."""
        return RunFolder(self._folder / job / f"attempt-{attempt}")

    @property
    def training(self) -> str:
        """The job that has the slot, or nothing."""
        return "" if self._current is None else self._current.order.job

    def to_tell(self, ballot: Ballot) -> list[AttemptTold]:
        """What the coordinator of this ballot is to hear now: of the one that runs always, of others until it knows."""
        live = [] if self._current is None else [wire_of(self._current.key, self._current.told)]
        return [*self._log.unknown_to(ballot), *live]

    async def answered(self, said: Iterable[AttemptTold], heard: Iterable[HeardReport], ballot: Ballot) -> None:
        """The coordinator of this ballot has it on its disk, and says what to do."""
        for answer in heard:
            if answer.fenced:
                self.stop(key_of(answer), "another attempt took its place, or the job is over")
        await self._log.answered(said, heard, ballot)

    def check_fence(self, order: AttemptOrder) -> None:
        """Raises `StaleOrder`."""
        ballot, promised = ballot_of(order.ballot), self._promised()
        if ballot < promised:
            raise StaleOrder(f"the order is of ballot {ballot}, and this node obeys {promised} by now")
        later = [path.name for path in (self._folder / order.job).glob("attempt-*") if _number(path) > order.attempt]
        if later:
            raise StaleOrder(f"attempt {order.attempt} of job {order.job} was replaced by {max(later)}")

    async def take(self, order: AttemptOrder) -> Told:
        """Begin, or go on from the last checkpoint; the same order twice is one attempt.

        Raises `StaleOrder`, `SlotTaken`, `JobRefused`, `InvalidSpec`, `DataUnusable` and `Unavailable`. What takes
        longer than `ANSWER_S` to find out is told later.
        """
        self.check_fence(order)
        key = key_of(order.key)
        if (current := self._current) is not None:
            if current.key == key and not current.stopping:
                return current.told
            raise SlotTaken(f"this node trains {current.order.name or current.order.job}, and has one training slot")
        if self._resting or self._closing:
            raise SlotTaken("this node was told to rest")
        before = self._log.told(key)
        if before is not None and before.is_end:
            self._log.tell_again(key)  # who orders it does not know
            return before
        told = Told(seq=later(0)) if before is None else next_told(before, state="running", reason="", phase="")
        self._current = run = _Run(order, told, self.run_folder(order.job, order.attempt))
        self._on_training(order.name or order.job)
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        run.task = asyncio.create_task(self._live(run, ready), name=f"train {order.job}")
        await asyncio.wait((ready,), timeout=ANSWER_S)
        if ready.done():
            ready.result()
        else:
            ready.cancel()
        return self._log.told(key) or run.told

    def stop(self, key: Key, why: str = "", within_s: float = CANCEL_S) -> None:
        """End this attempt after a checkpoint, soon, if it runs."""
        current = self._current
        if current is None or current.key != key or current.stopping:
            return
        current.stopping = why or "stopped"
        if current.trainer is None:  # it never begins; what it needs may have been hours away
            if current.preparing is not None:
                current.preparing.cancel()
            return
        current.trainer.stop()
        asyncio.get_running_loop().call_later(within_s, current.trainer.kill)

    def rest(self, resting: bool, why: str = "its node was told to rest") -> None:
        """Take nothing new, and let go of what runs after a checkpoint; or work again."""
        self._resting = resting
        if resting and self._current is not None:
            self.stop(self._current.key, why, CLOSE_S)

    def copied(self, job: str, attempt: int, checkpoint: Checkpoint) -> None:
        """A checkpoint of this attempt is held by these nodes now."""
        run = self._current
        if run is not None and (run.order.job, run.order.attempt) == (job, attempt):
            self._say(run, checkpoint=checkpoint)
            return
        self._log.copied(job, attempt, checkpoint)
        self._on_news()

    async def idle(self) -> None:
        """Until nothing has the slot."""
        while self._current is not None and self._current.task is not None:
            await asyncio.wait((self._current.task,))

    async def close(self) -> None:
        """End what runs after a checkpoint, and wait for it."""
        self._closing = True
        current = self._current
        if current is not None and current.task is not None:
            self.stop(current.key, "its node ended", CLOSE_S)
            await asyncio.gather(current.task, return_exceptions=True)

    async def _live(self, run: _Run, ready: asyncio.Future[None]) -> None:
        """From the order to the end; what it came to is on disk when it returns."""
        try:
            told = await self._worked(run, ready)
        except (TiermeshError, OSError) as error:
            if not ready.done():  # whoever ordered hears it as the answer
                ready.set_exception(error if isinstance(error, TiermeshError) else _unwritable(error))
                self._free(run)
                return
            told = self._fallen(run, error)
        except Exception as error:
            log.exception("job %s could not be run", run.order.job)
            told = next_told(run.told, state="failed", failure="unexplained", reason=str(error) or type(error).__name__)
        if run.stopping and told.state == "stopped" and run.stopping != "stopped":
            told = next_told(told, reason=f"{run.stopping}; {told.reason}" if told.reason else run.stopping)
        await self._log.keep(run.key, told)
        run.told = told  # nobody is told of an end before the disk has it
        log.info("job %s: attempt %d %s: %s", run.order.job, run.order.attempt, told.state, told.reason)
        self._free(run)
        if not ready.done():
            ready.set_result(None)

    async def _worked(self, run: _Run, ready: asyncio.Future[None]) -> Told:
        if (done := await asyncio.to_thread(_done, run.folder)) is not None:
            return await self._completed(run, done)
        if run.stopping:
            return next_told(run.told, state="stopped", phase="prepare")
        run.preparing = asyncio.create_task(self._prepared(run), name=f"prepare {run.order.job}")
        try:
            plan = await run.preparing
            await self._log.keep(run.key, run.told)
        except asyncio.CancelledError:
            this = asyncio.current_task()
            if not run.stopping or (this is not None and this.cancelling()):
                raise
        if run.stopping:  # also while that was written
            return next_told(run.told, state="stopped")
        launch = Launch(folder=run.folder, plan=plan, memory_limit_bytes=plan.spec.memory_limit)
        run.trainer = trainer = Trainer(launch, lambda event: self._hear(run, event), self._supervise())
        log.info("job %s: attempt %d begins", run.order.job, run.order.attempt)
        if not ready.done():
            ready.set_result(None)
        self._on_news()
        ending = await trainer.run()
        if ending.how == "done" and isinstance(ending.last, Completed):
            return await self._completed(run, ending.last)
        if ending.how == "stopped" and (self._resting or self._closing):
            with suppress(TimeoutError):  # whoever goes on with it shall not do the last steps again
                async with asyncio.timeout(LAST_COPY_S):
                    await self._copies.settled(run.order.job)
        return after_end(run.told, ending)

    async def _prepared(self, run: _Run) -> RunPlan:
        """Everything it needs is here, and it may begin."""
        order = run.order
        self._say(run, phase="prepare")
        for data in filter(None, (order.data, order.eval_data)):
            await self._copies.bring(order.job, _dataset(data), [NodeId(each) for each in data.holders])
        if order.checkpoint is not None and order.checkpoint.artifact:
            point = order.checkpoint
            held = Checkpoint(point.step, point.artifact, tuple(NodeId(each) for each in point.holders))
            spec = read_spec(order.spec).model_dump(mode="json")
            await self._copies.prepare(order.job, order.attempt, run.folder, held, spec)
        plan = await asyncio.to_thread(self._groundwork.admit, order, run.folder)
        if order.attempt > 1:
            await asyncio.to_thread(_mark, run.folder, order.attempt)
        return plan

    def _fallen(self, run: _Run, error: TiermeshError | OSError) -> Told:
        """What kept it from running; whoever ordered it has its answer already."""
        reason = str(error) or type(error).__name__
        is_refusal = isinstance(error, JobRefused | RunBusy) or (run.trainer is None and _is_of_disk(error))
        if is_refusal or (isinstance(error, TiermeshError) and error.http_status == 503):
            return next_told(run.told, state="stopped", reason=reason)  # another node may do better
        kind = error.type if isinstance(error, TiermeshError) else "environment_unfit"
        return next_told(run.told, state="failed", failure=kind, reason=reason)

    async def _completed(self, run: _Run, last: Completed) -> Told:
        """With its result as an artifact, which any node can fetch."""
        plan = await asyncio.to_thread(run.folder.read_plan)
        whole = plan.spec.method == "full_finetune" or bool(getattr(plan.spec, "merge", False))
        result = last.model_dump(mode="json", exclude={"event"}) | {
            "kind": "model" if whole else "adapter",
            "base_digest": plan.model_digest,
            "result": str(run.folder.result),
        }
        try:
            artifact = await self._copies.result(run.order.job, run.folder)
        except (TiermeshError, OSError) as error:
            log.error("job %s: its result can't be given to others: %s", run.order.job, error)
            artifact = ""
        reason = f"done after {last.step} steps"
        return next_told(
            run.told, state="completed", reason=reason, result=result, artifact=artifact, holders=(self._me,)
        )

    def _hear(self, run: _Run, event: TrainingEvent) -> None:
        match event:
            case Phase(state="started"):
                self._say(run, phase=event.phase)
            case StepDone():
                run.told = after_step(run.told, event)
            case CheckpointSaved():
                self._copies.checkpoint_saved(
                    run.order.job,
                    run.order.attempt,
                    event.name,
                    run.folder,
                    replicas=run.order.checkpoint_replicas,
                    open_data=run.order.open_data,
                )

    def _say(self, run: _Run, **facts: Any) -> None:
        run.told = next_told(run.told, **facts)
        self._on_news()

    def _free(self, run: _Run) -> None:
        assert self._current is run
        self._current = None
        if not self._closing:
            self._on_training("")
        self._on_news()


def _dataset(data: DataAsked) -> Dataset:
    return Dataset(data.sha256, data.name, data.size_bytes)


def _done(folder: RunFolder) -> Completed | None:
    """What an attempt came to that ended well while nobody listened. Blocks."""
    return completion(folder.events) if folder.result.exists() else None


def _mark(folder: RunFolder, attempt: int) -> None:
    """From here on the run's events are of this attempt. Blocks."""
    with folder.events.open("ab"):
        pass
    if f'"event":"attempt","number":{attempt}' not in folder.events.read_text("utf-8", "replace"):
        add_event(folder.events, AttemptBegun(number=attempt))


def _number(folder: Path) -> int:
    digits = folder.name.removeprefix("attempt-")
    return int(digits) if digits.isdigit() else 0


def _is_of_disk(error: TiermeshError | OSError) -> bool:
    return isinstance(error, OSError | StateUnwritable)


def _unwritable(error: OSError) -> TiermeshError:
    return StateUnwritable(f"this node can't write: {error.strerror or error}")
