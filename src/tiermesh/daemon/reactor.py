"""The one owner of `core.Node`: feeds it what happens, carries out what it asks, in order.

    links, mDNS, timer ──> Node.receive / hint / tick ... ──> effects ──> [ queue ] ──> disk, links, view

The queue exists for one rule: what follows a `Persist` waits for it. While a persist is on its way to the disk,
the node goes on deciding; its effects line up behind.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol, assert_never

from tiermesh.adapters import clock
from tiermesh.core.effects import Announce, Effect, Persist, Publish, Quit, Reach, Remember, Send
from tiermesh.core.messages import Message, decode, encode
from tiermesh.errors import StateUnwritable, Unavailable
from tiermesh.types import Address, Ballot, Contact, NodeId, Policy, SessionId, Status, View

if TYPE_CHECKING:
    from tiermesh.core.node import Node

log = logging.getLogger(__name__)


class Disk(Protocol):
    """Where promises are kept: `adapters.store.Store`, or a test's."""

    async def save_promise(self, promised: Ballot, policy: Policy) -> None: ...
    async def save_contacts(self, contacts: tuple[Contact, ...]) -> None: ...


class Transport(Protocol):
    """How messages leave: `adapters.peers.Peers`."""

    def send(
        self, to: NodeId, addresses: tuple[Address, ...], payload: Mapping[str, object], session: SessionId | None
    ) -> None: ...
    def reach(self, address: Address, payload: Mapping[str, object]) -> None: ...
    def sessions(self, node: NodeId) -> frozenset[SessionId]: ...


class Reactor:
    """Runs one node. Everything happens on the loop; `view` is frozen and replaced whole."""

    def __init__(
        self,
        me: NodeId,
        node: Node,
        disk: Disk,
        *,
        on_view: Callable[[View], None],
        on_announce: Callable[[], None],
        on_quit: Callable[[Quit], None],
    ) -> None:
        self._me = me
        self._node = node
        self._disk = disk
        self._transport: Transport | None = None
        self._on_view = on_view
        self._on_announce = on_announce
        self._on_quit = on_quit
        self._queue: deque[tuple[Effect, SessionId | None]] = deque()
        self._drain: asyncio.Task[None] | None = None
        self._writes: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        """Kept here: uvloop's handle of what is due at once can't tell."""
        self._mute = False
        """Closed, or unable to keep its word: nothing leaves any more."""
        self._view = node.view

    @property
    def promised(self) -> Ballot:
        """No order under a lower ballot is obeyed."""
        return self._node.promised

    @property
    def view(self) -> View:
        """The view as published; never ahead of the disk."""
        return self._view

    @property
    def leads(self) -> bool:
        """Does this node coordinate, and has everybody been told? While a promise is on its way to the disk the
        view lags behind the node."""
        return self._node.role == "lead" and self._view.coordinator == self._me

    def start(self, transport: Transport) -> None:
        """Begin to keep time and to send."""
        self._transport = transport
        self._perform(self._node.tick(clock.now()))

    async def close(self) -> None:
        """Stop keeping time and finish what is on its way to the disk."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        while writing := [task for task in (self._drain, *self._writes) if task]:
            await asyncio.wait(writing)
        self._mute = True
        if self._timer is not None:
            self._timer.cancel()

    def hint(self, contact: Contact) -> None:
        """Somebody may be there."""
        self._perform(self._node.hint(clock.now(), contact))

    def describe(self, status: Status) -> None:
        """This node's own status is now this."""
        self._perform(self._node.describe(clock.now(), status))

    def set_policy(self, body: Mapping[str, object]) -> Policy:
        """Make `body` the policy of the cluster. Raises `Unavailable` unless this node coordinates."""
        if not self.leads:
            raise Unavailable("this node is not the coordinator just now; try again")
        self._perform(self._node.set_policy(clock.now(), body))
        return self._node.view.policy

    def remove(self, node: NodeId) -> None:
        """Forget a member, which ends if it runs. Raises `Unavailable` unless this node coordinates."""
        if not self.leads:
            raise Unavailable("this node is not the coordinator just now; try again")
        if node != self._me:
            self._perform(self._node.remove(clock.now(), node))

    async def saved(self) -> None:
        """Wait until what was decided so far is on disk. Raises `Unavailable` when it can't be written there."""
        while self._drain is not None:
            await asyncio.wait((self._drain,))
        if self._mute:
            raise Unavailable("this node can't write its state folder and is about to end; ask another one")

    async def leave(self) -> None:
        """Say goodbye to the mesh, and wait until that is handed to the transport."""
        self._perform(self._node.leave(clock.now()))
        while self._drain is not None:
            await asyncio.wait((self._drain,))

    def on_message(self, sender: NodeId, session: SessionId, payload: Mapping[str, object]) -> None:
        """A peer said something. Raises `ValueError` when it can't be read."""
        self._perform(self._node.receive(clock.now(), sender, session, decode(payload)), session)

    def on_lost(self, peer: NodeId, session: SessionId) -> None:
        """The connection with this run of a peer broke. Another run of it that is linked keeps the peer alive."""
        member = self._view.members.get(peer)
        others = self._transport.sessions(peer) if self._transport else frozenset()
        if not others or (member is not None and member.session == session):
            self._perform(self._node.lost(clock.now(), peer))

    def on_refused(self, target: NodeId | Address) -> None:
        """Nobody listens where this peer should be."""
        self._perform(self._node.refused(clock.now(), target))

    def on_identified(self, address: Address, node: NodeId) -> None:
        self._perform(self._node.identified(clock.now(), address, node))

    def _perform(self, effects: list[Effect], reply_to: SessionId | None = None) -> None:
        if self._mute:
            return
        self._queue.extend((effect, reply_to) for effect in effects)
        self._run_ready()
        self._schedule()

    def _run_ready(self) -> None:
        """Carry out effects until one must wait for the disk."""
        while self._queue and self._drain is None:
            effect, reply_to = self._queue.popleft()
            if isinstance(effect, Persist):
                self._drain = asyncio.ensure_future(self._persist(effect))
            else:
                self._carry_out(effect, reply_to)

    async def _persist(self, effect: Persist) -> None:
        try:
            await self._disk.save_promise(effect.promised, effect.policy)
        except StateUnwritable as error:
            # A node that can't keep its word must not give it: neither what waits behind this nor anything later.
            log.critical("the promise %s could not be saved: %s", effect.promised, error)
            self._queue.clear()
            self._mute = True
            self._on_quit(Quit(f"{error}; then start it again"))
            return
        finally:
            self._drain = None
        self._run_ready()

    def _carry_out(
        self, effect: Send | Reach | Publish | Announce | Quit | Remember, reply_to: SessionId | None
    ) -> None:
        assert self._transport is not None, "start() comes first"
        match effect:
            case Send(to, message, session):
                self._send(to, message, session, reply_to)
            case Reach(address, message):
                self._transport.reach(address, encode(message))
            case Publish(view):
                self._publish(view)
            case Announce():
                self._on_announce()
            case Remember(contacts):
                self._write(contacts)
            case Quit():
                self._on_quit(effect)
            case _:
                assert_never(effect)

    def _send(self, to: NodeId, message: Message, session: SessionId | None, reply_to: SessionId | None) -> None:
        assert self._transport is not None, "start() comes first"
        if session is None or session in self._transport.sessions(to):
            run = session or self._session_of(to, reply_to)
            self._transport.send(to, self._node.addresses_of(to), encode(message), run)

    def _session_of(self, peer: NodeId, reply_to: SessionId | None) -> SessionId | None:
        """Which run of a peer is meant: the one being answered, else the member."""
        if reply_to is not None and reply_to in (self._transport.sessions(peer) if self._transport else ()):
            return reply_to
        member = self._view.members.get(peer)
        return member.session if member else None

    def _publish(self, view: View) -> None:
        before, self._view = self._view, view
        if before.coordinator != view.coordinator:
            log.info("coordinator: %s (term %d)", _name(view, view.coordinator) or "none", view.ballot.term)
        for node_id, member in view.members.items():
            old = before.members.get(node_id)
            if node_id != self._me and (old is None or old.state != member.state):
                log.info("node %s is %s", member.status.name, member.state)
        self._on_view(view)

    def _write(self, contacts: tuple[Contact, ...]) -> None:
        task = asyncio.ensure_future(self._disk.save_contacts(contacts))
        self._writes.add(task)
        task.add_done_callback(self._written)

    def _written(self, task: asyncio.Task[None]) -> None:
        self._writes.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.warning("the address book could not be saved: %s", error)

    def _schedule(self) -> None:
        """One timer, at the node's own deadline; an earlier one that fires idly costs less than moving it each time."""
        deadline = self._node.deadline
        delay_s = max(0.0, deadline - clock.now())
        loop = asyncio.get_running_loop()
        due = loop.time() + delay_s
        if self._timer is not None:
            if self._timer_at <= due:
                return
            self._timer.cancel()
        self._timer, self._timer_at = loop.call_later(delay_s, self._tick), due

    def _tick(self) -> None:
        self._timer = None
        now = clock.now()
        self._node.set_wall(now, time.time())
        self._perform(self._node.tick(now) if now >= self._node.deadline else [])


def _name(view: View, node: NodeId | None) -> str | None:
    member = view.members.get(node) if node else None
    return member.status.name if member else node
