"""The peers' doors for training: what the coordinator orders of this node and asks it, and what nodes bring to the
coordinator."""

from __future__ import annotations

from aiohttp import web

from tiermesh.adapters.passport import read_stamp
from tiermesh.core.codec import encode_value
from tiermesh.core.jobs import Job, job_to_dict
from tiermesh.daemon.api.bodies import read_object
from tiermesh.daemon.api.context import CONTEXT
from tiermesh.daemon.records import record_of
from tiermesh.daemon.training import TrainingRoom
from tiermesh.errors import InvalidInput, TooLarge, Unavailable
from tiermesh.protocol.artifacts import JobsAsked, JobsEnded
from tiermesh.protocol.job_orders import (
    ATTEMPTS_PATH,
    CRASH_PATH,
    ESTIMATES_PATH,
    EVENTS_PATH,
    JOBS_PATH,
    LOG_PATH,
    STOP_PATH,
    TOLD_PATH,
    AttemptOrder,
    AttemptsTold,
    CrashAsked,
    EstimateTold,
    JobDecision,
    JobKey,
    LinesAsked,
    LogAsked,
    MemoryWanted,
    Record,
    RecordList,
    RecordsKept,
    StopOrder,
    ToldAnswer,
    WorkAsked,
)
from tiermesh.protocol.validation import Wire, validated
from tiermesh.types import NodeId

RECORDS_LEEWAY = 8
"""Times the policy's limit of a body: many records come at once."""


def register_attempts(app: web.Application, room: TrainingRoom) -> None:
    """Add the routes to this node as one that trains."""

    async def take(request: web.Request) -> web.Response:
        _check_awake(request)
        order = validated(AttemptOrder, await read_object(request, leeway=RECORDS_LEEWAY))
        return web.json_response(encode_value(await room.take(order)))

    async def stop(request: web.Request) -> web.Response:
        room.stop(validated(StopOrder, await read_object(request)))
        return web.json_response({})

    async def estimate(request: web.Request) -> web.Response:
        _check_awake(request)
        try:
            found = await room.appraisal.estimate(validated(WorkAsked, await read_object(request)))
        except TooLarge as error:
            wanted = MemoryWanted(reason=str(error), needs_bytes=error.needs_bytes, has_bytes=error.has_bytes)
            return _told(EstimateTold(too_large=wanted))
        encoded = encode_value(found)
        assert isinstance(encoded, dict)
        return _told(EstimateTold(estimate=encoded))

    async def events(request: web.Request) -> web.Response:
        return _told(await room.events.lines_here(validated(LinesAsked, await read_object(request))))

    async def log(request: web.Request) -> web.Response:
        return _told(await room.events.log_here(validated(LogAsked, await read_object(request))))

    async def crash(request: web.Request) -> web.Response:
        return _told(await room.events.crash_here(validated(CrashAsked, await read_object(request))))

    app.router.add_post(ATTEMPTS_PATH, take)
    app.router.add_post(STOP_PATH, stop)
    app.router.add_post(ESTIMATES_PATH, estimate)
    app.router.add_post(EVENTS_PATH, events)
    app.router.add_post(LOG_PATH, log)
    app.router.add_post(CRASH_PATH, crash)


def register_records(app: web.Application, room: TrainingRoom) -> None:
    """Add the routes to this node as coordinator, and as one that keeps copies."""
    reactor = room.reactor

    async def told(request: web.Request) -> web.Response:
        said = validated(AttemptsTold, await read_object(request))
        try:
            answers = await reactor.hear(_sender(request), said.attempts)
        except ValueError as error:
            raise InvalidInput(f"told: {error}") from error
        return _told(ToldAnswer(attempts=answers))

    async def submit(request: web.Request) -> web.Response:
        given = validated(Record, await read_object(request, leeway=RECORDS_LEEWAY))
        try:
            job = record_of(given.record)
        except ValueError as error:
            raise InvalidInput(f"record: {error}") from error
        return _told(Record(record=job_to_dict(await reactor.accept(_submission(job)))))

    async def decide(request: web.Request) -> web.Response:
        asked = validated(JobDecision, await read_object(request))
        return _told(Record(record=job_to_dict(await reactor.decide(asked.job, asked.decision))))

    async def find(request: web.Request) -> web.Response:
        asked = validated(JobKey, await read_object(request))
        return _told(Record(record=job_to_dict(reactor.find(asked.job))))

    async def ended(request: web.Request) -> web.Response:
        asked = validated(JobsAsked, await read_object(request))
        known = [job for job in map(reactor.known, asked.jobs) if job is not None]
        over = [str(job.id) for job in known if job.is_over]
        forgotten = [str(job.id) for job in known if job.forgotten]
        return _told(JobsEnded(over=over, forgotten=forgotten))

    async def everything(request: web.Request) -> web.Response:
        await read_object(request)
        return _told(RecordList(records=[job_to_dict(job) for job in reactor.all()]))

    async def collect(request: web.Request) -> web.Response:
        await read_object(request)
        return _told(RecordList(records=await reactor.records(_sender(request))))

    async def learn(request: web.Request) -> web.Response:
        given = validated(RecordList, await read_object(request, leeway=RECORDS_LEEWAY))
        reactor.check_leader(_sender(request))
        return _told(RecordsKept(unread=await reactor.learn(given.records, _sender(request))))

    app.router.add_post(TOLD_PATH, told)
    for name, door in (
        ("submit", submit),
        ("decide", decide),
        ("find", find),
        ("ended", ended),
        ("list", everything),
        ("collect", collect),
        ("records", learn),
    ):
        app.router.add_post(f"{JOBS_PATH}/{name}", door)


def _check_awake(request: web.Request) -> None:
    context = request.app[CONTEXT]
    if context.draining():
        raise Unavailable(f"node {context.name} is leaving the mesh, or was told to rest")


def _submission(job: Job) -> Job:
    """What may be submitted: a request, and nothing that became of one."""
    return Job(id=job.id, asked=job.asked, holders=job.holders)


def _sender(request: web.Request) -> NodeId:
    return read_stamp(request.headers).node_id


def _told(answer: Wire) -> web.Response:
    return web.json_response(answer.model_dump(mode="json"))
