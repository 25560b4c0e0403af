"""What must hold after every event, judged from outside: by effects that were carried out, not by intentions."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from tiermesh.core.constants import TIMING
from tiermesh.core.messages import Claim, Deny, Grant, Lead, Message
from tiermesh.types import NO_BALLOT, Ballot, NodeId, View

JUDGEMENT_S = 3.0
"""A judgement may be a little old: a size for as long as a yield takes, a refusal for as long as its reader froze."""

EPSILON = 1e-6
"""Floats."""


class Violation(AssertionError):
    """A promise of the specification was broken."""


@dataclass(slots=True)
class Record:
    """What one node has ever done, through all its runs."""

    promised: Ballot = NO_BALLOT
    """The highest ballot it has granted to somebody or shown to follow."""
    grants: dict[int, NodeId] = field(default_factory=dict)
    """Term to candidate."""


@dataclass(slots=True)
class Invariants:
    """Judges effects as they are carried out; `durable` is what is on the node's disk at that moment."""

    records: dict[NodeId, Record] = field(default_factory=dict)
    holders: dict[Ballot, tuple[NodeId, int]] = field(default_factory=dict)
    """Ballot to who led under it: node and run."""
    terms: dict[int, NodeId] = field(default_factory=dict)
    """Term to who led in it. That is no promise, but practically so."""
    claims: dict[Ballot, dict[NodeId, float]] = field(default_factory=dict)
    """Ballot to whom it was claimed of, and first when."""
    denials: set[tuple[NodeId, Ballot]] = field(default_factory=set)
    crowns: set[tuple[NodeId, int, Ballot]] = field(default_factory=set)
    sizes: dict[NodeId, deque[tuple[float, int]]] = field(default_factory=dict)
    """Sizes of the groups that nodes led lately, 0 for none, by the time from which they had them."""

    def said(self, now: float, node: NodeId, durable: Ballot, to: NodeId, message: Message) -> None:
        """A message leaves a node."""
        match message:
            case Grant(ballot):
                self._granted(node, durable, ballot)
            case Deny(ballot):
                self.denials.add((node, ballot))
            case Claim(ballot):
                self.claims.setdefault(ballot, {}).setdefault(to, now)
                self._candidate(node, durable, ballot)
            case Lead(ballot):
                self._candidate(node, durable, ballot)
            case _:
                pass

    def showed(self, node: NodeId, durable: Ballot, view: View, run: int) -> None:
        """A view is in force on a node."""
        if view.coordinator is None:
            return
        record = self._record(node)
        if view.ballot < record.promised:
            raise Violation(f"{node} promised {record.promised} and obeys {view.ballot}")
        if view.ballot > durable:
            raise Violation(f"{node} shows {view.ballot} while its disk holds {durable}")
        if view.ballot.node_id != view.coordinator:
            raise Violation(f"{node} follows {view.coordinator} under {view.ballot}")
        record.promised = view.ballot
        if view.coordinator == node:
            self._held(view.ballot, (node, run))

    def crowned(
        self, now: float, node: NodeId, run: int, ballot: Ballot, has_run_since: Callable[[NodeId, float], bool]
    ) -> None:
        """A node has won: in time, and with a grant of everybody it asked, but for those who were dead a moment ago."""
        for voter, asked_at in self.claims.get(ballot, {}).items():
            if now - asked_at > TIMING.phase(len(self.sizes)) + EPSILON:
                raise Violation(f"{node} won {ballot} {now - asked_at:.3f} s after claiming it")
            granted = self._record(voter).grants.get(ballot.term) == node
            slack = 0.0 if (voter, ballot) in self.denials else JUDGEMENT_S
            if not granted and has_run_since(voter, asked_at - slack):
                raise Violation(f"{node} won {ballot} without a grant of {voter}")
        if (node, run, ballot) in self.crowns:
            raise Violation(f"{node} holds {ballot} twice in one run")
        self.crowns.add((node, run, ballot))

    def sized(self, now: float, node: NodeId, size: int) -> None:
        """A node leads a group of this size now."""
        history = self.sizes.get(node)
        if history is None:
            history = self.sizes[node] = deque([(now, 0)])
        if history[-1][1] != size:
            history.append((now, size))
        while len(history) > 1 and history[1][0] < now - JUDGEMENT_S:
            history.popleft()

    def yielded(self, now: float, node: NodeId, target: NodeId) -> None:
        """A coordinator has become a member of another group: never of one that was smaller all the time lately."""
        mine = [size for _, size in self.sizes.get(node, ()) if size]
        theirs = [size for _, size in self.sizes.get(target, ())]
        if mine and min(mine) > max(theirs, default=0):
            raise Violation(f"{node}, leading {mine}, has yielded to {target}, leading {theirs}, at {now}")

    def _granted(self, node: NodeId, durable: Ballot, ballot: Ballot) -> None:
        record = self._record(node)
        other = record.grants.setdefault(ballot.term, ballot.node_id)
        if other != ballot.node_id:
            raise Violation(f"{node} granted term {ballot.term} to {other} and to {ballot.node_id}")
        if ballot < record.promised:
            raise Violation(f"{node} promised {record.promised} and granted {ballot}")
        if ballot > durable:
            raise Violation(f"{node} granted {ballot} while its disk holds {durable}")
        record.promised = ballot

    def _candidate(self, node: NodeId, durable: Ballot, ballot: Ballot) -> None:
        record = self._record(node)
        other = record.grants.setdefault(ballot.term, node)
        if other != node:
            raise Violation(f"{node} granted term {ballot.term} to {other} and claims it itself")
        if ballot.node_id != node:
            raise Violation(f"{node} claims {ballot}")
        if ballot > durable:
            raise Violation(f"{node} claims {ballot} while its disk holds {durable}")
        record.promised = max(record.promised, ballot)

    def _held(self, ballot: Ballot, holder: tuple[NodeId, int]) -> None:
        other = self.holders.setdefault(ballot, holder)
        if other != holder:
            raise Violation(f"{ballot} was held by {other} and is held by {holder}")
        if self.terms.setdefault(ballot.term, holder[0]) != holder[0]:
            raise Violation(f"term {ballot.term} has two coordinators, {self.terms[ballot.term]} and {holder[0]}")

    def _record(self, node: NodeId) -> Record:
        record = self.records.get(node)
        if record is None:
            record = self.records[node] = Record()
        return record
