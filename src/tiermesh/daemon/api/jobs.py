"""`/api/jobs`, on any node: what became of training jobs, their events as they happen, what they left, and what a
person decides about them.

The stream of a job has two kinds of events:

    id: 1000000057              a line of a run's events; ids rise over all attempts (`adapters.event_lines`)
    data: {"event": "step", ...}

    event: job                  the job itself (`JobReport`): first of all, at each change of it, and last
    data: {"id": ..., "state": "running", ...}

It ends when the job is over and all was told, or when the daemon ends; who asks any node again with the last id misses
nothing.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from pathlib import Path

from aiohttp import web

from tiermesh.core.foreman import Decision
from tiermesh.core.jobs import Job
from tiermesh.daemon.api.bodies import read_object
from tiermesh.daemon.api.relay import hang_up, send, stream_response
from tiermesh.daemon.training import TrainingRoom
from tiermesh.errors import InvalidInput, TiermeshError, Unavailable
from tiermesh.protocol.headers import LOG_OFFSET
from tiermesh.protocol.jobs import LISTED, MAX_LISTED, JobReport

LISTED_AT_ONCE = 100
"""Then others have a turn: ten thousand jobs take most of a second."""
WATCHERS = 64
"""Streams at once: each looks at a file again and again."""
SIGN_OF_LIFE_S = 10.0
"""In a stream in which nothing happens, so that both ends and what is between them know that it lives."""
BINARY = {"Content-Type": "application/octet-stream"}
LOG_LINES = 50
MAX_LOG_LINES = 10_000


def register_jobs(app: web.Application, room: TrainingRoom) -> None:
    """Add the routes."""
    watching, scheduler = 0, room.scheduler

    async def everything(request: web.Request) -> web.Response:
        limit = _number(request, "limit", 6)
        jobs, more = listed(await scheduler.all(), LISTED if limit is None else min(limit, MAX_LISTED))
        told: list[str] = []
        for job in jobs:
            told.append(scheduler.report(job, brief=True).model_dump_json())
            if len(told) % LISTED_AT_ONCE == 0:
                await asyncio.sleep(0)
        return web.json_response(text=f'{{"jobs": [{", ".join(told)}], "more": {more}}}')

    async def show(request: web.Request) -> web.Response:
        return _told(scheduler.report(await scheduler.find(request.match_info["job"])))

    def deciding(decision: Decision) -> None:
        async def decide(request: web.Request) -> web.Response:
            await read_object(request)
            return _told(scheduler.report(await scheduler.decide(request.match_info["job"], decision)))

        app.router.add_post(f"/api/jobs/{{job}}/{decision}", decide)

    async def forget(request: web.Request) -> web.Response:
        return _told(scheduler.report(await scheduler.decide(request.match_info["job"], "forget")))

    async def events(request: web.Request) -> web.StreamResponse:
        nonlocal watching
        after, job = _number(request, "after", 16), await scheduler.find(request.match_info["job"])
        if watching >= WATCHERS:
            raise Unavailable(f"{WATCHERS} others follow jobs here already")
        watching += 1
        try:
            return await _follow(request, room, job.id, after or 0)
        finally:
            watching -= 1

    async def logs(request: web.Request) -> web.Response:
        lines = _number(request, "lines", 6)
        told = await room.events.log(
            request.match_info["job"],
            attempt=_number(request, "attempt", 8),
            lines=LOG_LINES if lines is None else min(lines, MAX_LOG_LINES),
            after=_number(request, "after", 16),
        )
        return web.Response(text=told.text, content_type="text/plain", headers={LOG_OFFSET: str(told.offset)})

    async def crash(request: web.Request) -> web.Response:
        found = await room.events.crash(request.match_info["job"], attempt=_number(request, "attempt", 8))
        return web.json_response(found.model_dump(mode="json"))

    async def results(request: web.Request) -> web.Response:
        found = await room.results.report(request.match_info["job"])
        return web.json_response(found.model_dump(mode="json"))

    async def result_file(request: web.Request) -> web.StreamResponse:
        found, size = await room.results.file(request.match_info["job"], request.match_info["name"])
        if isinstance(found, Path):
            return web.FileResponse(found, headers=BINARY)
        response = web.StreamResponse(headers=BINARY | {"Content-Length": str(size)})
        async with aclosing(found):
            first = await anext(found, b"")  # before anything is promised: is there a node that gives it?
            await response.prepare(request)
            try:
                await send(response, first)
                async for piece in found:
                    await send(response, piece)
            except TiermeshError:
                hang_up(request)  # what is cut off can't be mistaken for what is complete
                return response
        await response.write_eof()
        return response

    app.router.add_get("/api/jobs", everything)
    app.router.add_get("/api/jobs/{job}", show)
    app.router.add_delete("/api/jobs/{job}", forget)
    app.router.add_get("/api/jobs/{job}/events", events)
    app.router.add_get("/api/jobs/{job}/logs", logs)
    app.router.add_get("/api/jobs/{job}/crash", crash)
    app.router.add_get("/api/jobs/{job}/results", results)
    app.router.add_get("/api/jobs/{job}/results/{name:.+}", result_file)
    deciding("cancel")
    deciding("approve")
    deciding("optimize")
    deciding("retry")


def listed(jobs: list[Job], limit: int) -> tuple[list[Job], int]:
    """All that are not over, and of the others the `limit` that ended last, in their order; how many are left out."""
    over = sorted((job for job in jobs if job.is_over), key=lambda job: (job.ended_at or job.submitted_at, job.id))
    left_out = {job.id for job in over[: max(0, len(over) - limit)]}
    return [job for job in jobs if job.id not in left_out], len(left_out)


async def _follow(request: web.Request, room: TrainingRoom, key: str, after: int) -> web.StreamResponse:
    said_at = time.monotonic()
    async with stream_response(request, {}) as response, aclosing(room.events.lines(key, after)) as lines:
        async for each in lines:
            match each:
                case Job():
                    await send(response, _job_event(room.scheduler.report(each)))
                case (number, line):
                    await send(response, b"id: %d\ndata: %b\n\n" % (number, line))
                case None if time.monotonic() > said_at + SIGN_OF_LIFE_S:
                    await send(response, b": nothing new\n\n")
                case None:
                    continue
            said_at = time.monotonic()
    return response


def _number(request: web.Request, name: str, digits: int) -> int | None:
    """A number that was asked for; of events, the last one that is known already."""
    header = request.headers.get("Last-Event-ID") if name == "after" else None
    given = header or request.query.get(name)
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and len(given) < digits):
        raise InvalidInput(f"{name}: must be a number, not {given[:40]!r}", param=name)
    return int(given)


def _job_event(report: JobReport) -> bytes:
    return b"event: job\ndata: " + report.model_dump_json().encode() + b"\n\n"


def _told(report: JobReport) -> web.Response:
    return web.json_response(report.model_dump(mode="json"))
