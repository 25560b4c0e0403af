"""`mesh jobs`: training jobs of a node."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from tiermesh.cli import connect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tiermesh.client import RemoteClient
    from tiermesh.protocol.jobs import JobReport

app = typer.Typer(help="Training jobs of the mesh.", rich_markup_mode=None)

T = TypeVar("T")
JobName = Annotated[str, typer.Argument(metavar="JOB", help="Its name or id.")]


@app.callback(invoke_without_command=True)
def everything(ctx: typer.Context, url: connect.UrlOption = None, as_json: connect.JsonOption = False) -> None:
    """List training jobs, the newest last."""
    if ctx.invoked_subcommand is not None:
        return
    jobs = connect.run(_ask(url, lambda mesh: mesh.jobs()))
    if as_json:
        print(json.dumps([job.model_dump(mode="json") for job in jobs], indent=2))
    elif not jobs:
        print("no training jobs; `mesh train SPEC` makes one")
    else:
        for line in _table(jobs):
            print(line)


@app.command()
def show(job: JobName, url: connect.UrlOption = None, as_json: connect.JsonOption = False) -> None:
    """Tell all about one job."""
    report = connect.run(_ask(url, lambda mesh: mesh.job_report(job)))
    print(report.model_dump_json(indent=2) if as_json else "\n".join(_lines(report)))


@app.command()
def watch(job: JobName, url: connect.UrlOption = None, as_json: connect.JsonOption = False) -> None:
    """Follow a job to its end. Ctrl-C lets go of it; the job goes on."""
    from tiermesh.cli import submit

    submit.watch(job, url=url, as_json=as_json)


@app.command()
def cancel(job: JobName, url: connect.UrlOption = None, as_json: connect.JsonOption = False) -> None:
    """End a job. Its last checkpoint is kept."""
    report = connect.run(_ask(url, lambda mesh: mesh.decide_job(job, "cancel")))
    print(report.model_dump_json(indent=2) if as_json else f"job {report.name} is {report.state}")


async def _ask(url: str | None, question: Callable[[RemoteClient], Awaitable[T]]) -> T:
    async with connect.open_mesh(url) as mesh:
        return await question(mesh)


def _table(jobs: list[JobReport]) -> list[str]:
    rows = [("job", "state", "model", "method", "", ""), *map(_row, jobs)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    plain = ("  ".join([*map(str.ljust, row[:4], widths), *filter(None, row[4:])]) for row in rows)
    return [line.rstrip() for line in plain]


def _row(job: JobReport) -> tuple[str, ...]:
    return (job.name, job.state, job.model, job.method, _progress(job), job.reason if job.state != "completed" else "")


def _lines(job: JobReport) -> list[str]:
    told = {
        "job": f"{job.name} ({job.id})",
        "state": job.state + (f": {job.reason}" if job.reason else ""),
        "node": job.node,
        "model": f"{job.model}, {job.method}",
        "data": job.data.name if job.data else "",
        "progress": _progress(job),
        "submitted": _time(job.submitted_at),
        "started": _time(job.started_at),
        "ended": _time(job.ended_at),
        "held-out loss": _held_out(job),
        "result": str(job.result.get("result", "")),
    }
    return [f"{name:<14}{value}" for name, value in told.items() if value]


def _progress(job: JobReport) -> str:
    from tiermesh.cli.run_view import PHASES, duration

    now = job.progress
    if job.state != "running" or not now.phase:
        return ""
    if not now.step:
        return PHASES.get(now.phase, now.phase)
    loss = "" if now.loss is None else f", loss {now.loss:.4f}"
    left = "" if now.eta_s is None else f", {duration(now.eta_s)} left"
    return f"step {now.step}/{now.steps}{loss}{left}"


def _held_out(job: JobReport) -> str:
    loss, before = job.result.get("held_out_loss"), job.result.get("held_out_loss_before")
    return "" if loss is None or before is None else f"{loss:.4f}, {before:.4f} before"


def _time(at: float | None) -> str:
    return "" if at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
