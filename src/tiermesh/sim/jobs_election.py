"""Who leads the simulated mesh of jobs: decreed, and more rudely than `core.election` would.

Two may lead in one group for a while, views are late, and a coordinator that was frozen believes for a moment that it
still is one. What is kept is what the jobs rely on: ballots rise, a node follows no lower one than it has followed, and
nobody holds one twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiermesh.sim.jobs_machine import JobMachine
from tiermesh.types import Address, Ballot, Member, NodeId, Status, View

if TYPE_CHECKING:
    from tiermesh.sim.jobs_world import JobWorld

ELECT_S = 0.4
AWAIT_S = 2.0
"""A new coordinator counts everybody near as a member for so long."""


class Decrees:
    """From now on, every `ELECT_S`."""

    def __init__(self, world: JobWorld) -> None:
        self._world = world
        world.clock.at(ELECT_S, self._elect)

    def _elect(self) -> None:
        self._world.clock.at(self._world.now + ELECT_S, self._elect)
        awake = [machine for machine in self._world.up() if not machine.frozen]
        while awake:
            group = self._group(awake[0], awake)
            awake = [machine for machine in awake if machine not in group]
            self._lead(group)

    def _group(self, first: JobMachine, among: list[JobMachine]) -> list[JobMachine]:
        group, rest = [first], [machine for machine in among if machine is not first]
        for machine in group:
            near = [other for other in rest if self._world.network.is_open(machine.id, other.id)]
            group += near
            rest = [other for other in rest if other not in near]
        return group

    def _lead(self, group: list[JobMachine]) -> None:
        leaders = [machine for machine in group if machine.leads]
        highest = max(machine.promised for machine in group)
        if len(leaders) == 1 and leaders[0].promised == highest:
            self._publish(leaders[0], group)
        elif self._world.rng.random() < 0.4:
            chosen = self._world.rng.choice(leaders or group)
            ballot = Ballot(1 + highest.term, chosen.id)
            chosen.promised = ballot
            chosen.leads, chosen.leader, chosen.crowned_at = True, chosen.id, self._world.now
            self._publish(chosen, group)

    def _publish(self, leader: JobMachine, group: list[JobMachine]) -> None:
        assert leader.foreman is not None
        view = self._view(leader, group)
        if view != leader.view or not leader.foreman.leads:
            leader.view = view
            self._world.perform(leader, leader.foreman.view_changed(self._world.now, self._world.wall, view, True))
        for machine in group:
            if machine is not leader and machine.leader != leader.id and self._world.rng.random() < 0.7:
                delay = self._world.rng.uniform(0, ELECT_S)
                self._world.clock.at(
                    self._world.now + delay, self._follow, machine, machine.run, leader.id, leader.promised, view
                )

    def _follow(self, machine: JobMachine, run: int, leader: NodeId, ballot: Ballot, view: View) -> None:
        if machine.run != run or machine.frozen or ballot < machine.promised or machine.foreman is None:
            return
        machine.promised, machine.leader, machine.leads = ballot, leader, False
        self._world.perform(machine, machine.foreman.view_changed(self._world.now, self._world.wall, view, False))

    def _view(self, leader: JobMachine, group: list[JobMachine]) -> View:
        members = {}
        awaits = self._world.now - leader.crowned_at < AWAIT_S
        for joined, machine in enumerate(self._world.machines.values()):
            there = machine in group and (awaits or machine.leader == leader.id)
            state = "down" if not there else "draining" if machine.draining else "up"
            status = Status(machine.id, (Address(f"{machine.id}:1"),))
            members[machine.id] = Member(machine.id, machine.session, status, joined, state)  # type: ignore[arg-type]
        return View(leader.promised, 1, leader.id, members)
