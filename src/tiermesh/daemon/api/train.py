"""`POST /api/train`, and `PUT /api/data/{sha256}` for what it is to learn from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web

from tiermesh.daemon.api.attempts import register_attempts
from tiermesh.daemon.api.bodies import read_object
from tiermesh.daemon.api.jobs import register_jobs
from tiermesh.daemon.training import TrainingRoom
from tiermesh.errors import InvalidInput, NotFound
from tiermesh.protocol.jobs import DataReport, TrainRequest
from tiermesh.protocol.validation import validated

DATA_PATH = "/api/data/{sha256:[0-9a-f]{64}}"
SILENCE_S = 60.0
"""Between two pieces of an upload: who is silent for longer is gone."""


def register_training(app: web.Application, room: TrainingRoom) -> None:
    """Add all routes about training: submissions, jobs, and the door for orders."""

    async def train(request: web.Request) -> web.Response:
        asked = validated(TrainRequest, await read_object(request))
        job = await room.jobs.submit(asked)
        return web.json_response(room.jobs.report(job).model_dump(mode="json"))

    async def upload(request: web.Request) -> web.Response:
        path = await room.shelf.put(request.match_info["sha256"], _pieces(request), request.content_length)
        return web.json_response(DataReport(sha256=path.name, size_bytes=path.stat().st_size).model_dump())

    async def look(request: web.Request) -> web.Response:
        path = room.shelf.find(request.match_info["sha256"])
        if path is None:
            raise NotFound("this node has no such data")
        return web.json_response(DataReport(sha256=path.name, size_bytes=path.stat().st_size).model_dump())

    app.router.add_post("/api/train", train)
    app.router.add_put(DATA_PATH, upload)
    app.router.add_get(DATA_PATH, look)
    register_jobs(app, room)
    register_attempts(app, room)


async def _pieces(request: web.Request) -> AsyncIterator[bytes]:
    try:
        while piece := await asyncio.wait_for(request.content.readany(), SILENCE_S):
            yield piece
    except TimeoutError:
        raise InvalidInput(f"nothing of the data came for {SILENCE_S:g} s") from None
    except web.RequestPayloadError as error:
        raise InvalidInput(f"the body is not what its headers say: {' '.join(str(error).split())}") from None
