"""`/api/jobs`: what became of training jobs, their events as they happen, and their end by order.

The stream of a job has two kinds of events:

    id: 57                      a line of the run's events; ids count them from 1
    data: {"event": "step", ...}

    event: job                  the job itself (`JobReport`): first of all, at each change of its state, and last
    data: {"id": ..., "state": "running", ...}

It ends when the job is over and all was told, or when the daemon ends; who asks again with the last id misses nothing.
"""

from __future__ import annotations

import asyncio
import time

from aiohttp import web

from tiermesh.adapters.event_lines import EventLines
from tiermesh.daemon.api.bodies import read_object
from tiermesh.daemon.api.relay import send, stream_response
from tiermesh.daemon.training import TrainingRoom
from tiermesh.errors import InvalidInput, Unavailable
from tiermesh.protocol.jobs import JobList, JobReport

LISTED = 200
"""The newest jobs of the list; others are asked for by name."""
WATCHERS = 64
"""Streams at once: each looks at a file again and again."""
LOOK_S = 0.2
"""Between two looks at the events' file."""
SIGN_OF_LIFE_S = 10.0
"""In a stream in which nothing happens, so that both ends and what is between them know that it lives."""


def register_jobs(app: web.Application, room: TrainingRoom) -> None:
    """Add the routes."""
    watching = 0

    async def everything(request: web.Request) -> web.Response:
        del request
        jobs = [room.jobs.report(job, brief=True) for job in room.jobs.all()[-LISTED:]]
        return web.json_response(JobList(jobs=jobs).model_dump(mode="json"))

    async def show(request: web.Request) -> web.Response:
        return _told(room.jobs.report(room.jobs.find(request.match_info["job"])))

    async def cancel(request: web.Request) -> web.Response:
        await read_object(request)
        return _told(room.jobs.report(await room.jobs.cancel(request.match_info["job"])))

    async def events(request: web.Request) -> web.StreamResponse:
        nonlocal watching
        after, job = _after(request), room.jobs.find(request.match_info["job"])
        if watching >= WATCHERS:
            raise Unavailable(f"{WATCHERS} others follow jobs here already")
        watching += 1
        try:
            return await _follow(request, room, job.id, after)
        finally:
            watching -= 1

    app.router.add_get("/api/jobs", everything)
    app.router.add_get("/api/jobs/{job}", show)
    app.router.add_get("/api/jobs/{job}/events", events)
    app.router.add_post("/api/jobs/{job}/cancel", cancel)


async def _follow(request: web.Request, room: TrainingRoom, key: str, after: int) -> web.StreamResponse:
    job = room.jobs.find(key)
    lines = EventLines(room.attempts.run_folder(job.id, job.attempt).events, after)
    told, said_at, last = None, time.monotonic(), False
    async with stream_response(request, {}) as response:
        while not last:
            job = room.jobs.find(key)
            last = job.is_over or room.ending()  # before the file is read: it is whole then
            changed = (job.state, job.reason) != told
            told = (job.state, job.reason)
            if changed and not job.is_over:
                await send(response, _job_event(room.jobs.report(job)))
            while lines.has_more() and (some := await asyncio.to_thread(lines.read)):
                said_at = time.monotonic()
                for line in some:
                    await send(response, b"id: %d\ndata: %b\n\n" % line)
            if changed and job.is_over:
                await send(response, _job_event(room.jobs.report(job)))
            if time.monotonic() > said_at + SIGN_OF_LIFE_S:
                said_at = time.monotonic()
                await send(response, b": nothing new\n\n")
            await asyncio.sleep(0 if last else LOOK_S)
    return response


def _after(request: web.Request) -> int:
    """The number of the last event that is known already."""
    given = request.headers.get("Last-Event-ID") or request.query.get("after") or "0"
    if not (given.isascii() and given.isdigit() and len(given) < 16):
        raise InvalidInput(f"after: must be the number of an event, not {given[:40]!r}", param="after")
    return int(given)


def _job_event(report: JobReport) -> bytes:
    return b"event: job\ndata: " + report.model_dump_json().encode() + b"\n\n"


def _told(report: JobReport) -> web.Response:
    return web.json_response(report.model_dump(mode="json"))
