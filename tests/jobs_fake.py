"""A scripted mesh for tests of those who send jobs to one: `/api/data`, `/api/train`, `/api/jobs`, in a thread."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from tests.mesh_fake import FakeMesh

from tiermesh.protocol.jobs import (
    LISTED,
    CrashReport,
    DataRef,
    EstimateReport,
    GateReport,
    HappenedReport,
    JobReport,
    ResultFile,
    ResultReport,
    TriedReport,
)
from tiermesh.protocol.training_events import Completed, Phase, StepDone, TrainingEvent

ESTIMATE = EstimateReport(
    node="gpu1",
    device="a10g",
    why="the most free memory",
    memory_bytes=2_300_000_000,
    memory_bytes_low=2_100_000_000,
    memory_bytes_high=2_500_000_000,
    seconds=720.0,
    seconds_low=600.0,
    seconds_high=900.0,
    usd=0.22,
    usd_low=0.18,
    usd_high=0.28,
    usd_per_second=0.000306,
    steps=120,
    effective_batch=8,
    basis="a probe of 3 steps",
)
EVENTS: tuple[TrainingEvent, ...] = (
    Phase(phase="train", state="started"),
    StepDone(
        step=1, steps=2, epoch=0.5, loss=2.5, learning_rate=1e-4, tokens_per_s=300.0, eta_s=60.0, memory_bytes=None
    ),
    StepDone(
        step=2, steps=2, epoch=1.0, loss=1.5, learning_rate=1e-4, tokens_per_s=300.0, eta_s=0.0, memory_bytes=None
    ),
    Completed(step=2, result="r", held_out_loss=1.0, held_out_loss_before=2.0, seconds=61.0, tokens=100),
)


@dataclass
class FakeJob:
    """One job: `course` are the states that its stream tells, each when somebody comes to it."""

    report: JobReport
    body: dict[str, Any]
    events: tuple[TrainingEvent, ...] = EVENTS


@dataclass
class FakeDesk:
    """What the mesh has been given, and how it behaves."""

    jobs: dict[str, FakeJob] = field(default_factory=dict)
    data: dict[str, bytes] = field(default_factory=dict)
    posts: int = 0
    lose_replies: int = 0
    """So many submissions are accepted, and the connection is cut before the answer."""
    no_coordinator: int = 0
    """So many submissions get 503."""
    asks: bool = False
    """Does the gate ask a person?"""
    refuses: bool = False
    waits_for: str = ""
    """Why jobs that were taken wait."""
    demands: str = ""
    """What results must reach."""
    holds: bool = False
    """Do jobs stay `running` until they are cancelled?"""
    log: str = "loading\nready\n"
    crash: CrashReport | None = None
    """What is kept of the jobs' failure."""
    files: dict[str, bytes] = field(default_factory=lambda: {"adapter.bin": b"weights", "more/card.md": b"# card"})
    claims: list[ResultFile] | None = None
    """What the list of files says, where it lies."""
    cut_files: int = 0
    """So many fetches of files break off half way."""


class FakeJobs(FakeMesh):
    """Use as `with FakeJobs() as mesh`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.desk = FakeDesk()

    def routes(self, app: web.Application) -> None:
        app.router.add_get("/api/data/{sha256}", self._data)
        app.router.add_put("/api/data/{sha256}", self._take_data)
        app.router.add_post("/api/train", self._train)
        app.router.add_get("/api/jobs", self._jobs)
        app.router.add_get("/api/jobs/{job}", self._job)
        app.router.add_delete("/api/jobs/{job}", self._remove)
        app.router.add_get("/api/jobs/{job}/events", self._events)
        app.router.add_get("/api/jobs/{job}/logs", self._logs)
        app.router.add_get("/api/jobs/{job}/crash", self._crash)
        app.router.add_get("/api/jobs/{job}/report", self._page)
        app.router.add_get("/api/jobs/{job}/report.json", self._page_data)
        app.router.add_get("/api/jobs/{job}/report.png", self._picture)
        app.router.add_get("/api/jobs/{job}/results", self._results)
        app.router.add_get("/api/jobs/{job}/results/{name:.+}", self._file)
        app.router.add_post("/api/jobs/{job}/{decision}", self._decide)

    def only(self) -> FakeJob:
        """The one job that there is."""
        (job,) = self.desk.jobs.values()
        return job

    def has(self, name: str, state: Any, **facts: Any) -> FakeJob:
        """Give it a job that is there already."""
        report = JobReport(id=name.upper(), name=name, state=state, node="gpu1", submitted_at=1_780_000_000.0, **facts)
        return self.desk.jobs.setdefault(report.id, FakeJob(report, {}))

    async def _data(self, request: web.Request) -> web.Response:
        content = self.desk.data.get(sha256 := request.match_info["sha256"])
        if content is None:
            return _refused(404, "not_found", "this node has no such data")
        return web.json_response({"sha256": sha256, "size_bytes": len(content), "whole": True})

    async def _take_data(self, request: web.Request) -> web.Response:
        self.desk.data[request.match_info["sha256"]] = await request.read()
        return await self._data(request)

    async def _train(self, request: web.Request) -> web.StreamResponse:
        self.desk.posts += 1
        if self.desk.no_coordinator:
            self.desk.no_coordinator -= 1
            return _refused(503, "unavailable", "no coordinator at the moment", {"Retry-After": "0.01"})
        body = await request.json()
        job = self.desk.jobs.get(body["id"])
        if job is None:
            job = self.desk.jobs[body["id"]] = FakeJob(self._accepted(body), body)
        if self.desk.lose_replies:
            self.desk.lose_replies -= 1
            assert request.transport is not None
            request.transport.abort()
        return web.json_response(job.report.model_dump(mode="json"))

    def _accepted(self, body: dict[str, Any]) -> JobReport:
        asks = self.desk.asks and not body.get("approve")
        return JobReport(
            id=body["id"],
            name=self._free(body.get("name") or "job_1"),
            state="waiting" if asks else "refused" if self.desk.refuses else "queued",
            node="alpha",
            model=body["spec"]["model_name"],
            method=body["spec"].get("method", "lora"),
            submitted_at=1_780_000_000.0,
            reason="over 5.00 USD" if self.desk.refuses else self.desk.waits_for,
            spec=body["spec"],
            data=DataRef(**body["data"]),
            estimate=ESTIMATE,
            gate=GateReport(decision="wait" if asks else "approve", reason="0.28 USD is over 0.20"),
            demands=self.desk.demands,
        )

    def _free(self, name: str) -> str:
        return f"{name}-2" if any(job.report.name == name for job in self.desk.jobs.values()) else name

    async def _jobs(self, request: web.Request) -> web.Response:
        limit = int(request.query.get("limit", LISTED))
        over = [job.report.id for job in self.desk.jobs.values() if job.report.is_over]
        left_out = over[: max(0, len(over) - limit)]
        told = [job.report.model_dump(mode="json") for key, job in self.desk.jobs.items() if key not in left_out]
        return web.json_response({"jobs": told, "more": len(left_out)})

    def _find(self, request: web.Request) -> FakeJob:
        key = request.match_info["job"]
        found = [job for job in self.desk.jobs.values() if key in (job.report.id, job.report.name)]
        if not found:
            error = {"type": "not_found", "message": f"no job is called {key!r}", "node": "alpha"}
            raise web.HTTPNotFound(text=json.dumps({"error": error}), content_type="application/json")
        return found[0]

    async def _job(self, request: web.Request) -> web.Response:
        return _told(self._find(request).report)

    async def _remove(self, request: web.Request) -> web.Response:
        job = self._find(request)
        if not job.report.is_over:
            return _refused(409, "not_possible_now", f"job {job.report.name} is {job.report.state}: cancel it first")
        del self.desk.jobs[job.report.id]
        return web.json_response({})

    async def _events(self, request: web.Request) -> web.StreamResponse:
        job, after = self._find(request), int(request.query["after"])
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await _say(response, job.report)
        if job.report.state == "queued":
            job.report = job.report.model_copy(update={"state": "running", "node": "gpu1"})
            await _say(response, job.report)
        if job.report.state == "running":
            for number, event in enumerate(job.events[: -1 if self.desk.holds else None], start=1):
                if number > after:
                    await response.write(b"id: %d\ndata: %b\n\n" % (number, event.model_dump_json().encode()))
        while not job.report.is_over and (self.desk.holds or job.report.state == "waiting"):
            await asyncio.sleep(0.01)
            if job.report.state == "queued":
                return response
        if not job.report.is_over:
            job.report = self._ended(job)
        await _say(response, job.report)
        return response

    def _ended(self, job: FakeJob) -> JobReport:
        return job.report.model_copy(
            update={
                "state": "completed",
                "started_at": 1_780_000_010.0,
                "ended_at": 1_780_000_071.0,
                "served": ["alpha", "gpu1"],
                "result": {"result": "r", "held_out_loss": 1.0, "held_out_loss_before": 2.0, "train_loss": 1.5},
                "attempts": [TriedReport(number=1, node="gpu1", state="completed", step=2, steps=2)],
                "happened": [HappenedReport(at=1_780_000_010.0, kind="begin", text="attempt 1 on gpu1")],
            }
        )

    async def _decide(self, request: web.Request) -> web.Response:
        job, decision = self._find(request), request.match_info["decision"]
        if decision == "cancel" and not job.report.is_over:
            job.report = job.report.model_copy(update={"state": "cancelled", "reason": "cancelled"})
        elif decision == "cancel" and job.report.state == "cancelled":
            pass
        elif job.report.state != "waiting":
            message = f"job {job.report.name} is {job.report.state}: nothing is left to {decision}"
            return _refused(409, "not_possible_now", message)
        elif decision == "approve":
            job.report = job.report.model_copy(update={"state": "queued"})
        else:
            gate = GateReport(decision="wait", reason="0.15 USD is over 0.10")
            cheaper = ESTIMATE.model_copy(update={"usd_high": 0.15, "why": "cheaper"})
            job.report = job.report.model_copy(update={"gate": gate, "estimate": cheaper})
        return _told(job.report)

    async def _logs(self, request: web.Request) -> web.Response:
        self._find(request)
        lines = self.desk.log.splitlines(keepends=True)
        text = "".join(lines[-int(request.query.get("lines", 1000)) :])
        if "after" in request.query:
            text = self.desk.log[int(request.query["after"]) :]
        return web.Response(text=text, headers={"X-Log-Offset": str(len(self.desk.log))})

    async def _crash(self, request: web.Request) -> web.Response:
        name = self._find(request).report.name
        if self.desk.crash is None or request.query.get("attempt", "2") != str(self.desk.crash.attempt):
            return _refused(404, "not_found", f"there is no crash report of job {name}: no attempt left one")
        return web.json_response(self.desk.crash.model_dump(mode="json"))

    async def _page(self, request: web.Request) -> web.Response:
        text = f"# {self._find(request).report.name}\n\n![loss](report.png)\n"
        return web.Response(text=text, content_type="text/markdown")

    async def _page_data(self, request: web.Request) -> web.Response:
        return web.json_response({"name": self._find(request).report.name})

    async def _picture(self, request: web.Request) -> web.Response:
        return web.Response(body=b"PNG", content_type="image/png")

    async def _results(self, request: web.Request) -> web.Response:
        report = self._find(request).report
        files = [
            ResultFile(name=name, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
            for name, content in self.desk.files.items()
        ]
        files = self.desk.claims or files if report.state == "completed" else []
        told = ResultReport(job=report, artifact="a" * 64 if files else "", files=files)
        return web.json_response(told.model_dump(mode="json"))

    async def _file(self, request: web.Request) -> web.StreamResponse:
        content = self.desk.files[request.match_info["name"]]
        response = web.StreamResponse(headers={"Content-Length": str(len(content))})
        await response.prepare(request)
        if self.desk.cut_files:
            self.desk.cut_files -= 1
            await response.write(content[:3])
            assert request.transport is not None
            request.transport.abort()
            return response
        await response.write(content)
        return response


async def _say(response: web.StreamResponse, report: JobReport) -> None:
    await response.write(b"event: job\ndata: " + report.model_dump_json().encode() + b"\n\n")


def _told(report: JobReport) -> web.Response:
    return web.json_response(report.model_dump(mode="json"))


def _refused(status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response(
        {"error": {"type": kind, "message": message, "node": "alpha"}}, status=status, headers=headers
    )
