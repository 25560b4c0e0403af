"""Seek: ask around who leads, and wait for the own turn to campaign."""

from __future__ import annotations

import math
from collections import deque

from tiermesh.core.context import Context
from tiermesh.core.messages import Hello, Pre
from tiermesh.core.role import Next, ToPreVote, ToSeek, Wait
from tiermesh.core.unled import Unled
from tiermesh.types import Address, Contact, NodeId


class Seek(Unled):
    """Nobody leads this node and it does not campaign yet; it never does when it is not eligible."""

    name = "seek"

    def __init__(self, context: Context, now: float, wanted: ToSeek) -> None:
        super().__init__(context)
        self.wait = wanted.wait
        self.campaign_at = now + self._delay(now)
        self._ranked = self.wait is not Wait.BOOT
        self._hello_at = now + self._quiet_s()
        self._slow_from = now + self.timing.hello_quick
        self._hellos_left = self.timing.hello_burst
        self._burst_at = now
        self._asked_now: set[NodeId | Address] = set()
        """In this burst."""
        self._hinted: dict[NodeId | Address, None] = {}
        """New ones, which go before the round of all."""
        self._round: deque[NodeId | Address] = deque()
        if wanted.first not in (None, context.me):
            self._hinted[wanted.first] = None
            self._greet_some(now)

    @property
    def deadline(self) -> float:
        """The next burst of hellos or the campaign."""
        return min(self.campaign_at, self._hello_at)

    def tick(self, now: float) -> Next | None:
        """Greet some, campaign when it is time."""
        if now >= self._hello_at:
            self._hello_at = now + (self.timing.hello if now < self._slow_from else self.timing.probe)
            if not self._round:
                self._round.extend(self._everyone())
            self._greet_some(now)
        if now < self.campaign_at:
            return None
        if not self.context.status.eligible:
            self.campaign_at = math.inf
            return None
        if not self._ranked:
            self._ranked = True
            self.campaign_at += self.context.rank(now) * self.timing.step
            return self.tick(now) if now >= self.campaign_at else None
        return ToPreVote()

    def hint(self, now: float, contact: Contact) -> Next | None:
        """Greet a new peer at once, within the bound of a burst."""
        targets: tuple[NodeId | Address, ...] = contact.addresses
        if contact.node_id is not None and contact.node_id != self.context.me:
            targets = (contact.node_id,)
        self._hinted.update(dict.fromkeys(targets))
        self._greet_some(now)
        return None

    def lost(self, now: float, peer: NodeId) -> Next | None:
        """A candidate that was granted has died: it is nobody's turn any more."""
        context = self.context
        if peer == context.granted_to:
            context.granted_to = None
            context.absent[peer] = now
            self.campaign_at = min(self.campaign_at, now + context.rank(now) * self.timing.step)
        return None

    def refused(self, now: float, target: NodeId | Address) -> Next | None:
        """The same, for certain."""
        return self.lost(now, NodeId(target))

    def described(self, now: float) -> Next | None:
        """It may have become eligible."""
        if self.context.status.eligible and self.campaign_at == math.inf:
            self.campaign_at = now + self._delay(now)
        return super().described(now)

    def deferred(self, now: float, question: Pre) -> None:
        """One with better right campaigns: give it a phase."""
        if question.key < self.context.key:
            self.campaign_at = max(self.campaign_at, now + self.context.phase())

    def _delay(self, now: float) -> float:
        step, rank = self.timing.step, self.context.rank(now)
        match self.wait:
            case Wait.BOOT:
                return self.timing.window
            case Wait.LOSS:
                return rank * step
            case Wait.RETRY:
                return step * (1 + rank) + self.context.rng.random() * step
            case Wait.GRANTED:
                return self.context.phase() + rank * step

    def _quiet_s(self) -> float:
        """After a loss the successor makes itself known; thousands who ask for it at once would be in its way."""
        if self.wait in (Wait.LOSS, Wait.GRANTED):
            return max(self.timing.probe, self.context.phase())
        return 0.0

    def _greet_some(self, now: float) -> None:
        """As many as the bound of a burst still allows."""
        if now >= self._burst_at + self.timing.hello:
            self._burst_at, self._hellos_left = now, self.timing.hello_burst
            self._asked_now.clear()
        while self._hellos_left > 0 and (self._hinted or self._round):
            target = next(iter(self._hinted)) if self._hinted else self._round.popleft()
            self._hinted.pop(target, None)
            if target not in self._asked_now:
                self._greet(target)

    def _everyone(self) -> list[NodeId | Address]:
        """All known peers: the successors of the last view first; without one in any order, to spread the load."""
        context = self.context
        known: list[NodeId | Address] = [*context.book.peers, *context.book.loose]
        if len(context.roster.members) > 1:
            return sorted(known, key=lambda each: context.peer_key(NodeId(each)))
        context.rng.shuffle(known)
        return known

    def _greet(self, target: NodeId | Address) -> None:
        context = self.context
        hello = Hello(context.status.addresses, context.key)
        self._asked_now.add(target)
        self._hellos_left -= 1
        if target in context.book.loose:
            context.reach(Address(target), hello)
        elif target in context.book.peers:
            context.send(NodeId(target), hello)
