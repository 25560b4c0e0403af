"""What all roles have in common in which nobody leads this node: they look for a coordinator and vote."""

from __future__ import annotations

from tiermesh.core.context import Context
from tiermesh.core.messages import (
    Beat,
    Busy,
    Claim,
    Come,
    Deny,
    Follows,
    Grant,
    Hello,
    Join,
    Lead,
    Message,
    NoLead,
    Pre,
    Probe,
    Yes,
)
from tiermesh.core.role import Next, Role, ToJoin, ToSeek, Wait
from tiermesh.types import Ballot, Contact, NodeId, SessionId


class Unled(Role):
    """Nobody leads this node."""

    def receive(self, now: float, sender: NodeId, session: SessionId, message: Message) -> Next | None:
        """Take the first credible coordinator; vote; answer those in the same position."""
        match message:
            case Hello():
                self._greeted(sender, message)
            case Follows():
                return self.directed(now, sender, message.coordinator)
            case Probe() | Come():
                return ToJoin(self.context.contact(sender))
            case Lead(ballot):
                return self.summoned(sender, ballot)
            case Pre():
                return self.asked(now, sender, session, message)
            case Claim(ballot):
                return consider_claim(self.context, now, sender, ballot)
            case Join(uplink=uplink) | Beat(uplink=uplink):
                self.context.send(sender, NoLead(uplink))
            case _:
                pass
        return None

    def directed(self, now: float, sender: NodeId, coordinator: Contact) -> Next | None:
        """Somebody says who leads."""
        if is_credible(self.context, now, sender, coordinator):
            return ToJoin(coordinator)
        return None

    def summoned(self, sender: NodeId, ballot: Ballot) -> Next | None:
        """Somebody says that it has won."""
        if ballot.node_id == sender and ballot >= self.context.promised:
            return ToJoin(self.context.contact(sender))
        return None

    def asked(self, now: float, sender: NodeId, session: SessionId, question: Pre) -> Next | None:
        """Somebody thinks of campaigning."""
        if self.context.granted_another(sender, now):
            self.context.send(sender, Busy(question.nonce))
        else:
            self.context.send(sender, Yes(question.nonce, self.context.promised.term))
            self.deferred(now, question)
        return None

    def deferred(self, now: float, question: Pre) -> None:
        """A pre-vote was let pass; one's own may wait for it."""

    def _greeted(self, sender: NodeId, hello: Hello) -> None:
        if not hello.answer:
            self.context.send(sender, Hello(self.context.status.addresses, self.context.key, answer=True))


def is_credible(context: Context, now: float, sender: NodeId, coordinator: Contact) -> bool:
    """Is it worth trying to join `coordinator` on `sender`'s word? Others' word for one that was lost is not."""
    node = coordinator.node_id
    if node is None or node == context.me:
        return False
    if node == sender:
        return True
    failed_at = context.unreachable.get(node)
    return node != context.lost and (failed_at is None or now - failed_at >= context.timing.patience)


def consider_claim(context: Context, now: float, sender: NodeId, ballot: Ballot) -> Next | None:
    """Grant `ballot` when its term is above all this node has promised, or when it is the very one promised.

    Terms are compared, not ballots: two candidates of one term must not both be granted.
    """
    if ballot.node_id != sender:
        return None
    if ballot == context.promised:
        context.send(sender, Grant(ballot))
        return None
    if ballot.term <= context.promised.term:
        context.send(sender, Deny(ballot, context.promised.term))
        return None
    context.promise(ballot)
    context.granted_to, context.granted_at = sender, now
    context.send(sender, Grant(ballot))
    return ToSeek(Wait.GRANTED)
