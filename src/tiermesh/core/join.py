"""Join: ask one coordinator for membership, for a second."""

from __future__ import annotations

from tiermesh.core.context import Context, Held
from tiermesh.core.messages import Come, Join, Message, NoLead, Pre, Probe, Stamp, Welcome
from tiermesh.core.role import Next, ToFollow, ToJoin, ToSeek, Wait
from tiermesh.core.unled import Unled, is_credible
from tiermesh.types import NO_BALLOT, Address, Ballot, Contact, NodeId, SessionId


class Joining(Unled):
    """Somebody leads, as this node was told; it is not a member yet."""

    name = "join"

    def __init__(self, context: Context, now: float, wanted: ToJoin) -> None:
        super().__init__(context)
        assert wanted.coordinator.node_id is not None
        self.target = wanted.coordinator.node_id
        if wanted.coordinator.addresses:
            context.book.hint(wanted.coordinator, now)
        self._uplink = context.next_uplink()
        self._limit = now + self.timing.join_limit
        self._holds: Stamp = context.roster.stamp
        self._ask(now)

    @property
    def deadline(self) -> float:
        """The next repetition, the limit, or the end of a held answer."""
        held = min((each.until for each in self.context.held.values()), default=self._limit)
        return min(self._ask_at, self._limit, held)

    def tick(self, now: float) -> Next | None:
        """Ask again, or give up."""
        if now >= self._limit:
            return self._give_up(now, Wait.RETRY)
        if now >= self._ask_at:
            self._ask(now)
        for node, held in list(self.context.held.items()):
            if now >= held.until:
                del self.context.held[node]
                super().asked(now, node, held.session, held.question)
        return None

    def receive(self, now: float, sender: NodeId, session: SessionId, message: Message) -> Next | None:
        """Wait for the welcome; a word about other coordinators is for later."""
        match message:
            case Welcome() if sender == self.target and message.uplink == self._uplink:
                return self._welcomed(now, message)
            case NoLead(uplink, other) if sender == self.target and uplink == self._uplink:
                return self._sent_on(now, sender, other)
            case Probe() | Come():
                return None
            case _:
                return super().receive(now, sender, session, message)

    def directed(self, now: float, sender: NodeId, coordinator: Contact) -> Next | None:
        """One thing at a time."""
        return None

    def summoned(self, sender: NodeId, ballot: Ballot) -> Next | None:
        """The one that is being joined repeats itself; another has won since."""
        return None if sender == self.target else super().summoned(sender, ballot)

    def asked(self, now: float, sender: NodeId, session: SessionId, question: Pre) -> Next | None:
        """Answer when it is known whether the coordinator lives."""
        if self.context.granted_another(sender, now):
            return super().asked(now, sender, session, question)
        self.context.held.setdefault(sender, Held(session, question, now + self.timing.hold))
        return None

    def lost(self, now: float, peer: NodeId) -> Next | None:
        """The coordinator died."""
        return self._give_up(now, Wait.LOSS) if peer == self.target else None

    def refused(self, now: float, target: NodeId | Address) -> Next | None:
        """The coordinator is dead."""
        return self._give_up(now, Wait.LOSS) if target == self.target else None

    def _ask(self, now: float) -> None:
        context = self.context
        self._ask_at = now + self.timing.join_retry
        context.send(self.target, Join(self._uplink, context.promised, context.status, self._holds))

    def _welcomed(self, now: float, welcome: Welcome) -> Next | None:
        update = welcome.update
        if update.ballot < self.context.promised:
            return None
        if not self.context.take(update):
            self._holds = (NO_BALLOT, 0)
            self._ask(now)
            return None
        return ToFollow(self.target, self._uplink)

    def _sent_on(self, now: float, sender: NodeId, other: Contact | None) -> Next:
        self.context.unreachable[self.target] = now
        if other is not None and other.node_id != self.target and is_credible(self.context, now, sender, other):
            return ToJoin(other)
        return ToSeek(Wait.RETRY)

    def _give_up(self, now: float, wait: Wait) -> Next:
        failed_before = self.context.unreachable.get(self.target)
        self.context.unreachable[self.target] = now
        if wait is Wait.LOSS:
            self.context.lost = self.target
            if failed_before is not None and now - failed_before < self.timing.patience:
                return ToSeek(Wait.RETRY)  # others can reach it and this node can't: no haste
        return ToSeek(wait)
