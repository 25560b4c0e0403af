"""`GET /api/jobs/{job}/report`: all of a job on one page (Markdown); `report.json` the same as data, `report.png` its
loss curve."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from aiohttp import web

from tiermesh.adapters import loss_picture
from tiermesh.core.report import Report, as_json, as_markdown
from tiermesh.daemon.api.context import CONTEXT
from tiermesh.daemon.api.told_report import report_of
from tiermesh.daemon.job_desk import JobDesk
from tiermesh.errors import NotFound

DRAWING_LIMIT = 2
"""Pictures drawn at once; each is a process that loads for a second."""
PICTURE = "report.png"
"""Beside the page."""


def register_report(app: web.Application, desk: JobDesk) -> None:
    """Add the routes."""
    drawing = asyncio.Semaphore(DRAWING_LIMIT)

    async def told(request: web.Request) -> Report:
        job = await desk.find(request.match_info["job"])
        lines = await desk.lines(job.id)
        report = await asyncio.to_thread(report_of, job, lines, request.app[CONTEXT].wall())
        return _pictured(report)

    async def page(request: web.Request) -> web.Response:
        return web.Response(text=as_markdown(await told(request)), content_type="text/markdown")

    async def data(request: web.Request) -> web.Response:
        return web.json_response(as_json(await told(request)))

    async def picture(request: web.Request) -> web.Response:
        report = await told(request)
        if not report.curve.losses:
            raise NotFound(f"job {report.name} made no step yet, so there is no curve to be drawn", param="job")
        async with drawing:
            png = await loss_picture.draw(f"Job {report.name}", report.curve.losses, report.curve.held_out)
        return web.Response(body=png, content_type="image/png")

    app.router.add_get("/api/jobs/{job}/report", page)
    app.router.add_get("/api/jobs/{job}/report.json", data)
    app.router.add_get(f"/api/jobs/{{job}}/{PICTURE}", picture)


def _pictured(report: Report) -> Report:
    if not report.curve.losses:
        return report
    why_not = loss_picture.obstacle()
    return replace(report, picture=PICTURE) if why_not is None else replace(report, no_picture=why_not)
