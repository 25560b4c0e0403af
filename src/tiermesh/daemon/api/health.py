"""`GET /api/health`: how all nodes are, asked just now; `POST /mesh/v1/health`: how this one is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from aiohttp import web

from tiermesh.core.health import mesh_level, state_of
from tiermesh.daemon.api.bodies import read_object
from tiermesh.daemon.api.context import CONTEXT
from tiermesh.daemon.survey import Asked, Survey
from tiermesh.daemon.vitals import Look, VitalsWatch
from tiermesh.protocol.health import LooksReport, MeshHealthReport, NodeHealthReport, VitalsReport
from tiermesh.types import MemberState, NodeId

HEALTH_PATH = "/mesh/v1/health"

UNREACHABLE = 0
"""The score of a node that can't be asked."""


class HealthDesk:
    """Answers about health, for this node and for all."""

    def __init__(self, watch: VitalsWatch, survey: Survey) -> None:
        self._watch = watch
        self._survey = survey

    async def own(self, *, history: bool) -> LooksReport:
        """This machine now, and as it was at its regular looks."""
        look = await self._watch.look()
        before = self._watch.history if history else ()
        return LooksReport(now=_vitals(look), history=[_vitals(each) for each in before])

    async def mesh(self, name: str, state: MemberState, *, history: bool) -> MeshHealthReport:
        """Ask all nodes at once; `name` and `state` are this one's. It comes first."""
        others = await self._survey.ask(HEALTH_PATH, {"history": history}, LooksReport)
        own = _node(self._survey.me, name, state, await self.own(history=history), None, 0.0)
        nodes = [own, *map(_asked, others)]
        return MeshHealthReport(
            node=name,
            level=mesh_level(map(_score, nodes), (a.level for n in nodes if n.now for a in n.now.alerts)),
            nodes=nodes,
        )


def register_health(app: web.Application, desk: HealthDesk) -> None:
    """Add the routes."""

    async def mesh(request: web.Request) -> web.Response:
        context = request.app[CONTEXT]
        state: MemberState = "draining" if context.draining() else "up"
        report = await desk.mesh(context.name, state, history=_wants_history(request.query.getall("history", ())))
        return web.json_response(report.model_dump(mode="json"))

    async def own(request: web.Request) -> web.Response:
        body = await read_object(request)
        report = await desk.own(history=body.get("history") is True)
        return web.json_response(report.model_dump(mode="json"))

    app.router.add_get("/api/health", mesh)
    app.router.add_post(HEALTH_PATH, own)


def _wants_history(said: Iterable[str]) -> bool:
    return any(each.lower() in ("", "1", "true", "yes") for each in said)


def _asked(asked: Asked[LooksReport]) -> NodeHealthReport:
    member = asked.member
    state = member.state if member.state != "up" else member.status.state
    return _node(member.id, member.status.name, state, asked.report, asked.problem, asked.took_ms)


def _node(
    node: NodeId, name: str, state: MemberState, report: LooksReport | None, problem: str | None, took_ms: float | None
) -> NodeHealthReport:
    return NodeHealthReport(
        id=node,
        name=name,
        state=state,
        health=state_of(None if report is None else report.now.score),
        round_trip_ms=None if took_ms is None else round(took_ms, 3),
        problem=problem,
        now=None if report is None else report.now,
        history=[] if report is None else report.history,
    )


def _score(node: NodeHealthReport) -> int:
    return UNREACHABLE if node.now is None else node.now.score


def _vitals(look: Look) -> VitalsReport:
    told = asdict(look.vitals) | {"score": look.score, "alerts": [asdict(alert) for alert in look.alerts]}
    return VitalsReport.model_validate(told, strict=False)
