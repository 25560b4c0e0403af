"""Lead: the coordinator's end of all uplinks, and the roster it publishes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from tiermesh.core.context import Context, next_term
from tiermesh.core.effects import Announce, Send
from tiermesh.core.meet import Meeting
from tiermesh.core.membership import policy_stamp
from tiermesh.core.messages import (
    Ack,
    Beat,
    Bye,
    Claim,
    Come,
    Drop,
    Follows,
    Hello,
    Join,
    Lead,
    Lives,
    Message,
    Moved,
    NoLead,
    Pre,
    Probe,
    Removed,
    Taken,
    Update,
    Welcome,
)
from tiermesh.core.role import Next, Role, ToFollow, ToLead, ToSeek, Wait, deny
from tiermesh.core.uplink import Link
from tiermesh.types import NO_BALLOT, Address, Ballot, Contact, NodeId, Policy, SessionId

NOTHING = (NO_BALLOT, -1)
"""A state nobody holds: whoever is noted with it is sent the full view."""


class Leader(Role):
    """This node is the coordinator."""

    name = "lead"

    def __init__(self, context: Context, now: float, wanted: ToLead) -> None:
        super().__init__(context)
        self.links: dict[NodeId, Link] = {}
        self.meeting = Meeting(context, now, self.links)
        self._awaited: dict[NodeId, float] = {}
        """Members of the last view and granters that have not joined yet, and until when they count as up."""
        self._summon_at = now
        self._sweep_at = math.inf
        self._flush_at = math.inf
        self._flushed_at = now
        self._announce_at = now
        self._housekeeping_at = now + self.timing.housekeeping
        self._inherit(now, wanted.granters)
        context.led()
        context.publish(context.me)

    @property
    def coordinator(self) -> NodeId | None:
        """Itself."""
        return self.context.me

    @property
    def size(self) -> int:
        """Members of this group that are linked to it, this node included."""
        return 1 + len(self.links)

    @property
    def deadline(self) -> float:
        """Whatever is due first."""
        return min(
            self._sweep_at,
            self._flush_at,
            self._announce_at,
            self._housekeeping_at,
            self.meeting.deadline,
            self._summon_at if self._awaited else math.inf,
        )

    def tick(self, now: float) -> Next | None:
        """Do what is due."""
        if now >= self._sweep_at:
            self._sweep(now)
        if self._awaited and now >= self._summon_at:
            self._summon(now)
        if now >= self._announce_at:
            self._announce_at = now + self.timing.announce
            self.context.out.append(Announce())
        if now >= self._housekeeping_at:
            self._keep_house(now)
        self.meeting.tick(now, self.size)
        if now >= self._flush_at:
            self._flush(now)
        return None

    def receive(self, now: float, sender: NodeId, session: SessionId, message: Message) -> Next | None:
        """Members beat, strangers join or ask, equals meet."""
        context, meeting = self.context, self.meeting
        match message:
            case Beat():
                self._beaten(now, sender, session, message)
            case Join():
                self._asked_to_join(now, sender, session, message)
            case Pre(nonce):
                context.send(sender, Lives(nonce, context.roster.ballot, context.contact(context.me)))
            case Claim(ballot):
                deny(context, sender, ballot)
            case Hello():
                context.send(sender, Follows(context.roster.ballot, context.contact(context.me)))
            case Follows():
                meeting.directed(now, message, self.size)
            case Probe():
                meeting.judge(now, sender, message, self.size)
            case Come():
                meeting.summoned(now, sender, message)
            case Welcome():
                return self._welcomed(now, sender, message)
            case NoLead(uplink):
                if meeting.yielding is not None and uplink == meeting.yielding.uplink:
                    meeting.abandon(now)
            case Bye():
                self._left(now, sender, session)
            case _:
                pass
        return None

    def lost(self, now: float, peer: NodeId) -> Next | None:
        """A member died, or its connection did."""
        if peer in self.links:
            self._drop(now, peer)
        self._cannot_yield_to(now, peer)
        return None

    def refused(self, now: float, target: NodeId | Address) -> Next | None:
        """The same, for certain."""
        if target in self.links or target in self._awaited:
            self._drop(now, NodeId(target))
        self._cannot_yield_to(now, target)
        return None

    def hint(self, now: float, contact: Contact) -> Next | None:
        """Look whether somebody leads there."""
        self.meeting.hint(now, contact, self.size)
        return None

    def described(self, now: float) -> Next | None:
        """Publish it. One that may not lead any more hands over, if there is anybody to take it."""
        context = self.context
        members = context.roster.members
        if not context.status.eligible and any(members[node].status.eligible for node in self.links):
            self.leave(now)
            return ToSeek(Wait.RETRY)
        self._note_own(now)
        return None

    def excuse(self, now: float, lag: float) -> None:
        """The members' beats waited here, and may still."""
        n = self.context.n
        least = now - self.timing.silence(n) + self.timing.beat(n)
        for link in self.links.values():
            link.heard_at = max(link.heard_at + lag, least)
        for node in self._awaited:
            self._awaited[node] += lag

    def leave(self, now: float) -> None:
        """The members need not wait for silence."""
        for node in self.links:
            self.context.send(node, Bye())

    def set_policy(self, now: float, body: Mapping[str, object]) -> None:
        """Put a policy into force everywhere."""
        ballot, old = self.context.roster.ballot, self.context.roster.policy
        self.context.adopt_policy(Policy(ballot, old.version + 1, dict(body)))
        self._changed(now)

    def remove(self, now: float, node: NodeId) -> None:
        """Forget a member; it stops, if it runs."""
        if self.links.pop(node, None) is not None:
            self.context.send(node, Removed(self.context.roster.ballot))
        self._awaited.pop(node, None)
        self.context.book.forget(node)
        if self.context.roster.remove(node):
            self._changed(now)

    # The beginning

    def _inherit(self, now: float, granters: tuple[NodeId, ...]) -> None:
        context = self.context
        roster = context.roster
        roster.crown(context.promised)
        context.status = replace(context.status, latency_ms=0.0)
        roster.admit(context.me, context.session, context.status)
        for node in {context.lost, *context.refusing} - {None, context.me}:
            assert node is not None
            roster.mark_down(node, context.wall(now))
        until = now + self.timing.silence(context.n)
        known = [member.id for member in roster.members.values() if member.state != "down" and member.id != context.me]
        self._awaited = dict.fromkeys((*granters, *known), until)
        if self._awaited:
            self._sweep_at = until

    def _summon(self, now: float) -> None:
        self._summon_at = now + self.timing.phase(self.context.n) / self.timing.resends
        for node in self._awaited:
            self.context.send(node, Lead(self.context.roster.ballot))

    # Members

    def _asked_to_join(self, now: float, sender: NodeId, session: SessionId, join: Join) -> None:
        if self.meeting.yielding is not None:
            if join.leads:
                return
            self._cannot_yield_to(now, sender)
        link = self.links.get(sender)
        if link is not None and link.session != session:
            self._dispute(sender, link.session, session)
        elif link is None or join.uplink >= link.uplink:
            self._welcome(now, sender, session, join)

    def _dispute(self, node: NodeId, holder: SessionId, newcomer: SessionId) -> None:
        """Two daemons use one id. The younger hears of it; if it was a restart, the elder will be silent soon."""
        elder, younger = sorted((holder, newcomer))
        self.context.out.append(Send(node, Taken(elder), younger))

    def _welcome(self, now: float, sender: NodeId, session: SessionId, join: Join) -> None:
        context = self.context
        if join.promised > context.promised:
            self._raise_above(join.promised)
        context.roster.admit(sender, session, join.status)
        context.book.told(sender, join.status.addresses)
        self._awaited.pop(sender, None)
        update = context.roster.update_since(join.holds)
        self.links[sender] = Link(join.uplink, session, now, context.roster.stamp, now)
        self._sweep_at = min(self._sweep_at, now + self.timing.silence(context.n))
        context.send(sender, Welcome(join.uplink, update))
        self._changed(now)

    def _raise_above(self, promised: Ballot) -> None:
        """A joiner has promised more than this ballot: go above it, or it could never obey again."""
        context = self.context
        context.promise(Ballot(next_term(promised.term, context.me), context.me))
        context.roster.crown(context.promised)

    def _beaten(self, now: float, sender: NodeId, session: SessionId, beat: Beat) -> None:
        context, link = self.context, self.links.get(sender)
        if link is None or link.session != session or beat.uplink > link.uplink:
            context.send(sender, Drop(beat.uplink))
            return
        if beat.uplink < link.uplink:
            return
        link.heard_at = now
        context.send(sender, Ack(beat.uplink, beat.seq, context.roster.ballot))
        if beat.status is not None and context.roster.admit(sender, session, beat.status):
            context.book.told(sender, beat.status.addresses)
            self._changed(now)
        if beat.policy is not None and policy_stamp(beat.policy) > policy_stamp(context.roster.policy):
            context.adopt_policy(beat.policy)
            self._changed(now)
        for contact in beat.hints:
            context.book.hint(contact, now)
            self.meeting.hint(now, contact, self.size)
        self._catch_up(now, link, beat)

    def _catch_up(self, now: float, link: Link, beat: Beat) -> None:
        """An update that a member could not apply, or that did not arrive in a beat's time, is made good."""
        if beat.behind:
            link.sent = NOTHING
            self._changed(now)
        elif beat.holds != link.sent and now - link.sent_at > self.timing.beat(self.context.n):
            link.sent = beat.holds
            self._changed(now)

    def _left(self, now: float, node: NodeId, session: SessionId) -> None:
        link = self.links.get(node)
        if link is None or link.session == session:
            self._drop(now, node)

    def _drop(self, now: float, node: NodeId) -> None:
        self.links.pop(node, None)
        self._awaited.pop(node, None)
        if self.context.roster.mark_down(node, self.context.wall(now)):
            self._changed(now)

    def _sweep(self, now: float) -> None:
        silence = self.timing.silence(self.context.n)
        due = [node for node, link in self.links.items() if now >= link.heard_at + silence]
        due += [node for node, until in self._awaited.items() if now >= until]
        for node in due:
            self._drop(now, node)
        heard = min((link.heard_at for link in self.links.values()), default=math.inf)
        self._sweep_at = min(heard + silence, min(self._awaited.values(), default=math.inf))

    def _keep_house(self, now: float) -> None:
        self._housekeeping_at = now + self.timing.housekeeping
        before = self.context.wall(now) - self.timing.remove_down
        members = self.context.roster.members.values()
        for node in [each.id for each in members if each.down_since is not None and each.down_since < before]:
            self.remove(now, node)

    # Views

    def _note_own(self, now: float) -> None:
        context = self.context
        if context.roster.admit(context.me, context.session, context.status):
            self._changed(now)

    def _changed(self, now: float) -> None:
        if self._flush_at == math.inf:
            self._flush_at = max(now, self._flushed_at + self.timing.view_gap(self.context.n))

    def _flush(self, now: float) -> None:
        roster = self.context.roster
        self._flush_at, self._flushed_at = math.inf, now
        self.context.publish(self.context.me)
        updates: dict[tuple[Ballot, int], Update] = {}
        for node, link in self.links.items():
            if link.sent != roster.stamp:
                update = updates.get(link.sent) or updates.setdefault(link.sent, roster.update_since(link.sent))
                self.context.send(node, update)
                link.sent, link.sent_at = roster.stamp, now

    # Equals

    def _welcomed(self, now: float, sender: NodeId, welcome: Welcome) -> Next | None:
        context, old = self.context, self.context.roster.ballot
        if not self.meeting.is_welcomed(now, sender, welcome):
            return None
        for node in self.links:
            if node != sender:
                context.send(node, Moved(old, context.contact(sender)))
        return ToFollow(sender, welcome.uplink)

    def _cannot_yield_to(self, now: float, target: NodeId | Address) -> None:
        yielding = self.meeting.yielding
        if yielding is not None and yielding.target == target:
            self.meeting.abandon(now)
