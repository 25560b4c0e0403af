"""What `core.node.Node` asks of the shell around it.

Effects are carried out in the order in which they were returned, across calls: whatever follows a `Persist`, from
the same call or a later one, waits until that persist is on disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from tiermesh.core.messages import Message
from tiermesh.types import Address, Ballot, Contact, NodeId, Policy, SessionId, View


@dataclass(frozen=True, slots=True)
class Persist:
    """Write the promise (and the policy, when it changed) durably before anything that follows."""

    promised: Ballot
    policy: Policy


@dataclass(frozen=True, slots=True)
class Remember:
    """Save these contacts in the address book. Best effort: nothing waits for it.

    A contact replaces what was saved of the same node; one without addresses means to forget the node.
    """

    contacts: tuple[Contact, ...]


@dataclass(frozen=True, slots=True)
class Send:
    """Say `message` to a known peer. May be lost; a refused connection is reported with `Node.refused`.

    With a `session` it is only for that run of the peer: it goes over a connection with it, or nowhere.
    """

    to: NodeId
    message: Message
    session: SessionId | None = None


@dataclass(frozen=True, slots=True)
class Reach:
    """Say `message` to whoever answers at `address`: a hint whose node id nobody knows yet."""

    address: Address
    message: Message


@dataclass(frozen=True, slots=True)
class Publish:
    """This is the view from now on."""

    view: View


@dataclass(frozen=True, slots=True)
class Announce:
    """Announce this node again over mDNS."""


@dataclass(frozen=True, slots=True)
class Quit:
    """This node can't go on. `reason` is for a person; `twin` says that another daemon runs with its id."""

    reason: str
    twin: bool = False

    @classmethod
    def as_twin(cls, session: SessionId) -> Self:
        """Because of that run of another daemon with the same id."""
        return cls(f"another daemon runs with this node's id (session {session}): was the state folder copied?", True)


Effect = Persist | Remember | Send | Reach | Publish | Announce | Quit
