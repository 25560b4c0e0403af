"""`POST /api/train`, on any node."""

from __future__ import annotations

from aiohttp import web

from tiermesh.daemon.api.attempts import register_attempts, register_records
from tiermesh.daemon.api.blobs import register_blobs
from tiermesh.daemon.api.bodies import read_object
from tiermesh.daemon.api.callers import submitter_of
from tiermesh.daemon.api.data import register_data
from tiermesh.daemon.api.job_report import register_report
from tiermesh.daemon.api.jobs import register_jobs
from tiermesh.daemon.api.openai_tuning import register_tuning
from tiermesh.daemon.training import TrainingRoom
from tiermesh.protocol.jobs import TrainRequest
from tiermesh.protocol.validation import validated


def register_training(app: web.Application, room: TrainingRoom) -> None:
    """Add all routes about training: submissions, data, jobs, and the peers' doors."""

    async def train(request: web.Request) -> web.Response:
        asked = validated(TrainRequest, await read_object(request))
        job = await room.scheduler.submit(asked, submitter=submitter_of(request))
        return web.json_response(room.scheduler.report(job).model_dump(mode="json"))

    app.router.add_post("/api/train", train)
    register_data(app, room.blobs)
    register_blobs(app, room.copies)
    register_jobs(app, room)
    register_report(app, room.desk)
    register_tuning(app, room.desk, room.files)
    register_attempts(app, room)
    register_records(app, room)
