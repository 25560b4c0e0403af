"""Which nodes may answer a request, best first, and why. A pure function of view, request, policy and local load.

What may be asked for, in `RouteRequest.model`: a model's name (`:latest` is dropped on both sides), an alias of one,
`tier:N`, or `auto`. A name means every node that has that model. `tier:N` and `auto` mean the default model of each
node in each tier: the first one that the node lists there, a warm one before others.

Ranked by, in this order:

1. tier, along the chain that begins with the tier wanted (`FALLBACK`); `strict` cuts the chain after its first tier,
   and a name without a tier wants none: equal names are the same model, wherever it is;
2. a free slot before none: a cold model on an idle machine beats a place in a queue;
3. warm before loading before cold;
4. load relative to slots (`load_balance`);
5. the asked node itself (`prefer_local`), then latency, then id, so that equal views give equal routes.

`auto` without a tier wants the highest tier that is there, and a free slot anywhere before a full one there: nobody
said that only the best will do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from tiermesh.types import TIERS, Member, Model, ModelState, NodeId, Tier, View

FALLBACK: Mapping[Tier, tuple[Tier, ...]] = {2: (2, 1, 0), 1: (1, 2, 0), 0: (0, 1, 2)}
"""The tier wanted, then the others in the order in which they may stand in for it."""

AUTO = "auto"

_WARMTH: Mapping[ModelState, int] = {"warm": 0, "loading": 1, "cold": 2}
_FAR_MS = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingPolicy:
    """The part of the policy that routing reads; defaults as in the policy document."""

    prefer_local: bool = True
    fallback_strategy: Literal["graceful", "strict"] = "graceful"
    load_balance: bool = True
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Alias to a model's name, `tier:N` or `auto`; an alias of an alias is not followed."""


@dataclass(frozen=True, slots=True)
class RouteRequest:
    """What a caller wants. `tier` narrows `auto`, and prefers among nodes that serve one name in different tiers."""

    model: str = AUTO
    tier: Tier | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model on one engine of one node, with the facts it was ranked by."""

    node: NodeId
    node_name: str
    model: Model
    active: int
    slots: int
    latency_ms: float | None
    local: bool

    @property
    def full(self) -> bool:
        """Has it no free slot?"""
        return self.active >= self.slots

    @property
    def reason(self) -> str:
        """Why it stands where it stands, for a person."""
        where = "this node" if self.local else "latency unknown"
        if not self.local and self.latency_ms is not None:
            where = f"{self.latency_ms:.1f} ms away"
        return f"tier {self.model.tier}, {self.model.state}, {self.active} of {self.slots} slots busy, {where}"


@dataclass(frozen=True, slots=True)
class Route:
    """Candidates, best first; never empty."""

    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Nobody to ask. `unknown` is the caller's mistake; `unavailable` may pass."""

    kind: Literal["unknown", "unavailable"]
    message: str


@dataclass(frozen=True, slots=True)
class _Wish:
    """A request after aliases: a name, or any model; and the tier, if one is wanted."""

    name: str | None
    tier: Tier | None


def plan_route(
    view: View,
    request: RouteRequest,
    policy: RoutingPolicy,
    *,
    me: NodeId,
    active: Mapping[NodeId, int] | None = None,
) -> Route | Refusal:
    """Rank whoever may answer `request`. `active` counts requests where the view is known to be behind."""
    wish = _resolve(request, policy)
    if isinstance(wish, Refusal):
        return wish
    known = [member for member in view.members.values() if any(True for _ in _offers(member, wish.name))]
    up = [member for member in known if is_up(member, me)]
    candidates = [_candidate(member, model, me, active or {}) for member in up for model in _offers(member, wish.name)]
    if not candidates:
        return _nobody(view, request, wish, known, policy)
    chain = _chain(candidates, wish, policy)
    allowed = [candidate for candidate in candidates if candidate.model.tier in chain]
    if not allowed:
        return _only_other_tiers(candidates, chain[0])
    return Route(tuple(sorted(allowed, key=lambda candidate: _rank(candidate, wish, chain, policy))))


def bare_name(name: str) -> str:
    """A model's name without `:latest`."""
    return name.removesuffix(":latest")


def is_up(member: Member, me: NodeId) -> bool:
    """May it get new requests? Whoever asks is up itself, whatever a stale view says, unless it is draining."""
    return member.status.state == "up" and (member.state == "up" or member.id == me)


def models_of(view: View, me: NodeId) -> dict[str, list[str]]:
    """Every model that a request may name now, and the names of the nodes that serve it; both sorted."""
    served: dict[str, set[str]] = {}
    for member in view.members.values():
        if is_up(member, me):
            for model in member.status.models:
                served.setdefault(bare_name(model.name), set()).add(member.status.name)
    return {name: sorted(served[name]) for name in sorted(served)}


def default_models(member: Member) -> Iterator[Model]:
    """A node's default model in each tier: the first listed, a warm one before others."""
    for tier in TIERS:
        in_tier = [model for model in member.status.models if model.tier == tier]
        if in_tier:
            yield min(in_tier, key=lambda model: _WARMTH[model.state])


def _resolve(request: RouteRequest, policy: RoutingPolicy) -> _Wish | Refusal:
    name = bare_name(request.model)
    name = bare_name(policy.aliases.get(name, name))
    if name == AUTO:
        return _Wish(None, request.tier)
    if name.startswith("tier:"):
        tiers = {f"tier:{tier}": tier for tier in TIERS}
        if name not in tiers:
            return Refusal("unknown", f"model: {name!r} is no tier; there are {', '.join(tiers)}")
        return _Wish(None, tiers[name])
    return _Wish(name, request.tier)


def _offers(member: Member, name: str | None) -> Iterable[Model]:
    if name is None:
        return default_models(member)
    return (model for model in member.status.models if bare_name(model.name) == name)


def _candidate(member: Member, model: Model, me: NodeId, active: Mapping[NodeId, int]) -> Candidate:
    status, local = member.status, member.id == me
    return Candidate(
        node=member.id,
        node_name=status.name,
        model=model,
        active=active.get(member.id, status.load.active + status.load.queued),
        slots=max(1, status.load.slots),
        latency_ms=0.0 if local else status.latency_ms,
        local=local,
    )


def _chain(candidates: list[Candidate], wish: _Wish, policy: RoutingPolicy) -> tuple[Tier, ...]:
    if wish.tier is None:
        if wish.name is not None:
            return TIERS
        best = max(candidate.model.tier for candidate in candidates)
        return FALLBACK[best] if policy.fallback_strategy == "graceful" else (best,)
    return FALLBACK[wish.tier] if policy.fallback_strategy == "graceful" else (wish.tier,)


def _rank(candidate: Candidate, wish: _Wish, chain: tuple[Tier, ...], policy: RoutingPolicy) -> tuple[float | str, ...]:
    tier = chain.index(candidate.model.tier)
    first, second = (
        (tier, candidate.full) if wish.tier is not None else (candidate.full, tier if wish.name is None else 0)
    )
    return (
        first,
        second,
        _WARMTH[candidate.model.state],
        candidate.active / candidate.slots if policy.load_balance else 0,
        not (policy.prefer_local and candidate.local),
        _FAR_MS if candidate.latency_ms is None else candidate.latency_ms,
        candidate.node,
        candidate.model.engine,
    )


def _nobody(view: View, request: RouteRequest, wish: _Wish, known: list[Member], policy: RoutingPolicy) -> Refusal:
    if known:
        states = sorted(f"{member.status.name} ({_state(member)})" for member in known)
        return Refusal(
            "unavailable", f"model {request.model!r} is only on nodes that can't take it: {', '.join(states)}"
        )
    if wish.name is None:
        return Refusal("unavailable", "no node of the mesh serves a model now; start an engine on one of them")
    names = {bare_name(model.name) for member in view.members.values() for model in member.status.models}
    there = ", ".join([*sorted(names), *sorted(policy.aliases), AUTO, *(f"tier:{tier}" for tier in TIERS)])
    return Refusal("unknown", f"model: no node has {request.model!r}; there are: {there}")


def _state(member: Member) -> str:
    return member.state if member.state != "up" else member.status.state


def _only_other_tiers(candidates: list[Candidate], wanted: Tier) -> Refusal:
    tiers = ", ".join(sorted({str(candidate.model.tier) for candidate in candidates}))
    return Refusal(
        "unavailable",
        f"tier {wanted} has nobody up, and the policy's fallback_strategy is strict; there would be tier {tiers}",
    )
