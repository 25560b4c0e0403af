"""The peers' door for training: an order to make an attempt, which this node takes or refuses."""

from __future__ import annotations

from aiohttp import web

from tiermesh.daemon.api.bodies import read_object
from tiermesh.daemon.api.context import CONTEXT
from tiermesh.daemon.training import TrainingRoom
from tiermesh.errors import Unavailable
from tiermesh.protocol.jobs import ATTEMPTS_PATH, AttemptOrder
from tiermesh.protocol.validation import validated


def register_attempts(app: web.Application, room: TrainingRoom) -> None:
    """Add the route."""

    async def take(request: web.Request) -> web.Response:
        context = request.app[CONTEXT]
        if context.draining():
            raise Unavailable(f"node {context.name} is leaving the mesh, or was told to rest")
        report = await room.attempts.take(validated(AttemptOrder, await read_object(request)))
        return web.json_response(report.model_dump(mode="json"))

    app.router.add_post(ATTEMPTS_PATH, take)
