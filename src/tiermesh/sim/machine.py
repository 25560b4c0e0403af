"""One simulated computer: a disk that outlives its daemon, and the daemon, which is the real `core.node.Node`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from tiermesh.core.effects import Effect, Persist
from tiermesh.core.messages import Message
from tiermesh.core.node import Node
from tiermesh.core.role import Next
from tiermesh.types import NO_BALLOT, Address, Ballot, Contact, NodeId, Policy, SessionId, Status

Transition = tuple[str, str, str]
"""State, event, next state."""
NO_SESSION = SessionId("")


class WatchedNode(Node):
    """The very same node, telling which transitions it makes."""

    watch: Callable[[Transition], None] | None = None

    def _become(self, now: float, wanted: Next, event: str) -> None:
        before = self.role
        super()._become(now, wanted, event)
        if self.watch is not None:
            self.watch((before, event, self.role))


@dataclass(slots=True)
class Disk:
    """What a crash leaves."""

    promised: Ballot = NO_BALLOT
    policy: Policy = field(default_factory=Policy)
    contacts: dict[NodeId, Contact] = field(default_factory=dict)

    def write(self, persist: Persist) -> None:
        """Make a promise durable."""
        self.promised, self.policy = persist.promised, persist.policy

    def remember(self, contacts: tuple[Contact, ...]) -> None:
        """Save contacts; without addresses it is forgotten."""
        for contact in contacts:
            assert contact.node_id is not None
            if contact.addresses:
                self.contacts[contact.node_id] = contact
            else:
                self.contacts.pop(contact.node_id, None)


@dataclass(slots=True)
class Machine:
    """A computer, on or off."""

    id: NodeId
    status: Status
    joins: tuple[Address, ...] = ()
    """What it is given as `--join` at each start."""
    disk: Disk = field(default_factory=Disk)
    node: WatchedNode | None = None
    session: SessionId = NO_SESSION
    run: int = 0
    """Counts starts and crashes, so that what was meant for an earlier run is known as such."""
    started_at: float = 0.0
    frozen: bool = False
    mailbox: list[tuple[Callable[..., None], tuple[object, ...]]] = field(default_factory=list)
    """What arrived while frozen."""
    inbox: deque[tuple[Callable[..., None], tuple[object, ...]]] = field(default_factory=deque)
    """What arrived while its processor was busy."""
    effects: deque[Effect] = field(default_factory=deque)
    writing: Persist | None = None
    links: set[NodeId] = field(default_factory=set)
    """Peers that would notice its end at once."""
    discovered: set[NodeId] = field(default_factory=set)
    """The mDNS cache: a record already in it gives no new callback."""
    wake_at: float = 0.0
    busy_until: float = 0.0

    @property
    def address(self) -> Address:
        """Where it listens."""
        return self.status.addresses[0]


@dataclass(frozen=True, slots=True)
class Letter:
    """A message under way, with what the transport knows of its sender."""

    sender: Machine
    run: int
    session: SessionId
    message: Message
    target: NodeId | Address
