"""Follow: the member's end of an uplink."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from itertools import islice

from tiermesh.core.context import Context, Held
from tiermesh.core.effects import Quit
from tiermesh.core.membership import policy_stamp
from tiermesh.core.messages import (
    Ack,
    Beat,
    Bye,
    Claim,
    Drop,
    Follows,
    Hello,
    Join,
    Lives,
    Message,
    Moved,
    NoLead,
    Pre,
    Probe,
    Removed,
    Update,
    Uplink,
    Welcome,
    Yes,
)
from tiermesh.core.role import Next, Role, ToFollow, ToJoin, ToSeek, Wait, deny
from tiermesh.core.unled import consider_claim, is_credible
from tiermesh.core.uplink import Pulse
from tiermesh.types import Address, Ballot, Contact, NodeId, SessionId


class Follow(Role):
    """A coordinator leads this node."""

    name = "follow"

    def __init__(self, context: Context, now: float, wanted: ToFollow) -> None:
        super().__init__(context)
        self._leader = wanted.coordinator
        self._uplink: Uplink = wanted.uplink
        self._pulse = Pulse(now)
        self._latency_at = now
        self._status_seq = 0
        """The first beat that carried the status at hand; it is known to be told once that is acknowledged."""
        self._hints = deque(context.strangers())
        """Contacts the coordinator may not know; the first `_offered` are under way since the beat `_offered_seq`."""
        self._offered = 0
        self._offered_seq = 0
        self._in_doubt = False
        """Said yes to a candidate since the coordinator's last sign of life."""
        context.led()
        self._answer_held(None)
        context.publish(self._leader)
        self._beat(now)

    @property
    def coordinator(self) -> NodeId | None:
        """Who leads this node."""
        return self._leader

    @property
    def deadline(self) -> float:
        """The next beat, the end of patience, or of a held answer."""
        held = min((each.until for each in self.context.held.values()), default=self._beat_at)
        return min(self._beat_at, self._pulse.heard_at + self._silence, held)

    @property
    def _silence(self) -> float:
        return self.timing.silence(self.context.n)

    def tick(self, now: float) -> Next | None:
        """Beat; notice silence; answer candidates for whom no sign of life came."""
        if now >= self._pulse.heard_at + self._silence:
            return self._bereaved()
        for node, held in list(self.context.held.items()):
            if now >= held.until:
                del self.context.held[node]
                self._in_doubt = True
                self.context.send(node, Yes(held.question.nonce, self.context.promised.term))
        if now >= self._beat_at:
            self._beat(now)
        return None

    def receive(self, now: float, sender: NodeId, session: SessionId, message: Message) -> Next | None:
        """The coordinator orders; others ask who it is."""
        if sender == self._leader:
            return self._ordered(now, sender, session, message)
        match message:
            case Pre():
                self._asked(now, sender, session, message)
            case Claim(ballot):
                return self._claimed(now, sender, ballot)
            case Hello() | Probe():
                self.context.send(sender, self._word())
            case Join(uplink=uplink) | Beat(uplink=uplink):
                self.context.send(sender, NoLead(uplink, self.context.contact(self._leader)))
            case _:
                pass
        return None

    def lost(self, now: float, peer: NodeId) -> Next | None:
        """End-of-file on the uplink."""
        return self._bereaved() if peer == self._leader else None

    def refused(self, now: float, target: NodeId | Address) -> Next | None:
        """The coordinator's host lives, the coordinator does not."""
        return self._bereaved() if target == self._leader else None

    def hint(self, now: float, contact: Contact) -> Next | None:
        """Members do not probe: pass it on with the next beat."""
        node = contact.node_id
        member = None if node is None else self.context.roster.members.get(node)
        known = member is not None and member.state != "down"
        if not known and contact not in self._hints and len(self._hints) < self.timing.contacts:
            self._hints.append(contact)
        return None

    def described(self, now: float) -> Next | None:
        """News travel at once."""
        self._status_seq = self._pulse.seq + 1
        self._beat(now)
        return None

    def excuse(self, now: float, lag: float) -> None:
        """The coordinator's acknowledgements waited here, and may still."""
        self._pulse.heard_at = max(self._pulse.heard_at + lag, now - self._silence + self.timing.beat(self.context.n))

    def leave(self, now: float) -> None:
        """The coordinator tells the others."""
        self.context.send(self._leader, Bye())

    def _ordered(self, now: float, sender: NodeId, session: SessionId, message: Message) -> Next | None:
        match message:
            case Ack():
                self._acknowledged(now, message)
            case Update():
                self._updated(now, message)
            case Welcome(uplink, update) if uplink == self._uplink:
                self._updated(now, update)
            case Drop(uplink) if uplink == self._uplink:
                return ToJoin(self.context.contact(sender))
            case NoLead(uplink, other) if uplink == self._uplink:
                return self._abandoned(now, sender, other)
            case Moved(ballot, other) if ballot >= self.context.promised and other.node_id is not None:
                return ToJoin(other)
            case Bye() if session == self._leader_session():
                return self._bereaved()
            case Removed(ballot) if ballot >= self.context.promised:
                self.context.out.append(Quit("this node was removed from the cluster"))
            case Pre():
                self._asked(now, sender, session, message)
            case Claim(ballot):
                return self._claimed(now, sender, ballot)
            case Hello() | Probe() | Join():
                self._beat(now)  # if it does not lead any more, its answer says so
            case _:
                pass
        return None

    def _beat(self, now: float, *, behind: bool = False) -> None:
        context = self.context
        self._note_latency(now)
        seq = self._pulse.beat(now)
        self._beat_at = now + self.timing.beat(context.n)
        policy = context.roster.policy
        if not self._offered:
            self._offered, self._offered_seq = min(len(self._hints), self.timing.hints), seq
        beat = Beat(
            self._uplink,
            seq,
            context.roster.stamp,
            behind=behind,
            status=context.status if self._pulse.acked < self._status_seq else None,
            policy=policy if policy_stamp(policy) > context.leader_policy else None,
            hints=tuple(islice(self._hints, self._offered)),
        )
        context.send(self._leader, beat)

    def _acknowledged(self, now: float, ack: Ack) -> None:
        if ack.uplink != self._uplink or ack.ballot < self.context.promised:
            return
        if self._pulse.acknowledge(now, ack.seq):
            self.context.rtt_s = self._pulse.rtt_s
            self._in_doubt = False
            self._forget_offered(ack.seq)
            self._answer_held(ack.seq)

    def _forget_offered(self, seq: int) -> None:
        if seq >= self._offered_seq:
            for _ in range(self._offered):
                self._hints.popleft()
            self._offered = 0

    def _answer_held(self, seq: int | None) -> None:
        """The coordinator lives, as of the beat `seq`; None when it has just welcomed this node."""
        context = self.context
        for node, held in list(context.held.items()):
            if seq is None or held.seq <= seq:
                del context.held[node]
                ballot, contact = context.roster.ballot, context.contact(self._leader)
                context.send(node, Lives(held.question.nonce, ballot, contact))

    def _updated(self, now: float, update: Update) -> None:
        context = self.context
        if update.ballot < context.promised:
            return
        before = context.roster.stamp
        if not context.take(update):
            self._beat(now, behind=True)
            return
        if context.roster.stamp != before:
            context.publish(self._leader)

    def _asked(self, now: float, sender: NodeId, session: SessionId, question: Pre) -> None:
        """Judging by the uplink's last state would veto in the milliseconds before its own end-of-file."""
        self._beat(now)
        self.context.held[sender] = Held(session, question, now + self.timing.hold, self._pulse.seq)

    def _claimed(self, now: float, sender: NodeId, ballot: Ballot) -> Next | None:
        if not self._in_doubt:
            deny(self.context, sender, ballot)
            return None
        wanted = consider_claim(self.context, now, sender, ballot)
        if wanted is not None:
            self.context.lost = self._leader
        return wanted

    def _abandoned(self, now: float, sender: NodeId, other: Contact | None) -> Next:
        if other is not None and is_credible(self.context, now, sender, other):
            return ToJoin(other)
        return self._bereaved()

    def _bereaved(self) -> Next:
        self.context.lost = self._leader
        return ToSeek(Wait.LOSS)

    def _leader_session(self) -> SessionId:
        return self.context.roster.members[self._leader].session

    def _word(self) -> Follows:
        return Follows(self.context.roster.ballot, self.context.contact(self._leader))

    def _note_latency(self, now: float) -> None:
        context, timing = self.context, self.timing
        rtt_s, told_ms = context.rtt_s, context.status.latency_ms
        if rtt_s is None or (told_ms is not None and now < self._latency_at):
            return
        least_ms = max(timing.latency_change_ms, timing.latency_change * (told_ms or 0.0))
        if told_ms is None or abs(rtt_s * 1000 - told_ms) > least_ms:
            self._latency_at = now + timing.latency_gap
            context.status = replace(context.status, latency_ms=round(rtt_s * 1000, 3))
            self._status_seq = self._pulse.seq + 1
