"""What nodes say to one another, and how it looks as JSON data.

Every message comes with its sender's id and session, which the transport takes from the handshake. Messages that
order something (`Lead`, `Update`, `Ack`, `Moved`, `Removed`) carry the ballot they are ordered under.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NewType, get_args

from tiermesh.core.codec import decode_value, encode_value
from tiermesh.types import Address, Ballot, Contact, Member, NodeId, Policy, SessionId, Status, View

PROTOCOL = 1
"""Version of what is in this file; rises with every change that an older node would misread."""
PROTOCOL_MINIMUM = 1
"""The oldest version this one still talks with."""

Key = tuple[int, int, int, NodeId]
"""Place in the succession, lower first: (may not lead, minus one minus tier, join number, id)."""
Stamp = tuple[Ballot, int]
"""Ballot and version of a view or policy, totally ordered."""
Uplink = NewType("Uplink", int)
"""One attempt of one session to be a member; rises within the session, so that late messages are known as such."""


@dataclass(frozen=True, slots=True)
class Hello:
    """Who leads? Said by a node that nobody leads. `answer`: this is the reply of another one, not a question."""

    addresses: tuple[Address, ...]
    key: Key
    answer: bool = False


@dataclass(frozen=True, slots=True)
class Follows:
    """I follow this coordinator (or am it) under this ballot. Hearsay, unless the coordinator says it."""

    ballot: Ballot
    coordinator: Contact


@dataclass(frozen=True, slots=True)
class Join:
    """Take me as a member. `holds` is the view I have, `leads` is set by a coordinator that yields."""

    uplink: Uplink
    promised: Ballot
    status: Status
    holds: Stamp
    leads: bool = False


@dataclass(frozen=True, slots=True)
class Update:
    """A view: full when `base` is None, else what changed since `base`; valid for anyone at `base` or later."""

    ballot: Ballot
    version: int
    base: Stamp | None = None
    changed: tuple[Member, ...] = ()
    removed: tuple[NodeId, ...] = ()
    policy_stamp: Stamp = (Ballot(0, NodeId("")), 0)
    policy: Policy | None = None
    """None when it has not changed since `base`."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """You are a member on this uplink."""

    uplink: Uplink
    update: Update


@dataclass(frozen=True, slots=True)
class Beat:
    """I live, and this is the view I hold. `status`, `policy` and `hints` travel only when there is news."""

    uplink: Uplink
    seq: int
    holds: Stamp
    behind: bool = False
    """An update could not be applied to what I hold: send the full view."""
    status: Status | None = None
    policy: Policy | None = None
    hints: tuple[Contact, ...] = ()


@dataclass(frozen=True, slots=True)
class Ack:
    """The answer to a beat."""

    uplink: Uplink
    seq: int
    ballot: Ballot


@dataclass(frozen=True, slots=True)
class Drop:
    """You are no member on this uplink: join again."""

    uplink: Uplink


@dataclass(frozen=True, slots=True)
class NoLead:
    """I don't lead (any more); perhaps this one does."""

    uplink: Uplink
    coordinator: Contact | None = None


@dataclass(frozen=True, slots=True)
class Pre:
    """Would you let me lead? Nothing is promised on either side."""

    nonce: int
    key: Key


@dataclass(frozen=True, slots=True)
class Yes:
    """I would. The highest term I have promised."""

    nonce: int
    term: int


@dataclass(frozen=True, slots=True)
class Busy:
    """Not now: I campaign with better right, or have just granted another."""

    nonce: int


@dataclass(frozen=True, slots=True)
class Lives:
    """No: this coordinator lives. I am it, or have just had a sign of life of it."""

    nonce: int
    ballot: Ballot
    coordinator: Contact


@dataclass(frozen=True, slots=True)
class Claim:
    """Grant me this ballot; I have promised it myself."""

    ballot: Ballot


@dataclass(frozen=True, slots=True)
class Grant:
    """Granted, and on disk."""

    ballot: Ballot


@dataclass(frozen=True, slots=True)
class Deny:
    """Not granted; the highest term I have promised."""

    ballot: Ballot
    term: int


@dataclass(frozen=True, slots=True)
class Lead:
    """I have won this ballot: join me."""

    ballot: Ballot


@dataclass(frozen=True, slots=True)
class Moved:
    """I lead no more; all my members now follow this one."""

    ballot: Ballot
    coordinator: Contact


@dataclass(frozen=True, slots=True)
class Probe:
    """I lead a group of this size since so many seconds. Do you lead too?"""

    ballot: Ballot
    size: int
    reign_s: float
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Come:
    """I have judged our two groups: yours joins mine."""

    ballot: Ballot


@dataclass(frozen=True, slots=True)
class Bye:
    """I stop, or stop leading. No need to wait for silence."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Your id is in use by this session as well."""

    session: SessionId


@dataclass(frozen=True, slots=True)
class Removed:
    """An administrator has removed you from the cluster."""

    ballot: Ballot


Message = (
    Hello | Follows | Join | Welcome | Update | Beat | Ack | Drop | NoLead | Pre | Yes | Busy | Lives | Claim | Grant
    | Deny | Lead | Moved | Probe | Come | Bye | Taken | Removed
)  # fmt: skip

_KINDS: Mapping[str, type[Message]] = {kind.__name__.lower(): kind for kind in get_args(Message)}


def encode(message: Message) -> dict[str, object]:
    """`message` as a JSON object with its `type`."""
    return {"type": type(message).__name__.lower(), **_object(message)}


def decode(data: object) -> Message:
    """The message that `encode` made `data` of. Unknown fields are ignored. Raises ValueError for anything else."""
    tag = data.get("type") if isinstance(data, dict) else None
    kind = _KINDS.get(tag) if isinstance(tag, str) else None
    if kind is None:
        raise ValueError(f"no such message: {str(tag)[:40]!r}")
    message: Message = decode_value(kind, data)
    return message


def view_to_dict(view: View) -> dict[str, object]:
    """A view as a JSON object."""
    return _object(view)


def view_from_dict(data: object) -> View:
    """The inverse of `view_to_dict`. Raises ValueError."""
    view: View = decode_value(View, data)
    return view


def status_to_dict(status: Status) -> dict[str, object]:
    """A status as a JSON object."""
    return _object(status)


def status_from_dict(data: object) -> Status:
    """The inverse of `status_to_dict`. Raises ValueError."""
    status: Status = decode_value(Status, data)
    return status


def policy_to_dict(policy: Policy) -> dict[str, object]:
    """A policy as a JSON object."""
    return _object(policy)


def policy_from_dict(data: object) -> Policy:
    """The inverse of `policy_to_dict`. Raises ValueError."""
    policy: Policy = decode_value(Policy, data)
    return policy


def _object(value: object) -> dict[str, object]:
    encoded = encode_value(value)
    assert isinstance(encoded, dict)
    return encoded
