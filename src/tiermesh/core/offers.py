"""What the nodes of a view offer to a request, put in order once a view, so that a decision need not look at it all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from tiermesh.core.health import DEGRADED, HEALTHY
from tiermesh.types import TIERS, Member, Model, ModelState, NodeId, Status, Tier, View

WARMTH: Mapping[ModelState, int] = {"warm": 0, "loading": 1, "cold": 2}
_FAR_MS = 1e9

AUTO = "auto"
"""Names whatever the mesh chooses."""


class CandidateKey(NamedTuple):
    """Names one candidate: the model by the name that its node gives it."""

    node: NodeId
    engine: str
    model: str


@dataclass(frozen=True, slots=True)
class Offer:
    """One model on one engine of a node that is up, with all about it that only a new view changes."""

    key: CandidateKey
    name: str
    """The model's, without `:latest`."""
    default: bool
    """Is it its node's default model in its tier?"""
    node: NodeId
    tier: Tier
    member: Member
    model: Model
    told_active: int
    slots: int
    latency_ms: float | None
    local: bool
    place: tuple[bool, float, CandidateKey]
    """Orders offers that are else equal."""
    marks: int
    """What is against it: 3 if loading, 6 if cold; 1 if its node is degraded or trains, 2 if unhealthy."""


class Offers:
    """All offers of one view as `me` sees it, in the order of latency, then id; `local_first` puts its own before."""

    def __init__(self, view: View, me: NodeId, *, local_first: bool, before: Offers | None = None) -> None:
        """The offers of members that are the very same objects as `before`, for the same `me`, are taken over."""
        self.local_first = local_first
        known = before.of_member if before is not None and before.local_first == local_first else {}
        self.of_member: dict[NodeId, tuple[Member, list[Offer]]] = {}
        for member in view.members.values():
            if is_up(member, me):
                old = known.get(member.id)
                if old is None or old[0] is not member:
                    old = (member, list(_of(member, me, local_first)))
                self.of_member[member.id] = old
        found = [offer for _, offers in self.of_member.values() for offer in offers]
        found.sort(key=attrgetter("place"))
        self._defaults = [offer for offer in found if offer.default]
        self._named: dict[str, list[Offer]] = defaultdict(list)
        for offer in found:
            self._named[offer.name].append(offer)

    def of(self, name: str | None) -> list[Offer]:
        """Who serves the model of this bare name, or, without one, every node's default models. Not to be changed."""
        return self._defaults if name is None else self._named.get(name, [])


def bare_name(name: str) -> str:
    """A model's name without `:latest`."""
    return name.removesuffix(":latest")


def is_up(member: Member, me: NodeId) -> bool:
    """May it get new requests? Whoever asks is up itself, whatever a stale view says, unless it is draining."""
    return member.status.state == "up" and (member.state == "up" or member.id == me)


def default_models(member: Member) -> Iterator[Model]:
    """A node's default model in each tier: the first listed, a warm one before others."""
    for tier in TIERS:
        in_tier = [model for model in member.status.models if model.tier == tier]
        if in_tier:
            yield min(in_tier, key=lambda model: WARMTH[model.state])


def models_of(view: View, me: NodeId) -> dict[str, list[str]]:
    """Every model that a request may name now, and the names of the nodes that serve it; both sorted."""
    served: dict[str, set[str]] = {}
    for member in view.members.values():
        if is_up(member, me):
            for model in member.status.models:
                served.setdefault(bare_name(model.name), set()).add(member.status.name)
    return {name: sorted(served[name]) for name in sorted(served)}


def names_of(view: View, me: NodeId, aliases: Mapping[str, str]) -> dict[str, list[str]]:
    """What a request may name now, and the nodes that could answer it: `auto`, aliases, tiers, then models. Programs
    let people choose from such a list, and begin with the first one."""
    served = models_of(view, me)
    in_tiers: dict[str, set[str]] = defaultdict(set)
    for member in view.members.values():
        if is_up(member, me):
            for model in member.status.models:
                in_tiers[f"tier:{model.tier}"].add(member.status.name)
    tiers = {tier: sorted(in_tiers[tier]) for tier in sorted(in_tiers)}
    auto = {AUTO: sorted(set().union(*in_tiers.values()))} if in_tiers else {}
    there = served | tiers | auto
    named = {alias: bare_name(aliases[alias]) for alias in sorted(aliases)}
    others = {alias: there[name] for alias, name in named.items() if name in there}
    return auto | others | tiers | served | others


def tiers_of(offers: Iterable[Offer]) -> set[Tier]:
    """The tiers in which there is somebody."""
    return {offer.tier for offer in offers}


def _of(member: Member, me: NodeId, local_first: bool) -> Iterator[Offer]:
    status, local = member.status, member.id == me
    load, health, defaults = status.load, _health(status), list(default_models(member))
    latency_ms = 0.0 if local else status.latency_ms
    for model in status.models:
        key = CandidateKey(member.id, model.engine, model.name)
        yield Offer(
            key=key,
            name=bare_name(model.name),
            default=any(model is one for one in defaults),
            node=member.id,
            tier=model.tier,
            member=member,
            model=model,
            told_active=load.active + load.queued,
            slots=max(1, load.slots),
            latency_ms=latency_ms,
            local=local,
            place=(not (local and local_first), _FAR_MS if latency_ms is None else latency_ms, key),
            marks=3 * WARMTH[model.state] + health,
        )


def _health(status: Status) -> int:
    """A machine that trains is as good as degraded: its processors have other work."""
    score, least = status.health.score, int(bool(status.training))
    if score is None or score >= HEALTHY:
        return least
    return 1 if score >= DEGRADED else 2
