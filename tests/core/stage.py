"""One node on a stage: the test plays all the others, and sees every word the node says."""

from __future__ import annotations

from typing import TypeVar

from tiermesh.core.effects import Effect, Persist, Publish, Quit, Reach, Send
from tiermesh.core.messages import (
    Ack,
    Beat,
    Claim,
    Follows,
    Grant,
    Join,
    Lead,
    Message,
    Pre,
    Stamp,
    Update,
    Uplink,
    Welcome,
    Yes,
)
from tiermesh.core.node import Node
from tiermesh.types import NO_BALLOT, Address, Ballot, Contact, Member, NodeId, Policy, SessionId, Status, Tier, View

M = TypeVar("M")

A, B, C, D, E = (NodeId(letter) for letter in "abcde")
ME = NodeId("me")
WALL = 1_800_000_000.0


def session(node: NodeId, run: int = 1) -> SessionId:
    return SessionId(f"{run:013d}-{node}")


def address(node: NodeId) -> Address:
    return Address(f"{node}:1")


def contact(node: NodeId) -> Contact:
    return Contact((address(node),), node)


def status(node: NodeId, tier: Tier | None = 1, *, eligible: bool = True) -> Status:
    return Status(str(node), (address(node),), tier=tier, eligible=eligible)


def member(node: NodeId, joined: int, tier: Tier | None = 1, *, eligible: bool = True) -> Member:
    return Member(node, session(node), status(node, tier, eligible=eligible), joined)


class Stage:
    """`now` is moved by hand; `said` keeps the effects of the last call, `all` those of every call."""

    def __init__(
        self,
        me: NodeId = ME,
        *,
        promised: Ballot = NO_BALLOT,
        contacts: tuple[Contact, ...] = (),
        tier: Tier | None = 1,
        eligible: bool = True,
        policy: Policy | None = None,
        run: int = 1,
    ) -> None:
        self.now = 0.0
        self.me = me
        self.node = Node(
            me=me,
            session=session(me, run),
            status=status(me, tier, eligible=eligible),
            promised=promised,
            policy=policy or Policy(),
            contacts=contacts,
            now=0.0,
            wall=WALL,
            seed=1,
        )
        self.said: list[Effect] = []
        self.all: list[Effect] = []

    @property
    def role(self) -> str:
        return self.node.role

    @property
    def view(self) -> View:
        return self.node.view

    def note(self, effects: list[Effect]) -> Stage:
        self.said = effects
        self.all += effects
        return self

    # What happens to the node

    def hears(self, sender: NodeId, message: Message, run: int = 1) -> Stage:
        return self.note(self.node.receive(self.now, sender, session(sender, run), message))

    def hinted(self, *nodes: NodeId) -> Stage:
        effects: list[Effect] = []
        for node in nodes:
            effects += self.node.hint(self.now, contact(node))
        return self.note(effects)

    def loses(self, peer: NodeId) -> Stage:
        return self.note(self.node.lost(self.now, peer))

    def is_refused_by(self, target: NodeId | Address) -> Stage:
        return self.note(self.node.refused(self.now, target))

    def ticks_until(self, until: float) -> Stage:
        """Tick at every deadline up to `until`."""
        effects: list[Effect] = []
        while self.node.deadline <= until:
            self.now = max(self.now, self.node.deadline)
            effects += self.node.tick(self.now)
        self.now = until
        return self.note(effects)

    def sleeps_until(self, until: float) -> Stage:
        """Nothing is called in between: the loop lagged, or the machine slept."""
        self.now = until
        return self.note(self.node.tick(until))

    # What it said

    def sent(self, kind: type[M], to: NodeId | None = None) -> list[M]:
        return [
            effect.message
            for effect in self.said
            if isinstance(effect, Send) and isinstance(effect.message, kind) and to in (None, effect.to)
        ]

    def receivers(self, kind: type[Message]) -> list[NodeId]:
        return [effect.to for effect in self.said if isinstance(effect, Send) and isinstance(effect.message, kind)]

    def reached(self, kind: type[Message]) -> list[Address]:
        return [
            effect.address for effect in self.said if isinstance(effect, Reach) and isinstance(effect.message, kind)
        ]

    def did(self, kind: type[M]) -> list[M]:
        return [effect for effect in self.said if isinstance(effect, kind)]

    def order(self) -> list[str]:
        """What was done, in order: `Persist`, `Publish`, or the name of a message."""
        return [
            type(effect.message).__name__ if isinstance(effect, (Send, Reach)) else type(effect).__name__
            for effect in self.said
        ]

    def persisted(self) -> list[Ballot]:
        return [effect.promised for effect in self.said if isinstance(effect, Persist)]

    def published(self) -> list[View]:
        return [effect.view for effect in self.said if isinstance(effect, Publish)]

    def quits(self) -> list[Quit]:
        return self.did(Quit)

    # Whole scenes

    def follows(self, leader: NodeId = A, ballot: Ballot | None = None, *others: Member, own_joined: int = 9) -> Stage:
        """It is welcomed by `leader`, whose view has `others` too."""
        self.hears(leader, Follows(NO_BALLOT, contact(leader)))
        (join,) = self.sent(Join, leader)
        self.hears(leader, Welcome(join.uplink, self.update(leader, ballot, *others, own_joined=own_joined)))
        assert self.role == "follow"
        self.acks(leader)
        return self

    def update(
        self,
        leader: NodeId = A,
        ballot: Ballot | None = None,
        *others: Member,
        own_joined: int = 9,
        version: int = 1,
        base: Stamp | None = None,
    ) -> Update:
        own = Member(self.me, session(self.me), status(self.me, self.own_tier()), own_joined)
        return Update(ballot or Ballot(100, leader), version, base, (member(leader, 1), *others, own))

    def own_tier(self) -> Tier | None:
        return self.view.members[self.me].status.tier

    def last(self, kind: type[M]) -> M:
        """The last message of this kind that it sent in any call."""
        said = (effect.message for effect in reversed(self.all) if isinstance(effect, Send))
        return next(message for message in said if isinstance(message, kind))

    def acks(self, leader: NodeId = A, ballot: Ballot | None = None) -> Stage:
        """The coordinator answers the last beat."""
        beat = self.last(Beat)
        return self.hears(leader, Ack(beat.uplink, beat.seq, ballot or self.view.ballot))

    def leads(self, *voters: NodeId) -> Stage:
        """It wins with the votes of `voters`, who join."""
        self.campaigns(*voters)
        (claim, *_) = self.sent(Claim) or [Claim(NO_BALLOT)]
        for voter in voters:
            self.hears(voter, Grant(claim.ballot))
        assert self.role == "lead"
        for voter in voters:
            self.joins(voter)
        return self

    def campaigns(self, *voters: NodeId, term: int = 0) -> Stage:
        """It asks, all `voters` say yes, and it claims."""
        self.asks(*voters)
        for voter in voters:
            self.hears(voter, Yes(self.last(Pre).nonce, term))
        return self

    def campaigns_again(self, *voters: NodeId) -> Stage:
        """It asks already; all `voters` say yes and grant."""
        for voter in voters:
            self.hears(voter, Yes(self.last(Pre).nonce, 0))
        for voter in voters:
            self.hears(voter, Grant(self.node.promised))
        assert self.role == "lead"
        return self

    def asks(self, *voters: NodeId) -> Stage:
        """It is past its window and its rank, and asks those it was hinted."""
        if voters:
            self.hinted(*voters)
        wait = 0.4 if not voters else 0.4 + 0.25 * sum(voter < self.me for voter in voters)
        return self.ticks_until(wait)

    def joins(
        self,
        node: NodeId,
        *,
        promised: Ballot | None = None,
        uplink: int = 1,
        run: int = 1,
        leads: bool = False,
        tier: Tier | None = 1,
        holds: Stamp = (NO_BALLOT, 0),
    ) -> Stage:
        ballot = self.node.promised if promised is None else promised
        return self.hears(node, Join(Uplink(uplink), ballot, status(node, tier), holds, leads), run)

    def is_beaten(self, node: NodeId, seq: int = 1, uplink: int = 1, run: int = 1) -> Stage:
        return self.hears(node, Beat(Uplink(uplink), seq, (self.view.ballot, self.view.version)), run)

    def keeps_members(self, until: float, *nodes: NodeId) -> Stage:
        """Let time pass while members beat five times a second."""
        effects: list[Effect] = []
        seq = 100
        while self.now < until:
            effects += self.ticks_until(min(self.now + 0.2, until)).said
            seq += 1
            for node in nodes:
                effects += self.is_beaten(node, seq).said
        return self.note(effects)

    def summoned_by(self) -> list[NodeId]:
        return self.receivers(Lead)
