"""The simulated world: machines, the network between them, faults, and invariants after every event."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import assert_never

from tiermesh.core.effects import Announce, Effect, Persist, Publish, Quit, Reach, Remember, Send
from tiermesh.core.messages import Message
from tiermesh.sim.clock import Clock
from tiermesh.sim.invariants import Invariants, Violation
from tiermesh.sim.machine import Letter, Machine, Transition, WatchedNode
from tiermesh.sim.network import WIRED, Network, Weather
from tiermesh.sim.processor import Processor
from tiermesh.types import Address, Contact, NodeId, SessionId, Status, Tier, View

SPINS = 1000
"""Events of one machine at one instant: more means that a deadline does not move."""


class World:
    """Everything there is, from one seed."""

    def __init__(
        self,
        seed: int,
        *,
        weather: Weather = WIRED,
        mdns: bool = True,
        disk_latency: tuple[float, float] = (0.0001, 0.002),
        cpu_per_message: float = 0.0,
        node_class: type[WatchedNode] = WatchedNode,
    ) -> None:
        self.rng = random.Random(seed)
        self.clock = Clock()
        self._processor = Processor(self.clock)
        self.network = Network(random.Random(seed + 1), weather)
        self.machines: dict[NodeId, Machine] = {}
        self.invariants = Invariants()
        self.transitions: Counter[Transition] = Counter()
        self.sent: Counter[str] = Counter()
        self.elections = 0
        self.quits: list[tuple[NodeId, str]] = []
        self.mdns = mdns
        self.on_view: Callable[[Machine, View], None] | None = None
        self.on_move: Callable[[Machine, Transition], None] | None = None
        self.on_send: Callable[[Message], None] | None = None
        self._disk_latency = disk_latency
        self._cpu = cpu_per_message
        self._node_class = node_class
        self._spins: tuple[NodeId, float, int] = (NodeId(""), -1.0, 0)

    @property
    def now(self) -> float:
        """Simulated seconds."""
        return self.clock.now

    def run(self, duration: float) -> None:
        """Let time pass."""
        self.clock.run(self.now + duration)

    def run_until(self, condition: Callable[[], bool], limit: float, step: float = 0.005) -> float | None:
        """Let time pass until `condition` holds; seconds it took, None when not within `limit`."""
        started = self.now
        while not condition():
            if self.now - started >= limit:
                return None
            self.run(step)
        return self.now - started

    # Machines

    def add(
        self,
        name: str,
        *,
        tier: Tier | None = None,
        eligible: bool = True,
        joins: Iterable[str] = (),
    ) -> Machine:
        """A machine, switched off."""
        node = NodeId(name)
        status = Status(name, (Address(f"{name}:1"),), tier=tier, eligible=eligible)
        machine = Machine(node, status, tuple(Address(f"{each}:1") for each in joins))
        self.machines[node] = machine
        return machine

    def start(self, machine: Machine) -> None:
        """Start the daemon with what is on its disk."""
        assert machine.node is None
        machine.run += 1
        machine.started_at = self.now
        machine.session = SessionId(f"{int(self.now * 1000):013d}-{machine.run:08x}")
        machine.busy_until = machine.wake_at = self.now
        machine.discovered.clear()
        node = self._node_class(
            me=machine.id,
            session=machine.session,
            status=machine.status,
            promised=machine.disk.promised,
            policy=machine.disk.policy,
            contacts=tuple(machine.disk.contacts.values()),
            now=self.now,
            wall=self.now,
            seed=self.rng.getrandbits(32),
        )
        node.watch = lambda transition: self._moved(machine, transition)
        machine.node = node
        self._arm(machine)
        for address in machine.joins:
            self._call(machine, node.hint, Contact((address,)))
        self._announce(machine)
        for other in self.running():
            if other is not machine:
                self._discover(machine, other)

    def crash(self, machine: Machine) -> None:
        """SIGKILL: memory is lost, a write in flight may be; connected peers see the end of the file."""
        if machine.writing is not None and self.rng.random() < 0.5:
            machine.disk.write(machine.writing)
        session = machine.session
        self._switch_off(machine)
        for peer in sorted(machine.links):
            other = self.machines[peer]
            other.links.discard(machine.id)
            if self.network.passes(machine.id, peer):
                self._processor.later(self.network.latency(), other, self._end_of_file, other, machine.id, session)
        machine.links.clear()

    def leave(self, machine: Machine) -> None:
        """SIGTERM: say goodbye, then stop."""
        assert machine.node is not None
        self._call(machine, machine.node.leave)
        self.clock.at(self.now + 0.1, self._exit, machine, machine.run)

    def describe(self, machine: Machine) -> None:
        """The daemon's own status has changed."""
        assert machine.node is not None
        self._call(machine, machine.node.describe, machine.status)

    def set_policy(self, machine: Machine, body: Mapping[str, object]) -> None:
        """The coordinator is given a policy."""
        assert machine.node is not None
        self._call(machine, machine.node.set_policy, body)

    def remove(self, machine: Machine, node: NodeId) -> None:
        """The coordinator is told to forget a member."""
        assert machine.node is not None
        self._call(machine, machine.node.remove, node)

    def freeze(self, machine: Machine) -> None:
        """SIGSTOP or sleep: connections stay, mail piles up."""
        machine.frozen = True

    def thaw(self, machine: Machine) -> None:
        """SIGCONT: mail and timers come in any order."""
        machine.frozen = False
        mail, machine.mailbox = machine.mailbox, []
        if machine.node is None:
            return
        if self.rng.random() < 0.5:
            self._call(machine, machine.node.tick)
        for action, arguments in mail:
            self._processor.enter(machine, machine.run, action, arguments)
        self._arm(machine)
        self._carry_out(machine)

    def running(self) -> list[Machine]:
        """Machines whose daemon runs, frozen ones included."""
        return [machine for machine in self.machines.values() if machine.node is not None]

    # Events

    def _call(self, machine: Machine, method: Callable[..., list[Effect]], *arguments: object) -> None:
        name, at, count = self._spins
        same = name == machine.id and at == self.now
        self._spins = (machine.id, self.now, count + 1 if same else 0)
        if count > SPINS:
            raise Violation(f"{machine.id} spins")
        effects = method(self.now, *arguments)
        if self._cpu:
            machine.busy_until = max(machine.busy_until, self.now) + self._cpu * (1 + len(effects))
        self.invariants.sized(self.now, machine.id, machine.node.size if machine.node is not None else 0)
        if effects:
            machine.effects.extend(effects)
            self._carry_out(machine)
        self._arm(machine)

    def _arm(self, machine: Machine) -> None:
        node = machine.node
        if node is None or machine.frozen:
            return
        due = max(node.deadline, self.now)
        if machine.wake_at <= self.now or due < machine.wake_at:
            machine.wake_at = due
            if due < 1e9:
                self.clock.at(due, self._wake, machine, machine.run, due)

    def _wake(self, machine: Machine, run: int, wake_at: float) -> None:
        node = machine.node
        if run != machine.run or machine.frozen or node is None or machine.wake_at != wake_at:
            return
        if machine.busy_until > self.now:
            machine.wake_at = machine.busy_until
            self.clock.at(machine.busy_until, self._wake, machine, run, machine.busy_until)
        elif node.deadline <= self.now:
            self._call(machine, node.tick)
        else:
            self._arm(machine)

    def _carry_out(self, machine: Machine) -> None:
        """Effects in order; what follows a persist waits until it is on disk."""
        while machine.effects and machine.writing is None and not machine.frozen:
            effect = machine.effects.popleft()
            match effect:
                case Persist():
                    machine.writing = effect
                    latency = self.rng.uniform(*self._disk_latency)
                    self.clock.at(self.now + latency, self._written, machine, machine.run)
                case Remember(contacts):
                    machine.disk.remember(contacts)
                case Send(to, message, session):
                    self._send(machine, to, message, session)
                case Reach(address, message):
                    self._reach(machine, address, message)
                case Publish(view):
                    self._show(machine, view)
                case Announce():
                    self._announce(machine)
                case Quit(reason):
                    self.quits.append((machine.id, reason))
                    self._exit(machine, machine.run)
                case _:
                    assert_never(effect)

    def _written(self, machine: Machine, run: int) -> None:
        if run != machine.run or machine.writing is None:
            return
        machine.disk.write(machine.writing)
        machine.writing = None
        self._carry_out(machine)

    def _show(self, machine: Machine, view: View) -> None:
        self.invariants.showed(machine.id, machine.disk.promised, view, machine.run)
        if self.on_view is not None:
            self.on_view(machine, view)

    def _send(self, machine: Machine, to: NodeId, message: Message, session: SessionId | None) -> None:
        self.sent[type(message).__name__] += 1
        self.invariants.said(self.now, machine.id, machine.disk.promised, to, message)
        if self.on_send is not None:
            self.on_send(message)
        other = self.machines.get(to)
        assert machine.node is not None
        if other is None or (to not in machine.links and not machine.node.addresses_of(to)):
            return
        self._dispatch(machine, other, message, to)

    def _reach(self, machine: Machine, address: Address, message: Message) -> None:
        other = next((each for each in self.machines.values() if each.address == address), None)
        if other is not None:
            self._dispatch(machine, other, message, address)

    def _dispatch(self, machine: Machine, other: Machine, message: Message, target: NodeId | Address) -> None:
        if other.id in machine.links:
            if not self.network.passes(machine.id, other.id):
                return
        elif not self.network.is_open(machine.id, other.id):
            return
        for _ in range(self.network.copies()):
            latency = self.network.latency()
            if other.node is None:
                self._processor.later(2 * latency, machine, self._refused, machine, target)
            else:
                departs_in = max(machine.busy_until - self.now, 0.0)
                letter = Letter(machine, machine.run, machine.session, message, target)
                self._processor.later(departs_in + latency, other, self._arrive, other, letter)

    def _arrive(self, machine: Machine, letter: Letter) -> None:
        sender, node = letter.sender, machine.node
        assert node is not None
        if sender.run == letter.run and sender.node is not None:
            machine.links.add(sender.id)
            sender.links.add(machine.id)
            if letter.target == machine.address:
                self._processor.later(self.network.latency(), sender, self._identified, sender, machine)
        self._call(machine, node.receive, sender.id, letter.session, letter.message)

    def _identified(self, machine: Machine, other: Machine) -> None:
        assert machine.node is not None
        self._call(machine, machine.node.identified, other.address, other.id)

    def _refused(self, machine: Machine, target: NodeId | Address) -> None:
        assert machine.node is not None
        self._call(machine, machine.node.refused, target)

    def _end_of_file(self, machine: Machine, peer: NodeId, session: SessionId) -> None:
        assert machine.node is not None
        self._call(machine, machine.node.lost, peer, session)

    def _hint(self, machine: Machine, contact: Contact) -> None:
        assert machine.node is not None
        self._call(machine, machine.node.hint, contact)

    def _announce(self, machine: Machine) -> None:
        for other in self.running():
            if other is not machine:
                self._discover(other, machine)

    def _discover(self, machine: Machine, found: Machine) -> None:
        if not self.mdns or found.id in machine.discovered or not self.network.passes(found.id, machine.id):
            return
        machine.discovered.add(found.id)
        contact = Contact((found.address,), found.id)
        delay = self.network.latency() + self.rng.uniform(0.001, 0.02)
        self._processor.later(delay, machine, self._hint, machine, contact)

    def _exit(self, machine: Machine, run: int) -> None:
        if machine.run == run and machine.node is not None:
            self.crash(machine)

    def _switch_off(self, machine: Machine) -> None:
        machine.node = None
        machine.run += 1
        machine.frozen = False
        machine.mailbox.clear()
        machine.inbox.clear()
        machine.effects.clear()
        machine.writing = None

    # What is watched

    def _has_run_since(self, node: NodeId, since: float) -> bool:
        machine = self.machines[node]
        return machine.node is not None and machine.started_at <= since

    def _moved(self, machine: Machine, transition: Transition) -> None:
        self.transitions[transition] += 1
        before, _, after = transition
        assert machine.node is not None
        if after == "lead":
            self.elections += 1
            self.invariants.crowned(self.now, machine.id, machine.run, machine.node.promised, self._has_run_since)
        elif before == "lead" and after == "follow":
            target = machine.node.view.coordinator
            assert target is not None
            self.invariants.yielded(self.now, machine.id, target)
        if self.on_move is not None:
            self.on_move(machine, transition)
