"""A training job sent to the mesh, and followed: what `mesh train` does without --local."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from tiermesh.cli import connect
from tiermesh.cli.outcome import FAILED, INTERRUPTED, say_error
from tiermesh.cli.run_view import Show, run_view
from tiermesh.client import Data, TrainingJob
from tiermesh.errors import InvalidSpec
from tiermesh.protocol.jobs import JobReport

if TYPE_CHECKING:
    from tiermesh.protocol.training import TrainingSpec

SUBMIT_S = 300.0
"""A node reads all of the data before it accepts a job."""


def submit(spec: TrainingSpec, given: Mapping[str, Any], *, name: str | None, url: str | None, as_json: bool) -> None:
    """Send a checked spec (`given`, as its author wrote it) with its data, and follow the job to its end.

    Ctrl-C lets go of it: the job goes on.
    """
    data = _data(spec.dataset_path, "dataset_path")
    held_out = None if spec.eval_path is None else _data(spec.eval_path, "eval_path")

    async def work() -> JobReport:
        async with connect.open_mesh(url, timeout_s=SUBMIT_S) as mesh:
            job = await mesh.train(given, data, eval_data=held_out, name=name)
            if not as_json:
                print(f"job {job.name} on {job.report.node}")
            return await _followed(job, as_json=as_json)

    end(connect.run(work()))


def watch(key: str, *, url: str | None, as_json: bool) -> None:
    """Follow a job that is there."""

    async def work() -> JobReport:
        async with connect.open_mesh(url) as mesh:
            return await _followed(await mesh.job(key), as_json=as_json)

    end(connect.run(work()))


def end(report: JobReport) -> None:
    """Say how it ended, as this command's end."""
    if report.state == "completed":
        return
    kind = f"{report.failure}: " if report.failure else ""
    say_error(f"job {report.name} {report.state}: {kind}{report.reason}")
    raise typer.Exit(FAILED)


async def _followed(job: TrainingJob, *, as_json: bool) -> JobReport:
    """Show what happens until it is over."""
    with run_view(as_json=as_json) as show:
        following = asyncio.ensure_future(_show(job, show, as_json=as_json))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, following.cancel)
        await asyncio.wait([following])
    return _let_go(job) if following.cancelled() else following.result()


async def _show(job: TrainingJob, show: Show, *, as_json: bool) -> JobReport:
    waits = ""
    async with aclosing(job.events()) as events:
        async for event in events:
            if not isinstance(event, JobReport):
                show(event)
            elif as_json:
                print(json.dumps({"event": "job", **event.model_dump(mode="json", exclude={"spec"})}))
            elif event.state == "queued" and event.reason != waits:
                waits = event.reason
                print(f"job {event.name} is queued{f': {waits}' if waits else ''}")
    return job.report


def _let_go(job: TrainingJob) -> NoReturn:
    say_error(f"job {job.name} goes on; `mesh jobs watch {job.name}` follows it, `mesh jobs cancel {job.name}` ends it")
    raise typer.Exit(INTERRUPTED)


def _data(path: str, field: str) -> Data:
    """The file, which is read on this machine and sent. Raises `InvalidSpec`."""
    file = Path(path)
    if not file.is_file():
        raise InvalidSpec(f"{field} is {path}, which is no file on this machine", param=field)
    if not os.access(file, os.R_OK):
        raise InvalidSpec(f"{field} is {path}, which can't be read", param=field)
    return Data(file)
