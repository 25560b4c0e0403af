"""A training job sent to the mesh, and followed: what `mesh train` does without --local."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import typer

from tiermesh.cli import connect, question
from tiermesh.cli.job_view import JobChanges, spec_lines
from tiermesh.cli.outcome import FAILED, INTERRUPTED, UNDECIDED, say_error
from tiermesh.cli.run_view import View, run_view
from tiermesh.client import Data, TrainingJob
from tiermesh.errors import InvalidSpec, NotPossibleNow, TiermeshError
from tiermesh.protocol.jobs import JobReport
from tiermesh.protocol.training_events import AttemptBegun, Completed

if TYPE_CHECKING:
    from tiermesh.client import RemoteClient
    from tiermesh.protocol.training import TrainingSpec

SUBMIT_S = 300.0
"""A node reads all of the data before it accepts a job."""
SERVED_S = 5.0
"""For so long after a good end it is looked who serves the result; nodes load it meanwhile."""
LOOK_S = 0.3
"""Between two looks."""

Followed = Literal["over", "waits", "let go"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is said of a job beside its spec."""

    name: str | None = None
    yes: bool = False
    """What the gate would ask is approved already."""
    max_usd: float | None = None
    gates: Mapping[str, object] | None = None
    """What the result must reach, where it differs from the mesh's policy."""
    priority: int = 0
    open_data: bool = False
    detach: bool = False
    """Return as soon as it is accepted."""


def submit(spec: TrainingSpec, given: Mapping[str, Any], order: Order, *, url: str | None, as_json: bool) -> None:
    """Send a checked spec (`given`, as its author wrote it) with its data, and follow the job to its end.

    Ctrl-C lets go of it: the job goes on.
    """
    data = _data(spec.dataset_path, "dataset_path")
    held_out = None if spec.eval_path is None else _data(spec.eval_path, "eval_path")
    with connect.session(url, timeout_s=SUBMIT_S) as (runner, mesh):
        job = runner.run(_send(mesh, given, data, held_out, order))
        if order.name not in (None, job.name):
            say_error(f"the name {order.name} was taken: this job is {job.name}")
        if order.detach:
            _say_sent(job.report, as_json=as_json)
            return
        if not as_json:
            print(f"job {job.name} is with the mesh, by {job.report.node}")
            _say_demands(job.report)
        _conduct(runner, job, as_json=as_json)


def show_spec(spec: TrainingSpec) -> None:
    """The spec as it was understood, with what this machine can tell of the data. Raises `InvalidSpec`."""
    held_out = None if spec.eval_path is None else _look(spec, spec.eval_path, "eval_path")
    for line in spec_lines(spec, data=_look(spec, spec.dataset_path, "dataset_path"), held_out=held_out or ""):
        print(line)
    print(flush=True)


def watch(key: str, *, url: str | None, as_json: bool) -> None:
    """Follow a job that is there."""
    with connect.session(url) as (runner, mesh):
        _conduct(runner, runner.run(mesh.job(key)), as_json=as_json)


def end(report: JobReport) -> None:
    """Say how it ended, as this command's end."""
    if report.state == "completed":
        return
    kind = f"{report.failure}: " if report.failure else ""
    reason = f": {kind}{report.reason}" if report.reason not in ("", report.state) else ""
    say_error(f"job {report.name} {report.state}{reason}")
    raise typer.Exit(FAILED)


async def _send(
    mesh: RemoteClient, given: Mapping[str, Any], data: Data, held_out: Data | None, order: Order
) -> TrainingJob:
    told: set[str] = set()

    def waits(error: TiermeshError) -> None:
        if str(error) not in told:
            told.add(str(error))
            say_error(f"{error}; trying again")

    return await mesh.train(
        given,
        data,
        eval_data=held_out,
        waits=waits,
        name=order.name,
        approve=order.yes,
        max_usd=order.max_usd,
        gates=order.gates or None,
        priority=order.priority,
        open_data=order.open_data,
    )


def _conduct(runner: asyncio.Runner, job: TrainingJob, *, as_json: bool) -> None:
    """Follow it to its end; where it waits for a person, ask the one who is here."""
    changes = JobChanges()
    asks = question.on_terminal() and not as_json
    while True:
        match runner.run(_follow(job, changes, as_json=as_json)):
            case "over":
                if job.report.state == "completed" and not as_json:
                    _say_result(runner.run(_served(job)))
                return end(job.report)
            case "let go":
                _let_go(job.report)
            case "waits" if not asks:
                _say_undecided(job.report)
        _decide(runner, job)


def _decide(runner: asyncio.Runner, job: TrainingJob) -> None:
    """Until there is a decision that the mesh takes."""
    while True:
        answer = question.decide()
        if answer == "later":
            _say_undecided(job.report)
        try:
            runner.run({"approve": job.approve, "optimize": job.optimize, "cancel": job.cancel}[answer]())
        except NotPossibleNow as error:
            say_error(str(error))
            if runner.run(job.refresh()).state == "waiting":
                continue
        return


async def _follow(job: TrainingJob, changes: JobChanges, *, as_json: bool) -> Followed:
    """Show what happens until it is over, waits for a person, or nobody wants to look any longer."""
    with run_view(as_json=as_json, waits="waiting for the mesh") as view:
        following = asyncio.ensure_future(_show(job, view, changes, as_json=as_json))
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM)
        for number in numbers:
            loop.add_signal_handler(number, following.cancel)
        try:
            await asyncio.wait([following])
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)
    return "let go" if following.cancelled() else following.result()


async def _show(job: TrainingJob, view: View, changes: JobChanges, *, as_json: bool) -> Followed:
    async with aclosing(job.events()) as events:
        async for event in events:
            match event:
                case JobReport():
                    if as_json:
                        print(
                            json.dumps({"event": "job", **event.model_dump(mode="json", exclude={"spec"})}), flush=True
                        )
                    else:
                        _show_changes(event, view, changes)
                    if event.state == "waiting":
                        return "waits"
                case AttemptBegun() if not as_json:
                    pass  # the job's report says it with the reason
                case Completed() if not as_json:
                    view.show(event.model_copy(update={"result": ""}))
                case _:
                    view.show(event)
    return "over"


def _show_changes(report: JobReport, view: View, changes: JobChanges) -> None:
    for line in changes.lines(report):
        view.note(line)
    if report.state in ("estimating", "queued", "cancelling"):
        view.waits(report.state)


def _say_sent(report: JobReport, *, as_json: bool) -> None:
    if as_json:
        print(report.model_dump_json(indent=2))
    else:
        print(f"job {report.name} is with the mesh; `mesh jobs watch {report.name}` follows it")
        _say_demands(report)
        if report.state in ("estimating", "queued") and report.reason:
            print(f"it is {report.state}: {report.reason}")


def _say_demands(report: JobReport) -> None:
    if report.demands:
        print(f"to be served it must reach {report.demands}; `--gate max_final_loss=any` asks for no loss")


async def _served(job: TrainingJob) -> JobReport:
    """The job once its result is served somewhere, or nobody seems to be about to."""
    loop = asyncio.get_running_loop()
    until = loop.time() + SERVED_S
    with contextlib.suppress(TiermeshError):
        while not job.report.served and loop.time() < until:
            await asyncio.sleep(LOOK_S)
            await job.refresh()
    return job.report


def _say_result(report: JobReport) -> None:
    print(f"result: `mesh jobs results {report.name} --out FOLDER` fetches its files")
    if report.served:
        print(f'served on {", ".join(report.served)}: mesh ask --model {report.name} "..."')


def _say_undecided(report: JobReport) -> NoReturn:
    name, why = report.name, report.gate.reason if report.gate and report.gate.reason else report.reason
    say_error(
        f"job {name} waits for somebody's word{f' ({why})' if why else ''}: `mesh jobs approve {name}`, `mesh jobs "
        f"optimize {name}` for a cheaper one, or `mesh jobs cancel {name}`"
    )
    raise typer.Exit(UNDECIDED)


def _let_go(report: JobReport) -> NoReturn:
    name = report.name
    say_error(f"job {name} goes on; `mesh jobs watch {name}` follows it, `mesh jobs cancel {name}` ends it")
    raise typer.Exit(INTERRUPTED)


def _data(path: str, field: str) -> Data:
    """The file, which is read on this machine and sent. Raises `InvalidSpec`."""
    file = Path(path)
    if not file.is_file():
        raise InvalidSpec(f"{field} is {path}, which is no file on this machine", param=field)
    if not os.access(file, os.R_OK):
        raise InvalidSpec(f"{field} is {path}, which can't be read", param=field)
    return Data(file)


def _look(spec: TrainingSpec, path: str, field: str) -> str:
    """What the data is, as far as this machine can tell."""
    from tiermesh.cli.data_look import look

    _data(path, field)
    return look(spec, Path(path), field)
