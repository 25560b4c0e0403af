"""The peers' doors for copies: files by their content, and orders to keep some."""

from __future__ import annotations

from aiohttp import web

from tiermesh.daemon.api.bodies import read_object
from tiermesh.daemon.api.context import CONTEXT
from tiermesh.daemon.copies import Copies
from tiermesh.errors import NotFound, Unavailable
from tiermesh.protocol.artifacts import BLOBS_PATH, COPIES_PATH, OVER_PATH, CopyOrder, JobsAsked
from tiermesh.protocol.validation import validated


def register_blobs(app: web.Application, copies: Copies) -> None:
    """Add the routes."""

    async def give(request: web.Request) -> web.StreamResponse:
        """All of it, or what `Range` asks for. Also while this node rests: others take over what it had."""
        path = copies.blobs.find(request.match_info["sha256"])
        if path is None:
            raise NotFound("this node has no such file")
        return web.FileResponse(path, headers={"Content-Type": "application/octet-stream"})

    async def take(request: web.Request) -> web.Response:
        context = request.app[CONTEXT]
        if context.draining():
            raise Unavailable(f"node {context.name} is leaving the mesh, or was told to rest")
        report = await copies.take(validated(CopyOrder, await read_object(request)))
        return web.json_response(report.model_dump())

    async def over(request: web.Request) -> web.Response:
        asked = validated(JobsAsked, await read_object(request))
        return web.json_response(JobsAsked(jobs=copies.known_over(asked.jobs)).model_dump())

    app.router.add_get(BLOBS_PATH + "{sha256:[0-9a-f]{64}}", give)
    app.router.add_post(COPIES_PATH, take)
    app.router.add_post(OVER_PATH, over)
