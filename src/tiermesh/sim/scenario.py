"""One seeded story: machines start, all kinds of faults happen, and whenever they stop the promises are checked."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from tiermesh.core.membership import policy_stamp
from tiermesh.sim.cables import Cables
from tiermesh.sim.invariants import Violation
from tiermesh.sim.machine import Machine, Transition, WatchedNode
from tiermesh.sim.network import ROUGH_WIFI, ROUGH_WIRED, WIFI, WIRED, Weather
from tiermesh.sim.world import World
from tiermesh.types import TIERS, Load

QUIET_S = 2.0
"""So long without faults before anything is demanded."""
AGREEMENT_S = 10.0
"""Within so long after that, every group has one coordinator."""
CALM_S = 3.0
"""So long after agreement nothing may change."""


@dataclass(frozen=True, slots=True)
class Climate:
    """The weather between faults and during them."""

    calm: Weather
    rough: Weather


CLIMATES = (Climate(WIRED, ROUGH_WIRED), Climate(WIFI, ROUGH_WIFI))


class Scenario:
    """Everything follows from `seed` and the range of `nodes`."""

    def __init__(self, seed: int, nodes: tuple[int, int] = (1, 9), node_class: type[WatchedNode] = WatchedNode) -> None:
        self.seed = seed
        self.rng = rng = random.Random(seed)
        self.climate = rng.choice(CLIMATES)
        self.mdns = rng.random() < 0.7
        slow_disk = rng.random() < 0.3
        self.world = World(
            seed,
            weather=self.climate.calm,
            mdns=self.mdns,
            disk_latency=(0.005, 0.08) if slow_disk else (0.0001, 0.002),
            node_class=node_class,
        )
        self.log: list[str] = []
        self.agreements: list[float] = []
        """Seconds from the end of the faults to agreement."""
        self._may_freeze_candidates = False
        self._cables = Cables(self.world.network, rng, lambda: list(self.world.machines), self._note)
        self.world.on_move = self._freeze_candidate
        self._populate(rng.randint(*nodes))

    def run(self) -> None:
        """Live through it. Raises Violation with all that is needed to see it again."""
        try:
            self._form()
            for _ in range(self.rng.randint(1, 3)):
                self._trouble()
                self._settle(self._quiet_groups())
            self._settle([self._everybody()])
        except (Violation, AssertionError) as error:
            story = "\n  ".join(self.log)
            raise Violation(f"seed {self.seed} at {self.world.now:.3f} s: {error}\n  {story}") from error

    # The stages

    def _populate(self, count: int) -> None:
        rng, world = self.rng, self.world
        names = [f"n{index}" for index in range(count)]
        rng.shuffle(names)
        for index, name in enumerate(names):
            joins = (rng.choice(names[:index]),) if index and (not self.mdns or rng.random() < 0.2) else ()
            tier = rng.choice((None, *TIERS))
            world.add(name, tier=tier, eligible=index == 0 or rng.random() < 0.85, joins=joins)
        self._note(f"{count} machines, {'wired' if self.climate is CLIMATES[0] else 'wifi'}, mdns {self.mdns}")

    def _form(self) -> None:
        spread = self.rng.choice((0.01, 0.3, 3.0))
        late = [machine for machine in self._machines() if self.rng.random() < 0.15]
        for machine in self._machines():
            if machine not in late:
                self.world.clock.at(self.rng.uniform(0, spread), self._start, machine)
        self.world.run(spread)
        if self.rng.random() < 0.5:
            self._settle([self._everybody()])

    def _trouble(self) -> None:
        rough = self.rng.random() < 0.6
        self._note(f"trouble, {'rough' if rough else 'calm'} weather")
        if rough:
            self.world.network.weather = self.climate.rough
        self._may_freeze_candidates = self.rng.random() < 0.3
        until = self.world.now + self.rng.uniform(1.0, 8.0)
        for _ in range(self.rng.randint(1, 10)):
            self.world.clock.at(self.rng.uniform(self.world.now, until), self._fault)
        self.world.run(until - self.world.now)
        self.world.network.weather = self.climate.calm
        self._may_freeze_candidates = False

    def _quiet_groups(self) -> list[list[Machine]]:
        """End all faults; the network may stay in clean halves."""
        for machine in self._machines():
            if machine.frozen:
                self.world.thaw(machine)
            if machine.node is None and self.rng.random() < 0.6:
                self._start(machine)
        machines = self._machines()
        if len(machines) < 2 or self.rng.random() < 0.5:
            return [machines]
        groups: list[list[Machine]] = [[] for _ in range(self.rng.randint(2, 3))]
        for machine in machines:
            self.rng.choice(groups).append(machine)
        return [group for group in groups if group]

    def _everybody(self) -> list[Machine]:
        for machine in self._machines():
            if machine.node is None:
                self._start(machine)
        return self._machines()

    def _settle(self, groups: list[list[Machine]]) -> None:
        """Demand what is promised without faults."""
        self._note("quiet: " + " | ".join(",".join(machine.id for machine in group) for group in groups))
        world = self.world
        world.network.split([[machine.id for machine in group] for group in groups])
        judged = [group for group in groups if self.mdns or self._is_whole(group)]
        world.run(QUIET_S)
        took = world.run_until(lambda: all(map(is_agreed, judged)), AGREEMENT_S, step=0.05)
        if took is None:
            raise Violation("no agreement: " + "; ".join(map(describe, judged)))
        self.agreements.append(QUIET_S + took)
        if judged:
            self._demand_calm()

    def _is_whole(self, group: list[Machine]) -> bool:
        """Without mDNS nodes find one another through all of the others, if need be."""
        return len(group) == len(self.world.machines) and all(machine.node is not None for machine in group)

    def _demand_calm(self) -> None:
        """A stable cluster does nothing: no transition, no raise."""
        world = self.world
        before, ballots = world.transitions.copy(), self._ballots()
        world.run(CALM_S)
        if world.transitions != before:
            raise Violation(f"a stable cluster moved: {world.transitions - before}")
        if self._ballots() != ballots:
            raise Violation("a stable cluster changed its ballot")

    # Faults

    def _fault(self) -> None:
        faults: tuple[tuple[int, Callable[[], None]], ...] = (
            (5, self._crash),
            (5, self._contest),
            (6, self._restart),
            (4, self._freeze),
            (4, self._cables.cut),
            (4, self._cables.cut_one_way),
            (4, self._cables.split),
            (5, self._cables.heal),
            (2, self._leave),
            (2, self._change_status),
            (1, self._set_policy),
        )
        weights, actions = zip(*faults, strict=True)
        self.rng.choices(actions, weights)[0]()

    def _crash(self) -> None:
        for machine in self._some(self.world.running(), most=3):
            self._note(f"crash {machine.id}")
            self.world.crash(machine)
            if self.rng.random() < 0.4:
                self.world.clock.at(self.world.now + self.rng.choice((0.0, 0.1, 0.5)), self._start, machine)

    def _contest(self) -> None:
        """The coordinator dies and the successors hear of it with delays of about a step: they campaign at once."""
        for machine in self.world.running():
            assert machine.node is not None
            if machine.node.role == "lead":
                self._note(f"contest: crash {machine.id}")
                self.world.crash(machine)
                for other in self.world.running():
                    if self.rng.random() < 0.5:
                        self._freeze_for(other, other.run, self.rng.choice((0.24, 0.25, 0.26, 0.5, 0.51)))
                return

    def _restart(self) -> None:
        for machine in self._some([each for each in self._machines() if each.node is None], most=9):
            self._start(machine)

    def _freeze(self) -> None:
        for machine in self._some(self.world.running(), most=2):
            self._freeze_for(machine, machine.run, self.rng.choice((0.3, 1.3, 1.6, 3.0, 10.0)))

    def _freeze_candidate(self, machine: Machine, transition: Transition) -> None:
        """The worst moment to be frozen: while grants are under way, for longer than they are good."""
        if transition[2] == "claim" and self._may_freeze_candidates and self.rng.random() < 0.5:
            delay = self.rng.uniform(0.0, 4 * self.climate.calm.median)
            duration = self.rng.choice((0.6, 1.0, 1.4))
            self.world.clock.at(self.world.now + delay, self._freeze_for, machine, machine.run, duration)

    def _freeze_for(self, machine: Machine, run: int, duration: float) -> None:
        if machine.run == run and machine.node is not None and not machine.frozen:
            self._note(f"freeze {machine.id} for {duration}")
            self.world.freeze(machine)
            self.world.clock.at(self.world.now + duration, self._thaw, machine, machine.run)

    def _leave(self) -> None:
        for machine in self._some([each for each in self.world.running() if not each.frozen], most=1):
            self._note(f"leave {machine.id}")
            self.world.leave(machine)

    def _change_status(self) -> None:
        for machine in self._some([each for each in self.world.running() if not each.frozen], most=1):
            eligible = machine is self._machines()[0] or self.rng.random() < 0.7
            machine.status = replace(machine.status, load=Load(active=self.rng.randint(0, 9)), eligible=eligible)
            self._note(f"describe {machine.id}, eligible {eligible}")
            self.world.describe(machine)

    def _set_policy(self) -> None:
        for machine in self.world.running():
            assert machine.node is not None
            if machine.node.role == "lead" and not machine.frozen:
                self._note(f"policy by {machine.id}")
                self.world.set_policy(machine, {"set_at": self.world.now})

    # Small things

    def _start(self, machine: Machine) -> None:
        if machine.node is None:
            self._note(f"start {machine.id}")
            self.world.start(machine)

    def _thaw(self, machine: Machine, run: int) -> None:
        if machine.frozen and machine.run == run:
            self._note(f"thaw {machine.id}")
            self.world.thaw(machine)

    def _some(self, machines: list[Machine], most: int) -> list[Machine]:
        if not machines:
            return []
        return self.rng.sample(machines, min(len(machines), self.rng.randint(1, most)))

    def _machines(self) -> list[Machine]:
        return list(self.world.machines.values())

    def _ballots(self) -> list[object]:
        return [machine.node.view.ballot for machine in self.world.running() if machine.node is not None]

    def _note(self, line: str) -> None:
        self.log.append(f"{self.world.now:8.3f} {line}")


def is_agreed(group: list[Machine]) -> bool:
    """One coordinator, one ballot, one policy (on disk too), everybody linked and shown as up; none, if nobody may."""
    nodes = [machine.node for machine in group if machine.node is not None]
    views = [node.view for node in nodes]
    leaders = [node for node in nodes if node.role == "lead"]
    if not leaders and not any(machine.status.eligible for machine in group if machine.node is not None):
        return all(view.coordinator is None for view in views)
    return (
        len(leaders) == 1
        and leaders[0].size == len(nodes)
        and len({(view.ballot, view.coordinator, view.version) for view in views}) == 1
        and len({policy_stamp(view.policy) for view in views}) == 1
        and all(view.members == views[0].members for view in views)
        and all(machine.disk.policy == views[0].policy for machine in group if machine.node is not None)
        and sum(member.state == "up" for member in views[0].members.values()) == len(nodes)
    )


def describe(group: list[Machine]) -> str:
    """The state of a group in one line."""
    return ", ".join(
        f"{machine.id} {machine.node.role} {machine.node.view.ballot.term}/{machine.node.view.coordinator}"
        f" v{machine.node.view.version} size {machine.node.size}"
        for machine in group
        if machine.node is not None
    )
