"""The view, as `GET /api/cluster` tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime

from tiermesh.core.health import state_of
from tiermesh.core.messages import PROTOCOL
from tiermesh.core.routing import CandidateKey, Fact
from tiermesh.daemon.api.context import Context
from tiermesh.protocol.cluster import (
    BallotReport,
    ClusterReport,
    EngineReport,
    HardwareReport,
    HealthBrief,
    HealthReport,
    LoadReport,
    ModelReport,
    NodeName,
    NodeReport,
    PolicyReport,
)
from tiermesh.types import Ballot, Member, Model, NodeId, Policy, Status, View


def cluster_report(context: Context) -> ClusterReport:
    """This node's view of the cluster, coordinator first, then by name."""
    view, now, facts = context.view(), context.wall(), context.gateway.dispatch.facts()
    members = sorted(view.members.values(), key=lambda m: (m.id != view.coordinator, m.status.name, m.id))
    return ClusterReport(
        protocol=PROTOCOL,
        cluster=context.passport.cluster,
        open=context.passport.token is None,
        self=context.me,
        ballot=ballot_report(view.ballot),
        coordinator=_coordinator(view),
        version=view.version,
        nodes=[_node_report(member, view.coordinator, now, facts) for member in members],
    )


def health_report(context: Context) -> HealthReport:
    """This node alone."""
    member = context.view().members.get(context.me)
    return HealthReport(
        status="draining" if context.draining() else "ok",
        model=_default_model(member.status) if member is not None else None,
        version=context.version,
        node=context.name,
        node_id=context.me,
        cluster=context.passport.cluster,
        time=context.wall(),
    )


def policy_report(policy: Policy) -> PolicyReport:
    """The policy and its place in time."""
    return PolicyReport(ballot=ballot_report(policy.ballot), version=policy.version, policy=dict(policy.body))


def ballot_report(ballot: Ballot) -> BallotReport:
    """A ballot."""
    return BallotReport(term=ballot.term, node_id=ballot.node_id)


def _coordinator(view: View) -> NodeName | None:
    if view.coordinator is None:
        return None
    member = view.members.get(view.coordinator)
    return NodeName(id=view.coordinator, name=member.status.name if member is not None else "")


def _node_report(
    member: Member, coordinator: NodeId | None, now: float, facts: Mapping[CandidateKey, Fact]
) -> NodeReport:
    status = member.status
    return NodeReport(
        id=member.id,
        name=status.name,
        urls=[f"http://{address}" for address in status.addresses],
        state=member.state if member.state != "up" else status.state,
        role="coordinator" if member.id == coordinator else "member",
        tier=status.tier,
        models=[
            _model_report(model, facts.get(CandidateKey(member.id, model.engine, model.name)))
            for model in status.models
        ],
        engines=[EngineReport(**asdict(engine)) for engine in status.engines],
        hardware=HardwareReport.model_validate(asdict(status.hardware), strict=False),
        load=LoadReport(**asdict(status.load)),
        latency_ms=status.latency_ms,
        last_seen=_iso(now if member.down_since is None else member.down_since),
        version=status.version,
        health=_health(member),
        training=status.training,
    )


def _model_report(model: Model, fact: Fact | None) -> ModelReport:
    if fact is None:
        return ModelReport(**asdict(model))
    return ModelReport(**asdict(model), breaker=fact.breaker, retry_after_s=fact.retry_after_s)


def _health(member: Member) -> HealthBrief:
    """Of a node that is down nothing is known."""
    if member.state == "down":
        return HealthBrief()
    health = member.status.health
    return HealthBrief(score=health.score, state=state_of(health.score), alerts=list(health.alerts))


def _default_model(status: Status) -> str | None:
    """The first model in the node's own tier, else the first."""
    names = [model.name for model in status.models if model.tier == status.tier] or [m.name for m in status.models]
    return names[0] if names else None


def _iso(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
