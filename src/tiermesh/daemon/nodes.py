"""A person's orders about one node, given to whatever node is near: drain it, let it work again, remove it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from tiermesh.adapters.peer_requests import DRAIN_PATH, REMOVE_PATH
from tiermesh.adapters.peers import Peers
from tiermesh.daemon.reactor import Reactor
from tiermesh.errors import InvalidInput, NotFound, Unavailable
from tiermesh.types import Member, NodeId

Order = Literal["drain", "resume", "remove"]


class NodeDesk:
    """As one node deals with them. `tell` makes this node's own state known to the mesh."""

    def __init__(
        self, me: NodeId, reactor: Reactor, peers: Peers, tell: Callable[[Literal["up", "draining"]], None]
    ) -> None:
        self._me = me
        self._reactor = reactor
        self._peers = peers
        self._tell = tell
        self._draining = False

    @property
    def draining(self) -> bool:
        """Was this node told to take no new work?"""
        return self._draining

    async def order(self, order: Order, name: str) -> Member:
        """Give `order` to the node of this name or id, and wait until it was taken; the node as it was before.

        Raises `NotFound`, `InvalidInput` for a name that several have, and `Unavailable`.
        """
        member = self._named(name)
        if order == "remove":
            await self._remove(member)
        elif member.id == self._me:
            self.drain_here(order == "drain")
        else:
            await self._peers.ask(member.id, member.status.addresses, DRAIN_PATH, {"draining": order == "drain"})
        return member

    def drain_here(self, draining: bool) -> None:
        """Take no new work from now on, or take it again. What runs is finished; a restart forgets it."""
        if draining != self._draining:
            self._draining = draining
            self._tell("draining" if draining else "up")

    def remove_here(self, node: NodeId) -> None:
        """As coordinator: forget a node, which ends if it runs. Raises `Unavailable` when this node is none."""
        self._reactor.remove(node)

    async def _remove(self, member: Member) -> None:
        view = self._reactor.view
        leader = view.members.get(view.coordinator) if view.coordinator else None
        if leader is None:
            raise Unavailable("the mesh has no coordinator just now; try again in a moment")
        if member.id == leader.id:
            raise InvalidInput(f"{member.status.name} coordinates the mesh: stop it there, and another one will")
        if leader.id == self._me:
            self.remove_here(member.id)
        else:
            await self._peers.ask(leader.id, leader.status.addresses, REMOVE_PATH, {"node": member.id})

    def _named(self, name: str) -> Member:
        members = self._reactor.view.members
        found = [member for member in members.values() if name in (member.status.name, member.id)]
        if not found:
            there = ", ".join(sorted(member.status.name for member in members.values()))
            raise NotFound(f"no node is called {name!r}; there are: {there}")
        if len(found) > 1:
            ids = ", ".join(sorted(member.id for member in found))
            raise InvalidInput(f"{len(found)} nodes are called {name!r}; say which by its id: {ids}")
        return found[0]
