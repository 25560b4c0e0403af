"""What a node knows whatever its role, and what every role may do with it.

A role never touches another role: it returns the `Next` one it asks for, and `core.node` builds it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from tiermesh.core.book import AddressBook
from tiermesh.core.constants import Timing
from tiermesh.core.effects import Effect, Persist, Publish, Reach, Send
from tiermesh.core.membership import NEVER_JOINED, Roster, policy_stamp, succession_key
from tiermesh.core.messages import Key, Message, Pre, Stamp, Update, Uplink
from tiermesh.types import NO_BALLOT, Address, Ballot, Contact, Member, NodeId, Policy, SessionId, Status

TERM_BITS = 24
"""Terms step by up to 2^24: two halves that elect at the same time hardly ever pick the same term, and 2^30 elections
pass before JSON loses digits."""


def next_term(term: int, node: NodeId) -> int:
    """A term above `term`, different for every node: a hash of both, not plus one."""
    digest = blake2b(f"{node}/{term}".encode(), digest_size=TERM_BITS // 8).digest()
    return term + 1 + int.from_bytes(digest, "big")


@dataclass(frozen=True, slots=True)
class Held:
    """A `Pre` whose answer waits until it is known whether the coordinator lives."""

    session: SessionId
    question: Pre
    until: float
    seq: int = 0
    """The beat whose acknowledgement would be the sign of life."""


@dataclass(slots=True)
class Context:
    """State that outlives roles. `out` collects the effects of the call at hand."""

    me: NodeId
    session: SessionId
    status: Status
    promised: Ballot
    book: AddressBook
    roster: Roster
    timing: Timing
    rng: random.Random
    wall_offset: float
    unled_since: float
    """Since when nobody leads this node; meaningless while somebody does."""
    lost: NodeId | None = None
    """The coordinator whose uplink was lost; cleared when led again."""
    granted_to: NodeId | None = None
    granted_at: float = 0.0
    absent: dict[NodeId, float] = field(default_factory=dict)
    """Who did not answer a campaign, and when."""
    refusing: set[NodeId] = field(default_factory=set)
    """Whose host refused a connection during the campaign at hand."""
    unreachable: dict[NodeId, float] = field(default_factory=dict)
    """Coordinators that could not be joined, and when."""
    leader_policy: Stamp = (NO_BALLOT, 0)
    """The policy that the coordinator has in force."""
    held: dict[NodeId, Held] = field(default_factory=dict)
    crowd: int = 1
    """How many took part when a campaign was last thought of."""
    uplinks: int = 0
    rtt_s: float | None = None
    out: list[Effect] = field(default_factory=list)

    # What it knows

    @property
    def key(self) -> Key:
        """Own place in the succession."""
        return succession_key(self.roster.members[self.me])

    @property
    def n(self) -> int:
        """Members that are up."""
        return self.roster.up

    def wall(self, now: float) -> float:
        """Unix seconds at `now`."""
        return now + self.wall_offset

    def contact(self, node: NodeId) -> Contact:
        """Where `node` is reached, this node included."""
        if node == self.me:
            return Contact(self.status.addresses, node)
        return self.book.contact(node)

    def was_absent(self, node: NodeId, now: float) -> bool:
        """Did `node` lately not answer?"""
        return node in self.absent and now - self.absent[node] < self.timing.recent

    def electorate(self, now: float) -> list[NodeId]:
        """Whom a campaign must hear: the last view without the lost coordinator and those lately silent; without a
        view the peers that were hinted or heard lately."""
        voters = [node for node in self._base(now) if not self.was_absent(node, now)]
        self.crowd = 1 + len(voters)
        return voters

    def phase(self) -> float:
        """Longest pre-vote and longest claim, by how many take part."""
        return self.timing.phase(max(self.n, self.crowd))

    def rank(self, now: float) -> int:
        """How many of the electorate come before this node."""
        mine = self.key
        return sum(self.peer_key(node) < mine for node in self.electorate(now))

    def peer_key(self, node: NodeId) -> Key:
        """Place of a peer in the succession: as the view has it, or as it said itself; else by id alone."""
        member = self.roster.members.get(node)
        if member is not None:
            return succession_key(member)
        peer = self.book.peers.get(node)
        if peer is not None and peer.key is not None:
            return peer.key
        return (0, self.key[1], NEVER_JOINED, node)

    def granted_another(self, candidate: NodeId, now: float) -> bool:
        """Was somebody else granted so lately that it may still be winning?"""
        return self.granted_to not in (None, candidate) and now - self.granted_at < self.phase()

    def strangers(self) -> list[Contact]:
        """Contacts that are no members of the view: a new coordinator may not know them."""
        members = self.roster.members
        known = [self.book.contact(node) for node in self.book.peers if node not in members]
        return [each for each in known if each.addresses] + [Contact((address,)) for address in self.book.loose]

    def _base(self, now: float) -> list[NodeId]:
        known = [
            member.id
            for member in self.roster.members.values()
            if member.state != "down" and member.id not in (self.me, self.lost)
        ]
        return known or [node for node in self.book.recent(now) if node != self.lost]

    # What it does

    def send(self, to: NodeId, message: Message) -> None:
        """Say something to a peer."""
        self.out.append(Send(to, message))

    def reach(self, address: Address, message: Message) -> None:
        """Say something to whoever is at `address`."""
        self.out.append(Reach(address, message))

    def promise(self, ballot: Ballot) -> None:
        """Never obey anything below `ballot` from now on; on disk before whatever is said next."""
        if ballot > self.promised:
            self.promised = ballot
            self.out.append(Persist(ballot, self.roster.policy))

    def adopt_policy(self, policy: Policy) -> None:
        """Put a policy into force that is above the one at hand."""
        assert policy_stamp(policy) > policy_stamp(self.roster.policy)
        self.roster.set_policy(policy)
        self.out.append(Persist(self.promised, policy))

    def take(self, update: Update) -> bool:
        """Make a coordinator's update this node's own, on disk where it matters. False when the full view is needed."""
        assert update.ballot >= self.promised
        policy = self.roster.policy
        if not self.roster.apply(update):
            return False
        if update.ballot > self.promised or self.roster.policy is not policy:
            self.promised = update.ballot
            self.out.append(Persist(self.promised, self.roster.policy))
        self.leader_policy = update.policy_stamp
        for member in update.changed:
            self.book.told(member.id, member.status.addresses)
        return True

    def unled(self, now: float) -> None:
        """Nobody leads this node from now on."""
        self.unled_since = now
        self.rtt_s = None
        self.status = replace(self.status, latency_ms=None)

    def led(self) -> None:
        """Somebody leads this node now, perhaps itself: what was noted while nobody did is void."""
        self.lost = self.granted_to = None
        self.absent.clear()
        self.unreachable.clear()

    def publish(self, coordinator: NodeId | None) -> None:
        """Show the view to the rest of this daemon."""
        self.out.append(Publish(self.roster.view(coordinator)))

    def next_uplink(self) -> Uplink:
        """A number for one attempt at membership, higher than all before."""
        self.uplinks += 1
        return Uplink(self.uplinks)

    def own_member(self) -> Member:
        """This node's entry with its present status."""
        known = self.roster.members.get(self.me)
        joined = NEVER_JOINED if known is None else known.joined
        return Member(self.me, self.session, self.status, joined, self.status.state)

    def describe(self, status: Status) -> None:
        """Replace the own status; the latency in it is this node's own to measure."""
        self.status = replace(status, latency_ms=self.status.latency_ms)
