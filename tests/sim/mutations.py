"""Core, broken on purpose, one rule at a time. Each must be caught; see test_mutations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tiermesh.core import election, follow, join, lead, meet, membership, node, unled
from tiermesh.core.context import Context
from tiermesh.core.effects import Effect, Persist
from tiermesh.core.messages import Deny, Grant, Lives, Message, Pre
from tiermesh.core.role import Next, ToJoin, ToSeek, Wait
from tiermesh.types import NO_BALLOT, Ballot, NodeId, SessionId

Mutation = Callable[[pytest.MonkeyPatch], None]


def skip_a_persist(patch: pytest.MonkeyPatch) -> None:
    """Promise in memory alone."""

    def promise(self: Context, ballot: Ballot) -> None:
        self.promised = max(self.promised, ballot)

    patch.setattr(Context, "promise", promise)


def overtake_a_persist(patch: pytest.MonkeyPatch) -> None:
    """Say it first, write it after."""
    original = node.Node._end

    def end(self: node.Node, now: float, wanted: Next | None, event: str) -> list[Effect]:
        effects = original(self, now, wanted, event)
        return sorted(effects, key=lambda effect: isinstance(effect, Persist))

    patch.setattr(node.Node, "_end", end)


def forget_grants_on_restart(patch: pytest.MonkeyPatch) -> None:
    """Boot as if nothing had been promised."""
    original = node.Node.__init__

    def init(self: node.Node, **arguments: Any) -> None:
        original(self, **{**arguments, "promised": NO_BALLOT})

    patch.setattr(node.Node, "__init__", init)


def drop_the_fence(patch: pytest.MonkeyPatch) -> None:
    """Join and obey whoever leads, whatever was promised."""
    original = join.Joining.__init__

    def init(self: join.Joining, context: Context, now: float, wanted: ToJoin) -> None:
        context.promised = NO_BALLOT
        original(self, context, now, wanted)

    patch.setattr(join.Joining, "__init__", init)


def never_raise(patch: pytest.MonkeyPatch) -> None:
    """Welcome one who has promised more than the own ballot, and stay below it."""
    patch.setattr(lead.Leader, "_raise_above", lambda self, promised: None)


def ignore_refusals(patch: pytest.MonkeyPatch) -> None:
    """Take a denied claim for a granted one."""
    original = election.Candidacy.receive

    def receive(
        self: election.Candidacy, now: float, sender: NodeId, session: SessionId, message: Message
    ) -> Next | None:
        if isinstance(message, Deny):
            message = Grant(message.ballot)
        return original(self, now, sender, session, message)

    patch.setattr(election.Candidacy, "receive", receive)


def grant_without_comparing(patch: pytest.MonkeyPatch) -> None:
    """Grant whoever asks."""

    def consider(self: Context, now: float, sender: NodeId, ballot: Ballot) -> Next | None:
        self.promised = ballot
        self.out.append(Persist(ballot, self.roster.policy))
        self.send(sender, Grant(ballot))
        return ToSeek(Wait.GRANTED)

    patch.setattr(unled, "consider_claim", consider)


def compare_ballots_not_terms(patch: pytest.MonkeyPatch) -> None:
    """Grant a second candidate of the same term when its id is higher. Seen when terms collide, so they do here."""
    patch.setattr(election, "next_term", lambda term, me: term + 1)

    def consider(self: Context, now: float, sender: NodeId, ballot: Ballot) -> Next | None:
        if ballot < self.promised:
            self.send(sender, Deny(ballot, self.promised.term))
            return None
        self.promise(ballot)
        self.send(sender, Grant(ballot))
        return ToSeek(Wait.GRANTED)

    patch.setattr(unled, "consider_claim", consider)


def step_terms_by_one(patch: pytest.MonkeyPatch) -> None:
    """Two halves that elect at the same time pick the same term."""
    patch.setattr(election, "next_term", lambda term, me: term + 1)


def accept_late_grants(patch: pytest.MonkeyPatch) -> None:
    """Count grants by the timer, not by the clock: a frozen candidate wins with what it finds on waking."""
    original = election.Candidacy.receive

    def receive(
        self: election.Candidacy, now: float, sender: NodeId, session: SessionId, message: Message
    ) -> Next | None:
        return original(self, min(now, self._ends - 1e-6), sender, session, message)

    patch.setattr(election.Candidacy, "receive", receive)


def claim_without_all(patch: pytest.MonkeyPatch) -> None:
    """Win at the deadline with whoever has granted by then."""
    original = election.Candidacy.tick

    def tick(self: election.Candidacy, now: float) -> Next | None:
        if now >= self._ends:
            self._silent.clear()
        return original(self, now)

    patch.setattr(election.Candidacy, "tick", tick)


def yield_to_the_smaller(patch: pytest.MonkeyPatch) -> None:
    """Judge two groups the wrong way round."""
    original = meet.Meeting._is_lesser
    patch.setattr(meet.Meeting, "_is_lesser", lambda *arguments: not original(*arguments))


def trust_silence(patch: pytest.MonkeyPatch) -> None:
    """Never give up an uplink without an end-of-file."""
    original = follow.Follow.tick

    def tick(self: follow.Follow, now: float) -> Next | None:
        self._pulse.heard_at = now
        return original(self, now)

    patch.setattr(follow.Follow, "tick", tick)


def never_probe(patch: pytest.MonkeyPatch) -> None:
    """Rely on discovery to find other coordinators."""
    patch.setattr(meet.Meeting, "_round", lambda self, now, size: setattr(self, "_round_at", now + 1.0))


def apply_any_delta(patch: pytest.MonkeyPatch) -> None:
    """Take over what changed, whatever it is a change of."""
    original = membership.Roster.apply

    def apply(self: membership.Roster, update: Any) -> bool:
        if not original(self, update):
            self._extend(update)
        return True

    patch.setattr(membership.Roster, "apply", apply)


def judge_by_the_own_uplink(patch: pytest.MonkeyPatch) -> None:
    """Veto a candidate because the uplink has not been silent for long enough yet."""

    def asked(self: follow.Follow, now: float, sender: NodeId, session: SessionId, question: Pre) -> None:
        contact = self.context.contact(self._leader)
        self.context.send(sender, Lives(question.nonce, self.context.roster.ballot, contact))

    patch.setattr(follow.Follow, "_asked", asked)


def have_no_patience(patch: pytest.MonkeyPatch) -> None:
    """Let members who can reach their coordinator veto for ever."""
    patch.setattr(election.PreVote, "_vetoed", lambda self, now, sender, message: ToJoin(message.coordinator))


def step_down_for_every_joiner(patch: pytest.MonkeyPatch) -> None:
    """Let the higher ballot win, whatever the sizes."""
    patch.setattr(meet.Meeting, "_is_lesser", lambda self, now, probe, size: False)


CAUGHT_BY_SCENARIOS: Mapping[str, Mutation] = {
    each.__name__: each
    for each in (
        skip_a_persist,
        overtake_a_persist,
        forget_grants_on_restart,
        drop_the_fence,
        never_raise,
        ignore_refusals,
        grant_without_comparing,
        compare_ballots_not_terms,
        step_terms_by_one,
        accept_late_grants,
        claim_without_all,
        yield_to_the_smaller,
        trust_silence,
        never_probe,
        apply_any_delta,
        step_down_for_every_joiner,
    )
}
"""Caught by an invariant, or by what is demanded when the faults end."""

CAUGHT_BY_DRILLS: Mapping[str, tuple[Mutation, str, float]] = {
    judge_by_the_own_uplink.__name__: (judge_by_the_own_uplink, "failover by silence", 1.5),
    have_no_patience.__name__: (have_no_patience, "out of the coordinator's reach only", 8.0),
}
"""Caught by a drill, by name, that takes longer than this many seconds: these break no promise, they cost time."""
