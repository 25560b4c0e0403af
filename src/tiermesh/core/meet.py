"""Meet: how a coordinator finds other coordinators, and which of two joins the other."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from heapq import nsmallest

from tiermesh.core.context import Context
from tiermesh.core.messages import Come, Follows, Join, Probe, Stamp, Uplink, Welcome
from tiermesh.types import NO_BALLOT, Address, Contact, NodeId


@dataclass(slots=True)
class Yield:
    """The attempt to become a member of another group, while still leading the own."""

    target: NodeId
    uplink: Uplink
    limit: float
    holds: Stamp
    ask_at: float


class Meeting:
    """The part of a coordinator that deals with its equals. `members` are those it need not look for."""

    def __init__(self, context: Context, now: float, members: Container[NodeId]) -> None:
        self.context = context
        self.timing = context.timing
        self.since = now
        self.yielding: Yield | None = None
        self._members = members
        self._round_at = now
        self._probes_left = self.timing.probe_burst
        self._shy_until = now

    @property
    def deadline(self) -> float:
        """The next round of probes, or the next repetition of a yield."""
        if self.yielding is None:
            return self._round_at
        return min(self._round_at, self.yielding.ask_at, self.yielding.limit)

    def tick(self, now: float, size: int) -> None:
        """Probe those who are due; go on yielding, or give it up."""
        if self.yielding is not None and now >= self.yielding.limit:
            self.abandon(now)
        if self.yielding is not None and now >= self.yielding.ask_at:
            self._ask(now, self.yielding)
        if now >= self._round_at:
            self._round(now, size)

    def hint(self, now: float, contact: Contact, size: int) -> None:
        """Somebody new may be there: probe it at once."""
        if contact.node_id is not None and contact.node_id != self.context.me:
            self._probe_peer(now, contact.node_id, size)
            return
        for address in contact.addresses:
            self._probe_address(now, address, size)

    def directed(self, now: float, word: Follows, size: int) -> None:
        """A stranger follows another coordinator: look for that one."""
        if word.coordinator.node_id not in (None, self.context.me):
            self.context.book.hint(word.coordinator, now)
            self.hint(now, word.coordinator, size)

    def judge(self, now: float, sender: NodeId, probe: Probe, size: int) -> None:
        """Of two coordinators the one with the higher ballot judges: the smaller group joins, of equals the younger."""
        context = self.context
        if probe.ballot > context.roster.ballot:
            context.send(sender, self._probe(now, size))
        elif self._is_lesser(now, probe, size):
            self.yield_to(now, sender)
        else:
            context.send(sender, Come(context.roster.ballot))

    def summoned(self, now: float, sender: NodeId, come: Come) -> None:
        """The other side has judged."""
        if come.ballot > self.context.roster.ballot:
            self.yield_to(now, sender)

    def yield_to(self, now: float, target: NodeId) -> None:
        """Ask to become a member there; one at a time, and not right after a failure."""
        if self.yielding is not None or now < self._shy_until:
            return
        context = self.context
        limit = now + self.timing.yield_limit
        self.yielding = Yield(target, context.next_uplink(), limit, context.roster.stamp, now)
        self._ask(now, self.yielding)

    def abandon(self, now: float) -> None:
        """Lead on. Two that yield to each other must not try again at the same time."""
        self.yielding = None
        self._shy_until = now + self.context.rng.random() * self.timing.probe

    def is_welcomed(self, now: float, sender: NodeId, welcome: Welcome) -> bool:
        """Has the yield succeeded? Then the other's view is in force. Never below the own promise."""
        attempt, context = self.yielding, self.context
        if attempt is None or sender != attempt.target or welcome.uplink != attempt.uplink:
            return False
        if welcome.update.ballot < context.promised:
            return False
        if not context.take(welcome.update):
            attempt.holds = (NO_BALLOT, 0)
            self._ask(now, attempt)
            return False
        return True

    def _is_lesser(self, now: float, probe: Probe, size: int) -> bool:
        if size != probe.size:
            return size < probe.size
        return probe.reign_s >= now - self.since + self.timing.reign_margin

    def _ask(self, now: float, attempt: Yield) -> None:
        context = self.context
        attempt.ask_at = now + self.timing.join_retry
        join = Join(attempt.uplink, context.promised, context.status, attempt.holds, leads=True)
        context.send(attempt.target, join)

    def _probe(self, now: float, size: int) -> Probe:
        context = self.context
        return Probe(context.roster.ballot, size, now - self.since, context.status.addresses)

    def _round(self, now: float, size: int) -> None:
        self._round_at = now + self.timing.probe
        self._probes_left = self.timing.probe_burst
        book, timing = self.context.book, self.timing
        due: list[tuple[float, NodeId | Address]] = []
        for node, peer in book.peers.items():
            pace = timing.probe if now - peer.fresh_at() < timing.idle_after else timing.probe_idle
            if node not in self._members and now - peer.asked_at >= pace - timing.hello:
                due.append((peer.asked_at, node))
        for address, loose in book.loose.items():
            pace = timing.probe if now - loose.hinted_at < timing.idle_after else timing.probe_idle
            if now - loose.asked_at >= pace - timing.hello:
                due.append((loose.asked_at, address))
        for _, target in nsmallest(self._probes_left, due):
            if target in book.peers:
                self._probe_peer(now, NodeId(target), size)
            else:
                self._probe_address(now, Address(target), size)

    def _probe_peer(self, now: float, node: NodeId, size: int) -> None:
        peer = self.context.book.peers.get(node)
        if peer is None or node in self._members or self._probes_left <= 0:
            return
        if now - peer.asked_at < self.timing.hello:
            return
        peer.asked_at = now
        self._probes_left -= 1
        self.context.send(node, self._probe(now, size))

    def _probe_address(self, now: float, address: Address, size: int) -> None:
        loose = self.context.book.loose.get(address)
        if loose is None or self._probes_left <= 0 or now - loose.asked_at < self.timing.hello:
            return
        loose.asked_at = now
        self._probes_left -= 1
        self.context.reach(address, self._probe(now, size))
