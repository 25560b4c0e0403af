"""`GET /metrics` for Prometheus, `GET /api/metrics` for people, `POST /mesh/v1/metrics` for other nodes that sum up."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from tiermesh.daemon.api.bodies import read_object
from tiermesh.daemon.api.context import CONTEXT
from tiermesh.daemon.survey import Survey
from tiermesh.daemon.tally import Sums, Tally
from tiermesh.protocol.metrics import CountedReport, MetricsReport, NodeMetrics, RequestFigures, RequestSums
from tiermesh.types import NodeId

METRICS_PATH = "/mesh/v1/metrics"


def register_metrics(app: web.Application, registry: CollectorRegistry, tally: Tally, survey: Survey) -> None:
    """Add the routes. `registry` and `tally` are this node's."""

    async def prometheus(request: web.Request) -> web.Response:
        # The collector reads what the loop owns, so it runs on the loop: some milliseconds for hundreds of series.
        text = generate_latest(registry)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def mesh(request: web.Request) -> web.Response:
        report = await mesh_metrics(request.app[CONTEXT].name, tally, survey)
        return web.json_response(report.model_dump(mode="json"))

    async def own(request: web.Request) -> web.Response:
        await read_object(request)
        return web.json_response(counted(tally).model_dump(mode="json"))

    app.router.add_get("/metrics", prometheus)
    app.router.add_get("/api/metrics", mesh)
    app.router.add_post(METRICS_PATH, own)


async def mesh_metrics(name: str, tally: Tally, survey: Survey) -> MetricsReport:
    """Add up what this node and all others have counted. Every node that is in the mesh has a line."""
    whole, nodes = Sums(), {NodeId(survey.me): Sums(name=name)}
    add_counts(whole, nodes, counted(tally))
    missing = {}
    for asked in await survey.ask(METRICS_PATH, {}, CountedReport):
        nodes.setdefault(asked.member.id, Sums(name=asked.member.status.name))
        if asked.report is None:
            missing[asked.member.status.name] = asked.problem or ""
        else:
            add_counts(whole, nodes, asked.report)
    told = [
        NodeMetrics(id=node, name=sums.name, **figures(sums).model_dump())
        for node, sums in sorted(nodes.items(), key=lambda item: (item[1].name, item[0]))
    ]
    return MetricsReport(node=name, cluster=figures(whole), nodes=told, missing=missing)


def counted(tally: Tally) -> CountedReport:
    """What one node counted."""
    return CountedReport(
        whole=_report(tally.whole),
        nodes={node: _report(sums) for node, sums in tally.nodes.items()},
        names={node: sums.name for node, sums in tally.nodes.items()},
    )


def add_counts(whole: Sums, nodes: dict[NodeId, Sums], report: CountedReport) -> None:
    """Add one node's counts to the sums of all."""
    _add(whole, report.whole)
    for node, sums in report.nodes.items():
        _add(nodes.setdefault(NodeId(node), Sums(name=report.names.get(node, node))), sums)


def figures(sums: Sums) -> RequestFigures:
    """Sums as people read them."""
    judged = sums.ok + sums.failed
    return RequestFigures(
        requests=sums.requests,
        succeeded=sums.ok,
        failed=sums.failed,
        success_rate=round(sums.ok / judged, 4) if judged else None,
        latency_ms=_mean_ms(sums.took_s, sums.ok),
        first_token_ms=_mean_ms(sums.first_token_s, sums.first_tokens),
        tokens_per_s=round(sums.timed_tokens / sums.making_s, 2) if sums.making_s > 0 else None,
        tokens=sums.tokens,
        last_request=None if sums.last_wall is None else _iso(sums.last_wall),
    )


_SUMMED = tuple(field.name for field in fields(Sums) if field.name not in ("name", "last_wall"))


def _report(sums: Sums) -> RequestSums:
    return RequestSums(**{name: getattr(sums, name) for name in _SUMMED}, last_request=sums.last_wall)


def _add(sums: Sums, more: RequestSums) -> None:
    for name in _SUMMED:
        setattr(sums, name, getattr(sums, name) + getattr(more, name))
    if more.last_request is not None:
        sums.last_wall = max(more.last_request, sums.last_wall or 0.0)


def _mean_ms(sum_s: float, count: int) -> float | None:
    return round(1000 * sum_s / count, 3) if count else None


def _iso(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
