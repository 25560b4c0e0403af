"""`mesh jobs`: the training jobs of the mesh."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from tiermesh.cli import connect, names
from tiermesh.cli.outcome import say_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tiermesh.client import RemoteClient
    from tiermesh.client.jobs import Decision
    from tiermesh.protocol.jobs import JobReport

app = typer.Typer(help="Training jobs of the mesh.", rich_markup_mode=None)

LINES_HELP = "The last ones only; 0: all that its node keeps, which is the last 1 to 2 MiB. [default: 50]"
FETCH_S = 600.0
"""Of silence, in which a node may be fetching a result from another one."""

T = TypeVar("T")
JobName = Annotated[str, typer.Argument(metavar="JOB", help="Its name or id.", autocompletion=names.jobs)]


LimitOption = Annotated[
    int | None,
    typer.Option("--limit", min=0, help="Jobs that are over, at most; all others are always listed. [default: 200]"),
]
AllOption = Annotated[bool, typer.Option("--all", help="As many as a node lists, which is 10,000 that are over.")]


@app.callback(invoke_without_command=True)
def everything(
    ctx: typer.Context,
    limit: LimitOption = None,
    all_: AllOption = False,
    url: connect.UrlOption = None,
    as_json: connect.JsonOption = False,
) -> None:
    """List training jobs, the newest last."""
    if ctx.invoked_subcommand is None:
        _list(url, limit, all_=all_, as_json=as_json)


@app.command("list")
def list_(
    limit: LimitOption = None,
    all_: AllOption = False,
    url: connect.UrlOption = None,
    as_json: connect.JsonOption = False,
) -> None:
    """List training jobs, the newest last."""
    _list(url, limit, all_=all_, as_json=as_json)


@app.command()
def show(job: JobName, url: connect.UrlOption = None, as_json: connect.JsonOption = False) -> None:
    """Tell all about one job."""
    from tiermesh.cli.job_view import job_lines

    report = connect.run(_ask(url, lambda mesh: mesh.job_report(job)))
    print(report.model_dump_json(indent=2) if as_json else "\n".join(job_lines(report, time.time())))


@app.command()
def watch(job: JobName, url: connect.UrlOption = None, as_json: connect.JsonOption = False) -> None:
    """Follow a job to its end. Ctrl-C lets go of it; the job goes on."""
    from tiermesh.cli import submit

    submit.watch(job, url=url, as_json=as_json)


@app.command()
def logs(
    job: JobName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job is over.")] = False,
    attempt: Annotated[int | None, typer.Option("--attempt", min=1, help="[default: the newest]")] = None,
    lines: Annotated[int | None, typer.Option("--lines", "-n", min=0, help=LINES_HELP)] = None,
    url: connect.UrlOption = None,
) -> None:
    """Show what a job's worker and its libraries said."""

    async def work(mesh: RemoteClient) -> None:
        found = await mesh.job(job)
        if not follow:
            text = await found.logs(attempt=attempt, lines=lines)
            print(text, end="", flush=True)
            if not text:
                of = attempt or found.report.attempt
                say_error(f"the worker of attempt {of} has said nothing; what happened: mesh jobs watch {found.name}")
            return
        async for text in found.follow_logs(lines=lines):
            print(text, end="", flush=True)

    if follow and attempt is not None:
        raise typer.BadParameter("--follow is about the newest attempt", param_hint="--attempt")
    connect.run(_ask(url, work))


@app.command()
def crash(
    job: JobName,
    attempt: Annotated[int | None, typer.Option("--attempt", min=1, help="[default: the newest with one]")] = None,
    url: connect.UrlOption = None,
    as_json: connect.JsonOption = False,
) -> None:
    """Show what is kept of a job's failure: the stack, memory, the last events."""
    from tiermesh.cli.crash_view import crash_lines

    found = connect.run(_ask(url, lambda mesh: mesh.job_crash(job, attempt=attempt)))
    print(found.model_dump_json(indent=2) if as_json else "\n".join(crash_lines(found)))


@app.command()
def results(
    job: JobName,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Fetch its files into this folder.")] = None,
    url: connect.UrlOption = None,
    as_json: connect.JsonOption = False,
) -> None:
    """Show how a job ended and what it left."""
    from tiermesh.cli.job_view import ended_lines
    from tiermesh.cli.render import size

    async def work(mesh: RemoteClient) -> None:
        found = await (await mesh.job(job)).results(out)
        if as_json:
            print(found.model_dump_json(indent=2))
            return
        for line in ended_lines(found.job):
            print(line)
        for file in found.files:
            print(f"  {file.name}  {size(file.size_bytes)}")
        if out is not None:
            print(f"fetched to {out}")

    connect.run(_ask(url, work, timeout_s=FETCH_S))


@app.command()
def approve(job: JobName, url: connect.UrlOption = None, as_json: connect.JsonOption = False) -> None:
    """Let a job run that waits for somebody's word, because of what it may cost."""
    _decide(job, "approve", url, as_json=as_json)


@app.command()
def optimize(job: JobName, url: connect.UrlOption = None, as_json: connect.JsonOption = False) -> None:
    """Have a job made cheaper that waits for somebody's word, and judged again."""
    _decide(job, "optimize", url, as_json=as_json)


@app.command()
def retry(job: JobName, url: connect.UrlOption = None, as_json: connect.JsonOption = False) -> None:
    """Ask every node again that refused a job which waits for one."""
    _decide(job, "retry", url, as_json=as_json)


@app.command()
def cancel(job: JobName, url: connect.UrlOption = None, as_json: connect.JsonOption = False) -> None:
    """End a job. Its last checkpoint is kept."""
    _decide(job, "cancel", url, as_json=as_json)


@app.command()
def report(
    job: JobName,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write it there, with the picture beside it.")] = None,
    url: connect.UrlOption = None,
    as_json: connect.JsonOption = False,
) -> None:
    """Show all of a job as a page of Markdown."""
    from tiermesh.cli.job_page import fetch_page, write_page

    if as_json:
        print(json.dumps(connect.run(_ask(url, lambda mesh: mesh.job_page_data(job))), indent=2))
        return
    text, picture = connect.run(_ask(url, lambda mesh: fetch_page(mesh, job)))
    if out is None:
        print(text, end="")
        return
    for path in write_page(out / "report.md" if out.is_dir() else out, text, picture):
        print(path)


@app.command()
def rm(
    jobs: Annotated[list[str], typer.Argument(metavar="JOB...", help="Names or ids.", autocompletion=names.jobs)],
    url: connect.UrlOption = None,
) -> None:
    """Forget jobs that are over, with their results."""

    async def work(mesh: RemoteClient) -> None:
        for job in jobs:
            await mesh.remove_job(job)
            print(f"job {job} is forgotten")

    connect.run(_ask(url, work))


def _list(url: str | None, limit: int | None, *, all_: bool, as_json: bool) -> None:
    from tiermesh.cli.job_view import table
    from tiermesh.protocol.jobs import MAX_LISTED

    asked = MAX_LISTED if all_ else limit
    found = connect.run(_ask(url, lambda mesh: mesh.job_list(asked)))
    if as_json:
        print(json.dumps([job.model_dump(mode="json") for job in found.jobs], indent=2))
    elif not found.jobs and not found.more:
        print("no training jobs; `mesh train SPEC` makes one")
    else:
        print("\n".join(table(found.jobs, time.time())))
    if found.more:
        how = "" if asked is not None and asked >= MAX_LISTED else "; `mesh jobs --all` lists them"
        left_out = f"{found.more} more that are over, and ended before these{how}"
        say_error(left_out) if as_json else print(left_out)


def _decide(job: str, decision: Decision, url: str | None, *, as_json: bool) -> None:
    async def work(mesh: RemoteClient) -> tuple[str, JobReport]:
        before = (await mesh.job_report(job)).state if decision == "cancel" else ""
        return before, await mesh.decide_job(job, decision)

    before, told = connect.run(_ask(url, work))
    if as_json:
        print(told.model_dump_json(indent=2))
    elif decision == "cancel" and before in ("cancelled", "cancelling"):
        is_so = f"is over already ({told.state})" if told.is_over else f"is {told.state} already"
        print(f"job {told.name} {is_so}: nothing was done")
    elif decision == "retry":
        why = f": {told.reason}" if told.reason else ""
        print(f"job {told.name} is {told.state}{why}; whoever refused it is asked again")
    else:
        print(f"job {told.name} is {told.state}")


async def _ask(
    url: str | None, question: Callable[[RemoteClient], Awaitable[T]], *, timeout_s: float = connect.LOOK_S
) -> T:
    async with connect.open_mesh(url, timeout_s=timeout_s) as mesh:
        return await question(mesh)
