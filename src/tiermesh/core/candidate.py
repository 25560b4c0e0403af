"""A candidate for a request: an offer, what was measured of it, and how it was judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, overload

from tiermesh.core.breaker import BreakerState
from tiermesh.core.offers import CandidateKey, Offer
from tiermesh.types import Model, NodeId

TYPICAL_TOKENS = 200
"""Length of the answer by which measured speeds are compared: a paragraph or two."""

WORST = 54.0
"""No candidate has as many marks against it."""

Rank = tuple[float, int, int]
"""Marks against it (the fewer, the better), its place among the offers, requests there."""


@dataclass(frozen=True, slots=True)
class Fact:
    """What this node has measured of a candidate, smoothed; None is not yet."""

    first_token_s: float | None = None
    tokens_per_s: float | None = None
    breaker: BreakerState = "closed"
    retry_after_s: float = 0.0
    """How long its breaker lets nobody through; 0 where it does."""

    shut: bool = field(init=False)
    """Lets its breaker nobody through now?"""
    answer_s: float | None = field(init=False)
    """How long a typical answer takes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shut", self.breaker == "open" or self.retry_after_s > 0)
        speed = self.tokens_per_s
        object.__setattr__(self, "answer_s", (self.first_token_s or 0.0) + TYPICAL_TOKENS / speed if speed else None)


Facts = Mapping[CandidateKey, Fact]
UNMEASURED = Fact()


class Candidate(NamedTuple):
    """One model on one engine of one node, with the facts it was ranked by. Every request makes one: a tuple is made
    four times as fast as a frozen dataclass."""

    node: NodeId
    node_name: str
    model: Model
    active: int
    slots: int
    latency_ms: float | None
    local: bool
    health: int | None = None
    """The node's score, 0 to 100."""
    fact: Fact = UNMEASURED
    preferred: bool = False
    """Stands where it stands because the conversation was here before."""
    score: float = 100.0

    @property
    def key(self) -> CandidateKey:
        """By which facts are kept of it."""
        return CandidateKey(self.node, self.model.engine, self.model.name)

    @property
    def full(self) -> bool:
        """Has it no free slot?"""
        return self.active >= self.slots

    @property
    def reason(self) -> str:
        """Why it stands where it stands, for a person."""
        return ", ".join(self._reasons())

    def _reasons(self) -> Iterator[str]:
        yield f"tier {self.model.tier}"
        yield self.model.state
        if self.health is not None:
            yield f"health {self.health}"
        if self.preferred:
            yield "has the conversation in its cache"
        yield f"{self.active} of {self.slots} slots busy"
        if self.fact.first_token_s is not None:
            yield f"first token after {self.fact.first_token_s:.2f} s"
        if self.fact.tokens_per_s is not None:
            yield f"{self.fact.tokens_per_s:.0f} tokens/s"
        if self.fact.shut:
            yield f"breaker {self.fact.breaker.replace('_', ' ')}, next try in {self.fact.retry_after_s:.0f} s"
        elif self.fact.breaker == "half_open":
            yield "on probation"
        if self.local:
            yield "this node"
        else:
            yield "latency unknown" if self.latency_ms is None else f"{self.latency_ms:.1f} ms away"


class Ranking(Sequence[Candidate]):
    """Candidates, best first, each made when it is looked at: most requests look at one."""

    __slots__ = ("_facts", "_offers", "_preferred", "_ranks")

    def __init__(self, offers: Sequence[Offer], ranks: Sequence[Rank], facts: Facts, preferred: int | None) -> None:
        self._offers = offers
        self._ranks = ranks
        self._facts = facts
        self._preferred = preferred

    def __len__(self) -> int:
        return len(self._ranks)

    def __iter__(self) -> Iterator[Candidate]:
        return map(self._candidate, self._ranks)

    @overload
    def __getitem__(self, index: int) -> Candidate: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Candidate]: ...
    def __getitem__(self, index: int | slice) -> Candidate | Sequence[Candidate]:
        if isinstance(index, slice):
            return [self._candidate(rank) for rank in self._ranks[index]]
        return self._candidate(self._ranks[index])

    def _candidate(self, rank: Rank) -> Candidate:
        marks, place, active = rank
        offer = self._offers[place]
        fact = self._facts.get(offer.key, UNMEASURED)
        return candidate_of(offer, active, fact, marks, preferred=place == self._preferred)


def candidate_of(offer: Offer, active: int, fact: Fact, marks: float, *, preferred: bool = False) -> Candidate:
    """`offer` with what was found out about it; `marks` make its score."""
    status = offer.member.status
    return Candidate(
        node=offer.node,
        node_name=status.name,
        model=offer.model,
        active=active,
        slots=offer.slots,
        latency_ms=offer.latency_ms,
        local=offer.local,
        health=status.health.score,
        fact=fact,
        preferred=preferred,
        score=round(100 * (1 - marks / WORST), 2),
    )
