"""OpenAI's `/v1/files` and `/v1/fine_tuning/jobs`, on any node."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import AsyncExitStack
from typing import TypeVar

from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from tiermesh.adapters.sent_files import SentFile
from tiermesh.daemon.api import translate_tuning as told
from tiermesh.daemon.api.bodies import read_object
from tiermesh.daemon.api.callers import submitter_of
from tiermesh.daemon.api.context import CONTEXT
from tiermesh.daemon.api.refusing import refused
from tiermesh.daemon.files import FILES_PATH as PEER_FILES_PATH
from tiermesh.daemon.files import FileDesk
from tiermesh.daemon.job_desk import JobDesk
from tiermesh.errors import InvalidInput, NotFound
from tiermesh.protocol.jobs import GivenData, JobReport, TrainRequest
from tiermesh.protocol.openai_tuning import (
    FILES_PAGE,
    FILES_PATH,
    PAGE,
    TUNING_PATH,
    FileDeleted,
    FileObject,
    PageQuery,
    TuningRequest,
)
from tiermesh.protocol.ulid import CHANCE_BYTES, make_ulid
from tiermesh.protocol.validation import Wire, validated

T = TypeVar("T")

PURPOSE = "fine-tune"
RESULTS = "fine-tune-results"
SILENCE_S = 60.0
"""Between two pieces of an upload: who is silent for longer is gone. A form's other parts come whole within it."""
PIECE_BYTES = 1 << 16
FIELD_LIMIT_BYTES = 1024
"""Of a form's field that is no file."""
CANCELLED_S = 5.0
"""How long an answer waits for a worker to save and end, so that it says `cancelled`."""
LOOK_S = 0.1
IDEMPOTENCY = "Idempotency-Key"
"""Two requests with the same one are one job."""


def register_tuning(app: web.Application, desk: JobDesk, files: FileDesk) -> None:
    """Add the routes."""
    _Files(desk, files).register(app)
    _Jobs(desk, files).register(app)


class _Files:
    def __init__(self, desk: JobDesk, files: FileDesk) -> None:
        self._desk = desk
        self._files = files

    def register(self, app: web.Application) -> None:
        app.router.add_post(FILES_PATH, self.create)
        app.router.add_get(FILES_PATH, self.list)
        app.router.add_get(f"{FILES_PATH}/{{file}}", self.show)
        app.router.add_delete(f"{FILES_PATH}/{{file}}", self.delete)
        app.router.add_get(f"{FILES_PATH}/{{file}}/content", self.content)
        app.router.add_post(PEER_FILES_PATH, self.answer)

    async def create(self, request: web.Request) -> web.Response:
        """The form's parts may come in any order; the file is written as it comes."""
        try:
            async with AsyncExitStack() as coming:
                return _json(told.told_file(await self._taken(request, coming)))
        except InvalidInput:
            raise
        except (web.RequestPayloadError, HttpProcessingError, ValueError, AssertionError) as error:  # all are aiohttp's
            reason = " ".join(str(error).split())
            raise InvalidInput(f"the body is not the form that its headers say: {reason}") from None

    async def _taken(self, request: web.Request, coming: AsyncExitStack) -> SentFile:
        """Kept once the whole form was read, and nothing in it was wrong."""
        form = await request.multipart()
        purpose, name, staged = "", "", None
        while (part := await _in_time("the form", form.next())) is not None:
            if not isinstance(part, BodyPartReader):
                raise refused("file", "must not be a form within a form")
            match part.name:
                case "purpose":
                    purpose = await _in_time("purpose", _field(part))
                    if purpose != PURPOSE:
                        raise refused("purpose", f"{purpose!r} is not supported by this mesh; there is {PURPOSE}")
                case "file" if staged is None:
                    name = part.filename or "data.jsonl"
                    staged = await coming.enter_async_context(self._files.coming(_pieces(part)))
                case other:
                    raise refused(other or "the body", "is not supported by this mesh; leave it out")
        if staged is None or not purpose:
            raise refused("purpose" if staged else "file", "is required")
        return await self._files.keep(name, PURPOSE, staged)

    async def list(self, request: web.Request) -> web.Response:
        asked = _page_query(request)
        entries = [told.told_file(entry) for entry in await self._files.all() if asked.purpose in (None, entry.purpose)]
        ordered = entries if asked.order == "desc" else entries[::-1]
        return _json(told.page(ordered, asked, FILES_PAGE))

    async def show(self, request: web.Request) -> web.Response:
        ident = request.match_info["file"]
        if ident.startswith(told.RESULT_PREFIX):
            return _json((await self._result(ident))[0])
        return _json(told.told_file(await self._files.find(ident)))

    async def delete(self, request: web.Request) -> web.Response:
        ident = request.match_info["file"]
        if ident.startswith(told.RESULT_PREFIX):
            raise InvalidInput("file: the figures of a job stay as long as the job", param="file")
        await self._files.delete(ident)
        return _json(FileDeleted(id=ident))

    async def content(self, request: web.Request) -> web.StreamResponse:
        ident = request.match_info["file"]
        if ident.startswith(told.RESULT_PREFIX):
            return web.Response(body=(await self._result(ident))[1], content_type="text/csv")
        _, path = await self._files.content(ident)
        return web.FileResponse(path, headers={"Content-Type": "application/octet-stream"})

    async def answer(self, request: web.Request) -> web.Response:
        """What this node alone knows, for another one."""
        return web.json_response(await self._files.answer(await read_object(request)))

    async def _result(self, ident: str) -> tuple[FileObject, bytes]:
        job = await self._desk.find(ident.removeprefix(told.RESULT_PREFIX))
        if job.state != "completed":
            raise NotFound(f"job {job.name} is {job.state}: there are no figures of its end", param="file")
        table = told.result_table(await self._desk.lines(job.id))
        about = FileObject(
            id=ident,
            bytes=len(table),
            created_at=int(job.ended_at or 0),
            filename="step_metrics.csv",
            purpose=RESULTS,
        )
        return about, table


class _Jobs:
    def __init__(self, desk: JobDesk, files: FileDesk) -> None:
        self._desk = desk
        self._files = files

    def register(self, app: web.Application) -> None:
        one = f"{TUNING_PATH}/{{job}}"
        app.router.add_post(TUNING_PATH, self.create)
        app.router.add_get(TUNING_PATH, self.list)
        app.router.add_get(one, self.show)
        app.router.add_get(f"{one}/events", self.events)
        app.router.add_get(f"{one}/checkpoints", self.checkpoints)
        app.router.add_post(f"{one}/cancel", self.cancel)
        app.router.add_post(f"{one}/resume", self.resume)

    async def create(self, request: web.Request) -> web.Response:
        asked = validated(TuningRequest, await read_object(request))
        spec = told.spec_of(asked)
        data = await self._given(asked.training_file, "training_file")
        held_out = asked.validation_file and await self._given(asked.validation_file, "validation_file")
        order = TrainRequest(
            id=_job_id(request.headers, request.app[CONTEXT].wall()),
            name=told.label_of(asked.suffix),
            spec=spec,
            data=data,
            eval_data=held_out or None,
        )
        return _told(request, await self._desk.submit(order, submitter_of(request)))

    async def list(self, request: web.Request) -> web.Response:
        now = request.app[CONTEXT].wall()
        jobs = [told.told_job(report, now) for report in await self._desk.all()]
        return _json(told.page(jobs, _page_query(request), PAGE))

    async def show(self, request: web.Request) -> web.Response:
        return _told(request, await self._asked(request))

    async def events(self, request: web.Request) -> web.Response:
        job = await self._asked(request)
        lines = await self._desk.lines(job.id)
        happened = [(each.at, each.text) for each in job.happened if each.text]
        events = await asyncio.to_thread(told.told_events, job.id, lines, happened)
        return _json(told.page(events, _page_query(request), PAGE))

    async def checkpoints(self, request: web.Request) -> web.Response:
        job = await self._asked(request)
        lines = await self._desk.lines(job.id)
        found = await asyncio.to_thread(told.told_checkpoints, job, lines)
        return _json(told.page(found, _page_query(request), PAGE))

    async def cancel(self, request: web.Request) -> web.Response:
        """Answers when it is over, if that is soon."""
        await _empty(request)
        key = told.job_key(request.match_info["job"])
        job = await self._desk.cancel(key)
        loop = asyncio.get_running_loop()
        until = loop.time() + CANCELLED_S
        while not job.is_over and loop.time() < until:
            await asyncio.sleep(LOOK_S)
            job = await self._desk.find(job.id)
        return _told(request, job)

    async def resume(self, request: web.Request) -> web.Response:
        """A job is paused while it waits for a person's word about its cost: this is the word."""
        await _empty(request)
        return _told(request, await self._desk.approve(told.job_key(request.match_info["job"])))

    async def _asked(self, request: web.Request) -> JobReport:
        return await self._desk.find(told.job_key(request.match_info["job"]))

    async def _given(self, ident: str, field: str) -> GivenData:
        """The file's data, on this node from now on."""
        try:
            entry, _ = await self._files.content(ident)
        except NotFound:
            raise refused(field, f"no file is called {ident[:60]!r}; send it first, to {FILES_PATH}") from None
        return GivenData(name=entry.name, sha256=entry.sha256)


async def _field(part: BodyPartReader) -> str:
    """A short text of the form."""
    text = await part.read_chunk(FIELD_LIMIT_BYTES)
    if not part.at_eof() and await part.read_chunk(FIELD_LIMIT_BYTES):  # no less: it must find the boundary
        raise refused(part.name or "the body", "is too long")
    return text.decode(errors="replace").strip()


async def _in_time(what: str, coming: Awaitable[T]) -> T:
    """Raises `InvalidInput` when it does not come."""
    try:
        async with asyncio.timeout(SILENCE_S):
            return await coming
    except TimeoutError:
        raise InvalidInput(f"{what}: did not come within {SILENCE_S:g} s") from None


async def _pieces(part: BodyPartReader) -> AsyncIterator[bytes]:
    try:
        while piece := await asyncio.wait_for(part.read_chunk(PIECE_BYTES), SILENCE_S):
            yield piece
    except TimeoutError:
        raise InvalidInput(f"file: nothing of it came for {SILENCE_S:g} s", param="file") from None


async def _empty(request: web.Request) -> None:
    """These take no body; clients send none, or an empty object."""
    if request.can_read_body:
        await read_object(request)


def _job_id(headers: Mapping[str, str], wall: float) -> str | None:
    """The same for the same key; None: a new one."""
    key = headers.get(IDEMPOTENCY)
    if not key:
        return None
    digest = hashlib.sha256(key.encode()).digest()
    return make_ulid(int.from_bytes(digest[:6], "big") & 0x7FFF_FFFF_FFFF, digest[6 : 6 + CHANCE_BYTES])


def _page_query(request: web.Request) -> PageQuery:
    given = {name: value for name, value in request.query.items() if value}
    for name in given:
        if name.startswith("metadata"):
            raise refused("metadata", "is not kept by this mesh, so nothing is found by it")
    limit = given.pop("limit", None)
    if limit is not None and not (limit.isascii() and limit.isdigit() and len(limit) < 9):
        raise refused("limit", f"must be a whole number, not {limit[:20]!r}")
    return validated(PageQuery, given | ({} if limit is None else {"limit": int(limit)}))


def _told(request: web.Request, job: JobReport) -> web.Response:
    return _json(told.told_job(job, request.app[CONTEXT].wall()))


def _json(body: Wire) -> web.Response:
    return web.json_response(body.model_dump(mode="json"))
