"""`POST /api/route`: the route that a prompt would take now, with scores and reasons. It runs nothing."""

from __future__ import annotations

from aiohttp import web

from tiermesh.core.complexity import Complexity, assess
from tiermesh.core.routing import Candidate, Refusal, Route, RouteRequest
from tiermesh.daemon.api.bodies import read_object
from tiermesh.daemon.api.context import CONTEXT
from tiermesh.errors import UnknownModel
from tiermesh.protocol.route import CandidateReport, ComplexityReport, RefusalReport, RouteAsk, RouteReport
from tiermesh.protocol.validation import validated


def register_route(app: web.Application) -> None:
    """Add the route."""
    app.router.add_post("/api/route", show_route)


async def show_route(request: web.Request) -> web.Response:
    """`POST /api/route`. Raises `UnknownModel`, as the prompt itself would; nobody to ask now is an answer."""
    body = await read_object(request)
    asked = validated(RouteAsk, body)
    gateway = request.app[CONTEXT].gateway
    wanted, plan = gateway.explain(RouteRequest(asked.model, asked.tier), body)
    if isinstance(plan, Refusal) and plan.kind == "unknown":
        raise UnknownModel(plan.message, param="model")
    rule = gateway.dispatch.routing.complexity
    complexity = wanted.complexity or (assess(body["messages"], rule, tools=bool(asked.tools)) if rule else None)
    report = route_report(wanted._replace(complexity=complexity), plan, used=wanted.complexity is not None)
    return web.json_response(report.model_dump(mode="json"))


def route_report(wanted: RouteRequest, plan: Route | Refusal, *, used: bool) -> RouteReport:
    """The plan in words; `used`: the request's complexity chose the tier."""
    complexity = None if wanted.complexity is None else _complexity(wanted.complexity, used=used)
    left_out = [_candidate(candidate, scored=False) for candidate in plan.left_out]
    if isinstance(plan, Refusal):
        refusal = RefusalReport(message=plan.message, retry_after_s=plan.retry_after_s)
        return RouteReport(model=wanted.model, complexity=complexity, left_out=left_out, refusal=refusal)
    return RouteReport(
        model=wanted.model,
        tier=plan.tier,
        complexity=complexity,
        candidates=[_candidate(candidate) for candidate in plan.candidates],
        left_out=left_out,
    )


def _complexity(complexity: Complexity, *, used: bool) -> ComplexityReport:
    signals = {name: round(value, 3) for name, value in complexity.signals.items()}
    return ComplexityReport(
        score=complexity.score, tier=complexity.tier, tokens=complexity.tokens, signals=signals, used=used
    )


def _candidate(candidate: Candidate, *, scored: bool = True) -> CandidateReport:
    model, fact = candidate.model, candidate.fact
    return CandidateReport(
        node=candidate.node_name,
        node_id=candidate.node,
        model=model.name,
        digest=model.digest,
        engine=model.engine,
        tier=model.tier,
        state=model.state,
        score=candidate.score if scored else None,
        reason=candidate.reason,
        active=candidate.active,
        slots=candidate.slots,
        latency_ms=candidate.latency_ms,
        health=candidate.health,
        first_token_s=fact.first_token_s,
        tokens_per_s=fact.tokens_per_s,
        breaker=fact.breaker,
        retry_after_s=fact.retry_after_s,
        local=candidate.local,
        preferred=candidate.preferred,
    )
