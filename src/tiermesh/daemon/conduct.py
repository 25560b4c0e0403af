"""How candidates have conducted themselves, as this node has seen it: breakers, and how fast they answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tiermesh.core.breaker import Breaker, BreakerRule, BreakerState
from tiermesh.core.routing import CandidateKey, Fact
from tiermesh.types import NodeId, SessionId, View

WEIGHT = 0.2
"""Of the newest measurement in a smoothed one: five requests make a habit."""


@dataclass(slots=True)
class _Record:
    breaker: Breaker
    first_token_s: float | None = None
    tokens_per_s: float | None = None
    told: tuple[float | None, float | None, BreakerState, float] | None = None
    """What its `Fact` was last made of; most requests change nothing."""


class Conduct:
    """Owner of the breakers. Times are of the loop's clock, in seconds; nothing here reads it.

    Every request that goes to a candidate is told by `started`, then by exactly one of `began`, `failed` and
    `abandoned`; a stream that began may `broke` off, or be `measured`, later.
    """

    def __init__(self) -> None:
        self._rule = BreakerRule()
        self._records: dict[CandidateKey, _Record] = {}
        self._facts: dict[CandidateKey, Fact] = {}
        self._moving: set[CandidateKey] = set()
        """Whose facts change by time alone."""
        self._sessions: dict[NodeId, SessionId] = {}
        self._down: set[NodeId] = set()

    def set_rule(self, rule: BreakerRule) -> None:
        """Judge by this from now on; what was judged by another rule is forgotten."""
        if rule != self._rule:
            self._rule = rule
            self._forget(set(self._records))

    def view_changed(self, view: View) -> None:
        """Nodes that are gone are forgotten, and so are those that were started anew or are back: who was frozen or cut
        off failed every request that it had, and none of them says how it does now."""
        sessions = {node: member.session for node, member in view.members.items()}
        down = {node for node, member in view.members.items() if member.state == "down"}
        changed = {node for node, session in self._sessions.items() if sessions.get(node) != session}
        changed |= self._down - down
        self._sessions, self._down = sessions, down
        if changed:
            self._forget({key for key in self._records if key.node in changed})

    def facts(self, now: float) -> Mapping[CandidateKey, Fact]:
        """What is known of every candidate that was ever asked."""
        for key in tuple(self._moving):
            self._note(key, self._records[key], now)
        return self._facts

    def started(self, key: CandidateKey, now: float) -> None:
        """A request goes there."""
        record = self._record(key)
        record.breaker.started(now)
        if key in self._moving:
            self._note(key, record, now)

    def began(self, key: CandidateKey, now: float, first_token_s: float | None) -> None:
        """It has answered, or begun to. `first_token_s` is None where it says nothing of speed."""
        record = self._record(key)
        record.breaker.succeeded(now, first_token_s)
        record.first_token_s = _smoothed(record.first_token_s, first_token_s)
        self._note(key, record, now)

    def measured(self, key: CandidateKey, now: float, tokens_per_s: float) -> None:
        """A whole stream came at this speed."""
        record = self._record(key)
        record.tokens_per_s = _smoothed(record.tokens_per_s, tokens_per_s)
        self._note(key, record, now)

    def failed(self, key: CandidateKey, now: float, retry_after_s: float | None = None) -> None:
        """It did not answer, or said when to come back."""
        record = self._record(key)
        record.breaker.failed(now, retry_after_s)
        self._note(key, record, now)

    def broke(self, key: CandidateKey, now: float) -> None:
        """What it had begun to answer broke off."""
        self._record(key).breaker.started(now)
        self.failed(key, now)

    def abandoned(self, key: CandidateKey, now: float) -> None:
        """The request ended without a word on the candidate: the client left."""
        record = self._record(key)
        record.breaker.abandoned()
        self._note(key, record, now)

    def _record(self, key: CandidateKey) -> _Record:
        record = self._records.get(key)
        if record is None:
            record = self._records[key] = _Record(Breaker(self._rule))
        return record

    def _note(self, key: CandidateKey, record: _Record, now: float) -> None:
        state, retry_after_s = record.breaker.state(now), record.breaker.retry_after_s(now)
        known = (record.first_token_s, record.tokens_per_s, state, retry_after_s)
        if record.told != known:
            record.told, self._facts[key] = known, Fact(*known)
        if state == "closed" and not retry_after_s:
            self._moving.discard(key)
        else:
            self._moving.add(key)

    def _forget(self, keys: set[CandidateKey]) -> None:
        for key in keys:
            self._records.pop(key, None)
            self._facts.pop(key, None)
            self._moving.discard(key)


def _smoothed(old: float | None, new: float | None) -> float | None:
    if old is None or new is None:
        return old if new is None else new
    return old + WEIGHT * (new - old)
