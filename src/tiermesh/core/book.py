"""The address book: where every peer that was ever hinted or met may be reached.

An entry is a hint, never a proof. What a peer says of itself comes first, what others say of it after.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from tiermesh.core.constants import Timing
from tiermesh.core.messages import Key
from tiermesh.types import Address, Contact, NodeId, SessionId


@dataclass(slots=True)
class Peer:
    """One node, by id. Times are monotonic seconds."""

    told: tuple[Address, ...] = ()
    """What it says itself."""
    hinted: tuple[Address, ...] = ()
    """What others say."""
    hinted_at: float = -math.inf
    heard_at: float = -math.inf
    asked_at: float = -math.inf
    """When a hello or a probe last went there."""
    key: Key | None = None
    session: SessionId | None = None
    """Its newest run that was heard."""

    def addresses(self, most: int) -> tuple[Address, ...]:
        """All known addresses, the likeliest first."""
        return tuple(dict.fromkeys(self.told + self.hinted))[:most]

    def fresh_at(self) -> float:
        """When there was last a sign that it exists."""
        return max(self.hinted_at, self.heard_at)


@dataclass(slots=True)
class Loose:
    """An address whose owner is unknown."""

    hinted_at: float
    asked_at: float = -math.inf


@dataclass(slots=True)
class AddressBook:
    """Peers by id and loose addresses, both bounded."""

    me: NodeId
    timing: Timing
    peers: dict[NodeId, Peer] = field(default_factory=dict)
    loose: dict[Address, Loose] = field(default_factory=dict)
    own: set[Address] = field(default_factory=set)
    """Addresses at which this very daemon answered."""
    changed: set[NodeId] = field(default_factory=set)

    def load(self, contacts: Iterable[Contact], now: float) -> None:
        """Take in the saved contacts; they count as alive until `idle_after` has passed, but not as recent."""
        since = now - self.timing.recent - self.timing.probe
        for contact in contacts:
            if contact.node_id is None:
                self._keep_loose(contact.addresses, since)
            elif contact.node_id != self.me:
                self._peer(contact.node_id).hinted = contact.addresses[: self.timing.addresses]
                self.peers[contact.node_id].hinted_at = since

    def hint(self, contact: Contact, now: float) -> None:
        """Somebody says that there is a peer."""
        if contact.node_id is None or contact.node_id == self.me:
            self._keep_loose(contact.addresses, now)
            return
        peer = self._peer(contact.node_id)
        peer.hinted_at = now
        fresh = tuple(dict.fromkeys(contact.addresses + peer.hinted))[: self.timing.addresses]
        if fresh != peer.hinted:
            peer.hinted = fresh
            self.changed.add(contact.node_id)
        for address in contact.addresses:
            self.loose.pop(address, None)

    def told(self, node: NodeId, addresses: tuple[Address, ...]) -> None:
        """`node` says that it is reached at `addresses`."""
        if node == self.me:
            return
        peer = self._peer(node)
        if addresses is not peer.told and addresses != peer.told:
            peer.told = addresses[: self.timing.addresses]
            self.changed.add(node)

    def heard(self, node: NodeId, session: SessionId, now: float) -> None:
        """A message of `node` came in."""
        peer = self._peer(node)
        peer.heard_at = now
        if peer.session is None or session > peer.session:
            peer.session = session

    def is_past(self, node: NodeId, session: SessionId | None) -> bool:
        """Has a newer run of `node` than `session` been heard?"""
        peer = self.peers.get(node)
        return session is not None and peer is not None and peer.session is not None and peer.session > session

    def identified(self, address: Address, node: NodeId, now: float) -> None:
        """`node` answers at `address`."""
        self.loose.pop(address, None)
        if node == self.me:
            self.own.add(address)
            return
        self.hint(Contact((address,), node), now)

    def forget(self, node: NodeId) -> None:
        """Drop a peer for good."""
        if self.peers.pop(node, None) is not None:
            self.changed.add(node)

    def addresses_of(self, node: NodeId) -> tuple[Address, ...]:
        """Best known addresses; empty when there are none."""
        peer = self.peers.get(node)
        return peer.addresses(self.timing.addresses) if peer is not None else ()

    def contact(self, node: NodeId) -> Contact:
        """`node` as a hint for others."""
        return Contact(self.addresses_of(node), node)

    def recent(self, now: float) -> list[NodeId]:
        """Peers hinted or heard within `recent`."""
        since = now - self.timing.recent
        return [node for node, peer in self.peers.items() if peer.fresh_at() >= since]

    def drain(self) -> tuple[Contact, ...]:
        """What changed since the last call, to be saved; no addresses means that the peer was forgotten."""
        contacts = tuple(self.contact(node) for node in self.changed)
        self.changed.clear()
        return contacts

    def _keep_loose(self, addresses: Iterable[Address], now: float) -> None:
        for address in addresses:
            if address in self.own:
                continue
            known = self.loose.get(address)
            if known is not None:
                known.hinted_at = max(known.hinted_at, now)
            elif len(self.loose) < self.timing.loose:
                self.loose[address] = Loose(now)

    def _peer(self, node: NodeId) -> Peer:
        peer = self.peers.get(node)
        if peer is None:
            if len(self.peers) >= self.timing.contacts:
                self.forget(min(self.peers, key=lambda each: self.peers[each].fresh_at()))
            peer = self.peers[node] = Peer()
        return peer
