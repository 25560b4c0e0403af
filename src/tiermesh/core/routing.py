"""Which nodes may answer a request, best first, and why. A pure function of view, request, policy and what this node
knows: requests on their way (`active`), what it measured (`facts`), where the conversation was before (`preferred`).

What may be asked for, in `RouteRequest.model`: a model's name (`:latest` is dropped on both sides), an alias of one,
`tier:N`, or `auto`. A name means every node that has that model. `tier:N` and `auto` mean the default model of each
node in each tier: the first one that the node lists there, a warm one before others.

Ranked by, in this order:

1. tier, along the chain that begins with the tier wanted (`FALLBACK`); `strict` cuts the chain after its first tier,
   and a name without a tier wants none: equal names are the same model, wherever it is;
2. a free slot before none: a cold model on an idle machine beats a place in a queue;
3. warm before loading before cold;
4. healthy before degraded before unhealthy;
5. the conversation's last node, which has it in its cache, unless that one is `BUSIER` times busier than the best;
6. how long one waits there: load relative to slots (`load_balance`), times how many times slower than the quickest it
   was measured, in powers of two, so that noise decides nothing; what was not measured yet counts as quick;
7. the asked node itself (`prefer_local`), then latency, then id, so that equal views give equal routes.

`auto` without a tier wants the tier that the prompt's complexity says, or else the highest that is there; and a free
slot anywhere before a full one there: nobody said that only the best will do. Nor is such a wish refused for its tier:
where it has nobody, `strict` takes the next that has.

The first six make one number, `Candidate.score`: 100 is the tier wanted, free, warm, healthy, idle and quick.
Candidates whose breaker lets nobody through are left out; when nobody else is there, the refusal says when to return.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from tiermesh.core.candidate import UNMEASURED, WORST, Candidate, Fact, Facts, Rank, Ranking, candidate_of
from tiermesh.core.complexity import Complexity, ComplexityRule, assess
from tiermesh.core.offers import (
    AUTO,
    CandidateKey,
    Offer,
    Offers,
    bare_name,
    default_models,
    is_up,
    models_of,
    names_of,
    tiers_of,
)
from tiermesh.types import TIERS, Member, NodeId, Tier, View

__all__ = [
    "AUTO",
    "FALLBACK",
    "Candidate",
    "CandidateKey",
    "Fact",
    "Refusal",
    "Route",
    "RouteRequest",
    "Router",
    "RoutingPolicy",
    "assessed",
    "bare_name",
    "default_models",
    "is_up",
    "models_of",
    "names_of",
    "plan_route",
]

FALLBACK: Mapping[Tier, tuple[Tier, ...]] = {2: (2, 1, 0), 1: (1, 2, 0), 0: (0, 1, 2)}
"""The tier wanted, then the others in the order in which they may stand in for it."""

BUSIER = 1.5
"""A cache saves reading the conversation again; at half as much waiting again, that is lost elsewhere."""

_FULL, _TIER = 9.0, 18.0
"""Marks against a candidate, for no free slot and for each step down the chain, so that each outweighs all that come
after it: warmth and health make up to 8 (`Offer.marks`), waiting less than 1."""
_SOFT_TIER, _SOFT_FULL = 9.0, 27.0
"""The same where a free slot goes before the tier."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingPolicy:
    """The part of the policy that routing reads; defaults as in the policy document."""

    prefer_local: bool = True
    fallback_strategy: Literal["graceful", "strict"] = "graceful"
    load_balance: bool = True
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Alias, without `:latest`, to a model's name, `tier:N` or `auto`; an alias of an alias is not followed."""
    complexity: ComplexityRule | None = field(default_factory=ComplexityRule)
    """None: the prompt's complexity chooses nothing."""


class RouteRequest(NamedTuple):
    """What a caller wants. `tier` narrows `auto`, and prefers among nodes that serve one name in different tiers.

    `complexity` chooses the tier for `auto` where no tier was asked for, and is else ignored.
    """

    model: str = AUTO
    tier: Tier | None = None
    complexity: Complexity | None = None


class Route(NamedTuple):
    """Candidates, best first; never empty. `left_out` would be there but for their breakers."""

    candidates: Sequence[Candidate]
    tier: Tier | None = None
    """The tier that was wanted, by the request or by its complexity; None: any, or a model by its name."""
    assessed: bool = False
    """Did the prompt's complexity choose the tier?"""
    left_out: Sequence[Candidate] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Nobody to ask. `unknown` is the caller's mistake; `unavailable` may pass, perhaps after `retry_after_s`."""

    kind: Literal["unknown", "unavailable"]
    message: str
    retry_after_s: float | None = None
    left_out: Sequence[Candidate] = ()


class _Wish(NamedTuple):
    """A request after aliases: a name, or any model; and the tier, if one is wanted."""

    name: str | None
    tier: Tier | None
    assessed: bool = False


def plan_route(
    view: View,
    request: RouteRequest,
    policy: RoutingPolicy,
    *,
    me: NodeId,
    active: Mapping[NodeId, int] | None = None,
    facts: Mapping[CandidateKey, Fact] | None = None,
    preferred: NodeId | None = None,
) -> Route | Refusal:
    """Rank whoever may answer `request`. `active` counts requests where the view is known to be behind."""
    return Router(me).plan(view, request, policy, active=active, facts=facts, preferred=preferred)


def assessed(request: RouteRequest, body: Mapping[str, object], policy: RoutingPolicy) -> RouteRequest:
    """`request` with the complexity of the chat `body`, where that is to choose the tier; anywhere else, as it is."""
    if policy.complexity is None or request.complexity is not None or request.tier is not None:
        return request
    if "messages" not in body or _name(request, policy) != AUTO:  # without messages, an embedding: the same everywhere
        return request
    return request._replace(complexity=assess(body["messages"], policy.complexity, tools=bool(body.get("tools"))))


class Router:
    """`plan_route` for many requests: what can be known from a view alone is found out once a view."""

    def __init__(self, me: NodeId) -> None:
        self._me = me
        self._known: tuple[View, Offers] | None = None

    def plan(
        self,
        view: View,
        request: RouteRequest,
        policy: RoutingPolicy,
        *,
        active: Mapping[NodeId, int] | None = None,
        facts: Mapping[CandidateKey, Fact] | None = None,
        preferred: NodeId | None = None,
    ) -> Route | Refusal:
        """As `plan_route`. Views are told apart by identity: they are replaced, never changed."""
        wish = _resolve(request, policy)
        if isinstance(wish, Refusal):
            return wish
        found = self._offers(view, local_first=policy.prefer_local).of(wish.name)
        if not found:
            return _nobody(view, request, wish, policy)
        facts = facts or {}
        offers, shut = _let_through(found, facts)
        chain = _chain(found, offers, wish, policy)
        if len(chain) < len(TIERS):
            offers = [offer for offer in offers if offer.tier in chain]
            shut = [offer for offer in shut if offer.tier in chain]
        if not offers:
            return _all_shut(request, _shut_out(shut, facts)) if shut else _only_other_tiers(found, chain[0])
        ranks = _ranked(offers, wish, chain, policy, active or {}, facts)
        place = None if preferred is None else _move_preferred(ranks, offers, preferred)
        return Route(Ranking(offers, ranks, facts, place), wish.tier, wish.assessed, _shut_out(shut, facts))

    def _offers(self, view: View, *, local_first: bool) -> Offers:
        known = self._known
        if known is None or known[0] is not view or known[1].local_first != local_first:
            before = None if known is None else known[1]
            self._known = known = (view, Offers(view, self._me, local_first=local_first, before=before))
        return known[1]


def _name(request: RouteRequest, policy: RoutingPolicy) -> str:
    """What is asked for, after aliases."""
    name = bare_name(request.model)
    alias = policy.aliases.get(name)
    return name if alias is None else bare_name(alias)


def _resolve(request: RouteRequest, policy: RoutingPolicy) -> _Wish | Refusal:
    name = _name(request, policy)
    if name == AUTO:
        if request.tier is None and request.complexity is not None:
            return _Wish(None, request.complexity.tier, assessed=True)
        return _Wish(None, request.tier)
    if name.startswith("tier:"):
        tiers = {f"tier:{tier}": tier for tier in TIERS}
        if name not in tiers:
            return Refusal("unknown", f"model: {name!r} is no tier; there are {', '.join(tiers)}")
        return _Wish(None, tiers[name])
    return _Wish(name, request.tier)


def _let_through(offers: list[Offer], facts: Facts) -> tuple[list[Offer], list[Offer]]:
    """Those whose breakers let somebody through, and the others."""
    shut = [key for key, fact in facts.items() if fact.shut]
    if not shut:
        return offers, []
    return [o for o in offers if o.key not in shut], [o for o in offers if o.key in shut]


def _chain(found: list[Offer], offers: list[Offer], wish: _Wish, policy: RoutingPolicy) -> tuple[Tier, ...]:
    """The tiers that may answer, in the order wanted."""
    if wish.name is not None and wish.tier is None:
        return TIERS
    chain = FALLBACK[max(TIERS) if wish.tier is None else wish.tier]
    if policy.fallback_strategy == "graceful":
        return chain
    if _asked_for(wish):
        return chain[:1]
    there = tiers_of(offers or found)
    return next((tier,) for tier in chain if tier in there)


def _asked_for(wish: _Wish) -> bool:
    """Was the tier the caller's own wish?"""
    return wish.tier is not None and not wish.assessed


def _ranked(
    offers: list[Offer],
    wish: _Wish,
    chain: tuple[Tier, ...],
    policy: RoutingPolicy,
    active: Mapping[NodeId, int],
    facts: Facts,
) -> list[Rank]:
    """Best first. The offers' own order decides between equal marks, after the asked node."""
    per_tier, per_full = (_TIER, _FULL) if _asked_for(wish) else (_SOFT_TIER, _SOFT_FULL)
    for_tier = [0.0, 0.0, 0.0]
    if wish.name is None or wish.tier is not None:
        for place, tier in enumerate(chain):
            for_tier[tier] = place * per_tier
    balance = policy.load_balance
    ranks: list[Rank] = []
    for place, (offer, slowness) in enumerate(zip(offers, _slowness(offers, facts), strict=True)):
        busy = active.get(offer.node, offer.told_active)
        wait = slowness * (1 + busy / offer.slots) if balance else slowness
        marks = for_tier[offer.tier] + offer.marks + (1 - 1 / wait)
        if busy >= offer.slots:
            marks += per_full
        ranks.append((marks, place, busy))
    ranks.sort()
    return ranks


def _slowness(offers: list[Offer], facts: Facts) -> list[float]:
    """How many times slower than the quickest each one is, in powers of two."""
    if not facts or len(offers) == 1:
        return [1.0] * len(offers)
    known = [facts.get(offer.key, UNMEASURED).answer_s for offer in offers]
    measured = [time_s for time_s in known if time_s is not None]
    if not measured:
        return [1.0] * len(offers)
    twice = 2 * min(measured)
    return [1.0 if time_s is None or time_s < twice else _power(2 * time_s / twice) for time_s in known]


def _power(ratio: float) -> float:
    """The largest power of two that is not above `ratio`."""
    return math.ldexp(1.0, math.frexp(ratio)[1] - 1)


def _move_preferred(ranks: list[Rank], offers: list[Offer], preferred: NodeId) -> int | None:
    """Bring the conversation's last node to the front of its equals, unless it is too busy; its place among the offers.

    Equals differ by their waiting alone, which is what stands behind the point.
    """
    at = next((i for i, (_, place, _) in enumerate(ranks) if offers[place].node == preferred), None)
    if at is None:
        return None
    marks, place, busy = ranks[at]
    first = next(i for i, rank in enumerate(ranks) if math.floor(rank[0]) == math.floor(marks))
    best = ranks[first][0]
    if _wait(marks) >= BUSIER * _wait(best):
        return None
    ranks.insert(first, ranks.pop(at))
    ranks[first] = (best, place, busy)
    return place


def _wait(marks: float) -> float:
    return 1 / (1 - marks % 1)


def _shut_out(shut: list[Offer], facts: Facts) -> tuple[Candidate, ...]:
    """Those whose breakers are against them, the first to come back first; none of them has a score."""
    if not shut:
        return ()
    made = [candidate_of(offer, offer.told_active, facts[offer.key], WORST) for offer in shut]
    return tuple(sorted(made, key=lambda candidate: candidate.fact.retry_after_s))


def _nobody(view: View, request: RouteRequest, wish: _Wish, policy: RoutingPolicy) -> Refusal:
    known = [member for member in view.members.values() if _has(member, wish.name)]
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


def _has(member: Member, name: str | None) -> bool:
    return any(name is None or bare_name(model.name) == name for model in member.status.models)


def _state(member: Member) -> str:
    return member.state if member.state != "up" else member.status.state


def _all_shut(request: RouteRequest, left_out: tuple[Candidate, ...]) -> Refusal:
    wait_s = left_out[0].fact.retry_after_s
    names = ", ".join(f"{c.node_name} (again in {c.fact.retry_after_s:.0f} s)" for c in left_out)
    message = f"whoever serves {request.model!r} has just failed and is given a rest: {names}"
    return Refusal("unavailable", message, wait_s, left_out)


def _only_other_tiers(found: list[Offer], wanted: Tier) -> Refusal:
    tiers = ", ".join(str(tier) for tier in sorted(tiers_of(found)))
    return Refusal(
        "unavailable",
        f"tier {wanted} has nobody up, and the policy's fallback_strategy is strict; there would be tier {tiers}",
    )
