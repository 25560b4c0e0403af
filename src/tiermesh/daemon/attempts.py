"""This node's training slot: one attempt at a time, ordered by whoever leads, in a folder of its own.

It takes orders, not wishes: a job's state, its queue and its retries are the affair of whoever orders. What is refused
is refused with a reason for a person: for now (`SlotTaken`) or for good.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tiermesh.adapters.catalogue import CATALOGUE
from tiermesh.adapters.data_shelf import DataShelf
from tiermesh.adapters.model_source import can_pull
from tiermesh.adapters.run_events import completion
from tiermesh.adapters.run_plan import check_libraries, data_problems, plan_of, trainable_model
from tiermesh.adapters.trainer import Ending, Launch, OnRecord, Trainer
from tiermesh.core.admission import Judgement, Machine, judge_memory, least_bytes
from tiermesh.errors import (
    DataUnusable,
    EnvironmentUnfit,
    InvalidSpec,
    JobRefused,
    RunBusy,
    SlotTaken,
    StaleOrder,
)
from tiermesh.protocol.jobs import AttemptOrder, AttemptReport, DataRef, Progress
from tiermesh.protocol.run_folder import RunFolder, RunPlan
from tiermesh.protocol.training_events import Completed, Failed, Phase, StepDone, TrainingEvent
from tiermesh.protocol.training_problems import read_spec
from tiermesh.types import Ballot, NodeId

log = logging.getLogger(__name__)

CANCEL_S = 10.0
"""From a person's order to stop until the worker is killed: it drops the step it is in, and saves in seconds. What it
had saved before is good all the same."""
CLOSE_S = 60.0
"""The same when this daemon ends: what is not saved must be done again. Less than what systemd gives a service."""


@dataclass(slots=True)
class _Attempt:
    """The one that has the slot. `trainer` is None while it is examined."""

    order: AttemptOrder
    report: AttemptReport
    trainer: Trainer | None = None
    task: asyncio.Task[None] | None = None


class Attempts:
    """Owner of the slot. `on_change` hears how an attempt ended, and nothing of its figures.

    `models` are those that this node was started with, by the names that it serves them under. `supervise` gives what
    hears of a worker's process.
    """

    def __init__(
        self,
        *,
        folder: Path,
        shelf: DataShelf,
        models: Mapping[str, str],
        promised: Callable[[], Ballot],
        memory: Callable[[], Machine],
        supervise: Callable[[], OnRecord],
        on_change: Callable[[AttemptReport], None],
    ) -> None:
        self._folder = folder
        self._shelf = shelf
        self._models = models
        self._promised = promised
        self._memory = memory
        self._supervise = supervise
        self._on_change = on_change
        self._current: _Attempt | None = None

    def run_folder(self, job: str, attempt: int) -> RunFolder:
        """Where an attempt keeps everything; it need not be there."""
        return RunFolder(self._folder / job / f"attempt-{attempt}")

    def report(self, job: str) -> AttemptReport | None:
        """Of the attempt that runs now, if it is this job's."""
        current = self._current
        return current.report if current is not None and current.order.job == job else None

    async def examine(self, order: AttemptOrder) -> None:
        """Would this node ever take it? Reads the data; nothing new is left behind when the answer is no.

        Raises `InvalidSpec`, `DataUnusable` or `JobRefused`.
        """
        run = self.run_folder(order.job, order.attempt)
        is_new = not run.path.parent.exists()
        try:
            await asyncio.to_thread(self._examine, order, run)
        except BaseException:
            if is_new:
                shutil.rmtree(run.path.parent, ignore_errors=True)  # a link or two
            raise

    async def take(self, order: AttemptOrder) -> AttemptReport:
        """Begin, or go on from the last checkpoint; the same order twice is one attempt.

        Raises `StaleOrder`, `SlotTaken`, `JobRefused`, `InvalidSpec` and `DataUnusable`.
        """
        self._check_fence(order)
        if (current := self._current) is not None:
            if current.order.job == order.job and current.order.attempt == order.attempt:
                return current.report
            raise SlotTaken(f"this node trains job {current.order.job}, and has one training slot")
        self._current = attempt = _Attempt(order, _report(order))
        try:
            if (done := await asyncio.to_thread(self._done, order)) is not None:
                self._current = None
                return done
            plan = await asyncio.to_thread(self._admitted, order)
        except BaseException:
            self._current = None
            raise
        self._start(attempt, plan)
        return attempt.report

    def stop(self, job: str, within_s: float = CANCEL_S) -> None:
        """End the job's attempt after a checkpoint, soon."""
        current = self._current
        if current is None or current.order.job != job or current.trainer is None:
            return
        current.trainer.stop()
        asyncio.get_running_loop().call_later(within_s, current.trainer.kill)

    async def close(self) -> None:
        """End what runs after a checkpoint, and wait for it."""
        current = self._current
        if current is not None and current.task is not None:
            self.stop(current.order.job, CLOSE_S)
            await asyncio.gather(current.task, return_exceptions=True)

    def _examine(self, order: AttemptOrder, run: RunFolder) -> None:
        try:
            plan = self._plan(order)
            judgement = self._judge(plan)
            if judgement.verdict == "never":
                raise JobRefused(f"this node can't train it: it {judgement.reason}")
            problems, _ = data_problems(plan.spec)
        except EnvironmentUnfit as error:
            raise JobRefused(f"this node can't train: {error}") from error
        if problems:
            raise DataUnusable(_without(run, "; ".join(map(str, problems))), param="data")

    def _check_fence(self, order: AttemptOrder) -> None:
        ballot, promised = Ballot(order.ballot.term, NodeId(order.ballot.node_id)), self._promised()
        if ballot < promised:
            raise StaleOrder(f"the order is of ballot {ballot}, and this node obeys {promised} by now")
        later = [path.name for path in (self._folder / order.job).glob("attempt-*") if _number(path) > order.attempt]
        if later:
            raise StaleOrder(f"attempt {order.attempt} of job {order.job} was replaced by {max(later)}")

    def _done(self, order: AttemptOrder) -> AttemptReport | None:
        """What an attempt came to that ended well while nobody listened. Blocks."""
        run = self.run_folder(order.job, order.attempt)
        if not run.result.exists():
            return None
        last = completion(run.events)
        return None if last is None else _ended(_report(order), Ending("done", "done", last))

    def _plan(self, order: AttemptOrder) -> RunPlan:
        """What the order names, found on this machine. Blocks."""
        check_libraries()
        run = self.run_folder(order.job, order.attempt)
        spec = read_spec(order.spec)
        source = self._model_source(spec.model_name)
        data = self._data(order.data, run, "data")
        held_out = None if order.eval_data is None else self._data(order.eval_data, run, "eval_data")
        placed = {"dataset_path": str(data), "eval_path": None if held_out is None else str(held_out)}
        try:
            plan = plan_of(spec.model_copy(update=placed | {"model_name": source}))
        except InvalidSpec as error:
            raise InvalidSpec(_without(run, str(error)), param=error.param) from None
        return plan.model_copy(update={"spec": spec.model_copy(update=placed)})

    def _admitted(self, order: AttemptOrder) -> RunPlan:
        """The plan of what may begin now. Blocks."""
        try:
            plan = self._plan(order)
        except EnvironmentUnfit as error:
            raise JobRefused(f"this node can't train: {error}") from error
        match (judgement := self._judge(plan)).verdict:
            case "fits":
                return plan
            case "wait":
                raise SlotTaken(f"it {judgement.reason}")
            case "never":
                raise JobRefused(f"it {judgement.reason}")

    def _model_source(self, name: str) -> str:
        """A name that this node or the world knows; never a path, which would be one on somebody else's machine."""
        if (own := self._models.get(name)) is not None:
            return own
        if name in CATALOGUE or (can_pull(name) and not name.startswith((".", "~", "/")) and not Path(name).exists()):
            return name
        known = ", ".join(sorted({*self._models, *CATALOGUE}))
        raise InvalidSpec(
            f"model_name is {name!r}, which is no name of a model here; there are {known}, and ORG/NAME on the Hugging "
            "Face hub. A folder is trained where it is, with --local, or by the node that serves it (--model FOLDER)",
            param="model_name",
        )

    def _data(self, ref: DataRef, run: RunFolder, field: str) -> Path:
        path = self._shelf.link(ref.sha256, ref.name, run.path / f"input-{field}")
        if path is None:
            raise DataUnusable(
                f"{field}: this node has no data {ref.sha256[:12]}…; send it first with PUT /api/data/{ref.sha256}",
                param=f"{field}.sha256",
            )
        return path

    def _judge(self, plan: RunPlan) -> Judgement:
        needed = least_bytes(trainable_model(plan.model_path).parameters, plan.spec.method)
        return judge_memory(needed, self._memory(), plan.spec.memory_limit)

    def _start(self, attempt: _Attempt, plan: RunPlan) -> None:
        run = self.run_folder(attempt.order.job, attempt.order.attempt)
        launch = Launch(folder=run, plan=plan, memory_limit_bytes=plan.spec.memory_limit)

        def hear(event: TrainingEvent) -> None:
            attempt.report = attempt.report.model_copy(update={"progress": _progress(attempt.report.progress, event)})

        attempt.trainer = Trainer(launch, hear, self._supervise())
        attempt.task = asyncio.create_task(self._live(attempt, attempt.trainer), name=f"train {attempt.order.job}")
        log.info("job %s: attempt %d begins", attempt.order.job, attempt.order.attempt)

    async def _live(self, attempt: _Attempt, trainer: Trainer) -> None:
        try:
            report = _ended(attempt.report, await trainer.run())
        except RunBusy as error:
            report = attempt.report.model_copy(update={"state": "stopped", "reason": str(error)})
        except Exception as error:
            log.exception("job %s could not be run", attempt.order.job)
            failed = {"state": "failed", "reason": str(error) or type(error).__name__, "failure": "environment_unfit"}
            report = attempt.report.model_copy(update=failed)
        self._current = None
        log.info("job %s: attempt %d %s: %s", report.job, report.attempt, report.state, report.reason)
        self._on_change(report)


def _report(order: AttemptOrder) -> AttemptReport:
    return AttemptReport(job=order.job, attempt=order.attempt, state="running")


def _ended(report: AttemptReport, ending: Ending) -> AttemptReport:
    """A worker that was killed by somebody may go on; one that crashed would crash again."""
    match ending.how, ending.last:
        case "done", Completed() as last:
            told = {"state": "completed", "result": last.model_dump(exclude={"event"})}
        case "failed", Failed() as last:
            advice = f". {last.advice}" if last.advice else ""
            told = {"state": "failed", "failure": last.kind, "reason": f"{last.message}{advice}"}
        case (("stopped" | "killed"), _):
            told = {"state": "stopped"}
        case "out_of_memory", _:
            told = {"state": "failed", "failure": "out_of_memory"}
        case _:
            told = {"state": "failed", "failure": "unexplained"}
    return report.model_copy(update={"reason": ending.reason} | told)


def _progress(before: Progress, event: TrainingEvent) -> Progress:
    match event:
        case Phase(state="started"):
            return before.model_copy(update={"phase": event.phase})
        case StepDone():
            return Progress(
                phase="train",
                step=event.step,
                steps=event.steps,
                loss=event.loss,
                tokens_per_s=event.tokens_per_s,
                eta_s=event.eta_s,
            )
    return before


def _number(folder: Path) -> int:
    digits = folder.name.removeprefix("attempt-")
    return int(digits) if digits.isdigit() else 0


def _without(run: RunFolder, text: str) -> str:
    """Names of data instead of this machine's paths."""
    return text.replace(f"{run.path}/input-data/", "").replace(f"{run.path}/input-eval_data/", "")
