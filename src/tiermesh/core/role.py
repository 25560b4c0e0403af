"""What every role of a node can do, and the next role it may ask for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from tiermesh.core.context import Context
from tiermesh.core.messages import Deny, Message, Uplink
from tiermesh.types import Address, Ballot, Contact, NodeId, SessionId


class Wait(StrEnum):
    """Why a node waits before it campaigns, which says how long."""

    BOOT = "boot"
    """Window, then rank x step."""
    LOSS = "loss"
    """Rank x step."""
    RETRY = "retry"
    """Step x (1 + rank) and jitter."""
    GRANTED = "granted"
    """Another is at it: a phase, then rank x step."""


@dataclass(frozen=True, slots=True)
class ToSeek:
    """Nobody leads this node. `first` is asked first who does."""

    wait: Wait
    first: NodeId | None = None


@dataclass(frozen=True, slots=True)
class ToJoin:
    """Ask this coordinator for membership."""

    coordinator: Contact


@dataclass(frozen=True, slots=True)
class ToPreVote:
    """Ask whether a campaign is welcome."""


@dataclass(frozen=True, slots=True)
class ToClaim:
    """Campaign, with these voters, above this term."""

    voters: tuple[NodeId, ...]
    above: int


@dataclass(frozen=True, slots=True)
class ToLead:
    """The claim was granted by these."""

    granters: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class ToFollow:
    """Welcomed on this uplink by this coordinator."""

    coordinator: NodeId
    uplink: Uplink


Next = ToSeek | ToJoin | ToPreVote | ToClaim | ToLead | ToFollow


class Role(ABC):
    """One state of the node, with the data that only this state needs."""

    name: ClassVar[str]

    def __init__(self, context: Context) -> None:
        self.context = context
        self.timing = context.timing

    @property
    @abstractmethod
    def deadline(self) -> float:
        """When `tick` wants to be called."""

    @property
    def coordinator(self) -> NodeId | None:
        """Who leads this node."""
        return None

    @abstractmethod
    def tick(self, now: float) -> Next | None:
        """The deadline may have passed."""

    @abstractmethod
    def receive(self, now: float, sender: NodeId, session: SessionId, message: Message) -> Next | None:
        """A message came in."""

    def lost(self, now: float, peer: NodeId) -> Next | None:
        """The connection with `peer` ended."""
        return None

    def refused(self, now: float, target: NodeId | Address) -> Next | None:
        """Nobody listens at `target`."""
        return None

    def hint(self, now: float, contact: Contact) -> Next | None:
        """There may be a peer; the book has it already."""
        return None

    def described(self, now: float) -> Next | None:
        """The own status has changed."""
        self.context.roster.amend(self.context.own_member())
        self.context.publish(self.coordinator)
        return None

    def excuse(self, now: float, lag: float) -> None:
        """This node's loop was late: nobody is suspected for that time, nor for mail that is not read yet."""
        return

    def leave(self, now: float) -> None:
        """Say goodbye to whom it concerns."""
        return


def deny(context: Context, sender: NodeId, ballot: Ballot) -> None:
    """Refuse a claim."""
    context.send(sender, Deny(ballot, context.promised.term))
