"""Campaigns: how a group that has no coordinator gets exactly one.

Theory of operation
-------------------
A home has two machines as often as twenty, so there is no quorum: whoever is granted by *all* it could reach leads
*them*. A partition therefore has a coordinator on each side, and what keeps that safe is not that it can't happen but
that ballots differ. A ballot is (term, node id). What is held at all times:

- A node grants a term to one candidate only. It compares terms, not ballots, and the promise is on disk before the
  grant leaves (`core.effects`: effects in order, whatever follows a persist waits for it).
- A node obeys nothing below the highest ballot it has promised, by granting or by following, also after a restart.
- No ballot is held twice: a candidate steps above all that it has promised and persists before it claims.
- Terms step by a hash of (node, term): two halves that elect at the same time do not pick the same term.

A campaign has two phases. The **pre-vote** costs nothing and changes nothing: it asks everybody known whether a
campaign is welcome. Whom it must hear is the last view without the lost coordinator and without those lately silent.
One living coordinator in reach ends it, for `Lives` comes from the coordinator, or from a follower that has just
exchanged a beat with it: a follower asked in the milliseconds before its own end-of-file would veto for a dead one
if it judged by its uplink's last state. Of two who ask, the better (`membership.succession_key`) says `Busy`, the
worse stands down. The **claim** then takes a term above all that was heard, persists it, and needs a grant of every
single one who said yes, before a deadline that is checked by the clock when a grant is read, not by a timer: a
frozen candidate must not win with what it finds on waking. Silence fails a claim; a refused connection only drops
that voter, since nobody is there.

Who may start when is spread out by rank x step, so that one campaign runs at a time; when two meet all the same,
`Busy`, `Deny` and jitter part them, and what never meets does not matter: it is another group, see `core.meet`."""

from __future__ import annotations

import math

from tiermesh.core.context import Context, next_term
from tiermesh.core.messages import (
    Busy,
    Claim,
    Come,
    Deny,
    Follows,
    Grant,
    Lead,
    Lives,
    Message,
    Pre,
    Probe,
    Yes,
)
from tiermesh.core.role import Next, ToClaim, ToJoin, ToLead, ToSeek, Wait
from tiermesh.core.unled import Unled
from tiermesh.types import Address, Ballot, Contact, NodeId, SessionId


class PreVote(Unled):
    """Ask everybody known whether a campaign is welcome. Nothing is promised, nothing is persisted."""

    name = "prevote"

    def __init__(self, context: Context, now: float) -> None:
        super().__init__(context)
        book = context.book
        self._started = now
        self._ends = now + context.phase()
        self._nonce = context.rng.getrandbits(48)
        self._must = set(context.electorate(now))
        self._others = set(book.peers) - self._must
        self._not_awaited = {context.lost} & self._others
        self._loose = set(book.loose)
        self._terms: dict[NodeId, int] = {}
        context.refusing.clear()
        self._ask(now)

    @property
    def deadline(self) -> float:
        """The next repetition or the end."""
        return min(self._ends_at(), self._ask_at)

    def tick(self, now: float) -> Next | None:
        """End it, or ask the silent again."""
        if now >= self._ends_at():
            return self._conclude(now)
        if now >= self._ask_at:
            self._ask(now)
        return None

    def receive(self, now: float, sender: NodeId, session: SessionId, message: Message) -> Next | None:
        """Count the answers."""
        match message:
            case Yes(nonce, term) if nonce == self._nonce:
                self._terms[sender] = term
                return self._answered(now, sender)
            case Busy(nonce) if nonce == self._nonce:
                return ToSeek(Wait.RETRY)
            case Lives(nonce) if nonce == self._nonce:
                return self._vetoed(now, sender, message)
            case _:
                return super().receive(now, sender, session, message)

    def asked(self, now: float, sender: NodeId, session: SessionId, question: Pre) -> Next | None:
        """Of two who ask, the one with better right goes on."""
        if self.context.key < question.key:
            self.context.send(sender, Busy(question.nonce))
            return None
        super().asked(now, sender, session, question)
        return ToSeek(Wait.GRANTED)

    def lost(self, now: float, peer: NodeId) -> Next | None:
        """Ask again: an answer or a refusal follows."""
        if peer in self._must or peer in self._others:
            self.context.send(peer, Pre(self._nonce, self.context.key))
        return None

    def refused(self, now: float, target: NodeId | Address) -> Next | None:
        """A refusal is an answer: nobody is there."""
        if target in self._must or target in self._others:
            self.context.refusing.add(NodeId(target))
        return self._answered(now, target)

    def hint(self, now: float, contact: Contact) -> Next | None:
        """Somebody turned up meanwhile: ask it too."""
        node = contact.node_id
        if node is not None and node != self.context.me and node not in self._must and node not in self._terms:
            self._others.add(node)
            self.context.send(node, Pre(self._nonce, self.context.key))
        return None

    def _ask(self, now: float) -> None:
        question = Pre(self._nonce, self.context.key)
        self._ask_at = now + self.context.phase() / self.timing.resends
        for node in sorted(self._must | self._others):
            self.context.send(node, question)
        for address in sorted(self._loose):
            self.context.reach(address, question)

    def _ends_at(self) -> float:
        if self._must:
            return self._ends
        if self._others - self._not_awaited or self._loose:
            return min(self._started + self.timing.also, self._ends)
        return self._started

    def _answered(self, now: float, target: NodeId | Address) -> Next | None:
        self._must.discard(NodeId(target))
        self._others.discard(NodeId(target))
        self._loose.discard(Address(target))
        return self._conclude(now) if now >= self._ends_at() else None

    def _vetoed(self, now: float, sender: NodeId, message: Lives) -> Next | None:
        """A member's word abstains when its coordinator could not be joined for long; the coordinator's own never."""
        node = message.coordinator.node_id
        if node is None or node == self.context.me:
            return None
        if node != sender and now - self.context.unled_since > self.timing.patience:
            return self._answered(now, sender)
        return ToJoin(message.coordinator)

    def _conclude(self, now: float) -> Next:
        for node in self._must:
            self.context.absent[node] = now
        terms = self._terms
        return ToClaim(tuple(sorted(terms)), max(terms.values(), default=0))


class Candidacy(Unled):
    """Claim a ballot: everybody who said yes must grant it in time."""

    name = "claim"

    def __init__(self, context: Context, now: float, wanted: ToClaim) -> None:
        super().__init__(context)
        self.ballot = Ballot(next_term(max(wanted.above, context.promised.term), context.me), context.me)
        self._ends = now + context.phase()
        self._silent = set(wanted.voters)
        self._granters: list[NodeId] = []
        context.promise(self.ballot)
        self._ask(now)

    @property
    def deadline(self) -> float:
        """The next repetition or the end."""
        return min(self._ask_at, self._ends) if self._silent else -math.inf

    def tick(self, now: float) -> Next | None:
        """Win when nobody is waited for; fail when it is too late; else ask the silent again."""
        won = self._won()
        if won is not None:
            return won
        if now >= self._ends:
            for node in self._silent:
                self.context.absent[node] = now
            return ToSeek(Wait.RETRY)
        if now >= self._ask_at:
            self._ask(now)
        return None

    def receive(self, now: float, sender: NodeId, session: SessionId, message: Message) -> Next | None:
        """Count the grants that come in time; the clock decides, not the timer: a frozen node wakes to its mail."""
        match message:
            case Grant(ballot):
                if ballot == self.ballot and sender in self._silent and now < self._ends:
                    self._silent.discard(sender)
                    self._granters.append(sender)
                return self._won()
            case Deny(ballot):
                return ToSeek(Wait.RETRY) if ballot == self.ballot else None
            case Pre(nonce):
                self.context.send(sender, Busy(nonce))
                return None
            case Follows() | Probe() | Come():
                return None
            case Lead(ballot) if ballot < self.ballot:
                return None
            case _:
                return super().receive(now, sender, session, message)

    def lost(self, now: float, peer: NodeId) -> Next | None:
        """Ask again: a grant or a refusal follows."""
        if peer in self._silent:
            self.context.send(peer, Claim(self.ballot))
        return None

    def refused(self, now: float, target: NodeId | Address) -> Next | None:
        """A voter that is dead need not be heard."""
        if target in self._silent:
            self._silent.discard(NodeId(target))
            self.context.refusing.add(NodeId(target))
        return self._won()

    def _won(self) -> Next | None:
        return None if self._silent else ToLead(tuple(self._granters))

    def _ask(self, now: float) -> None:
        self._ask_at = now + self.context.phase() / self.timing.resends
        for node in sorted(self._silent):
            self.context.send(node, Claim(self.ballot))
